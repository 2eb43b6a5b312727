//! An enclave that does little, so that one can see what it takes to be one.
//!
//! The program around it passes a [`Request`] in ordinary memory. The enclave copies it in, works on its own
//! heap of 64 MiB, and writes the answer back. It needs no libc, no relocation and no allocator, and it
//! neither panics nor trusts a pointer that it is given. [`entry`]: the way in and out. [`layout`]: what is where. [`outside`]: the
//! program's memory. [`leaf`]: EREPORT and EGETKEY. [`memory`]: what the compiler expects.

#![no_std]
#![no_main]

mod entry;
#[allow(dead_code, reason = "parts of it are for the loader")]
mod layout;
mod leaf;
mod memory;
mod outside;

use layout::HEAP_SIZE;
use leaf::{Block512, ReportData};

/// The operations; the numbers are known to the program around.
mod op {
    /// Fills words `first..first + count` of the heap with the pattern of `seed`.
    pub(super) const FILL: u64 = 1;
    /// Adds up words `first..first + count`.
    pub(super) const CHECKSUM: u64 = 2;
    /// Counts the words in `first..first + count` that are not the pattern of `seed`.
    pub(super) const VERIFY: u64 = 3;
    /// Reads the heap's byte number `first`.
    pub(super) const GET: u64 = 4;
    /// Copies `count` bytes (at most 4096) from the address `first` to the address `second`.
    pub(super) const ECHO: u64 = 5;
    /// Makes a report for the TARGETINFO at `first` and writes its 432 bytes to `second`.
    pub(super) const REPORT: u64 = 6;
    /// Derives the seal key and tells a fingerprint of it.
    pub(super) const SEAL: u64 = 7;
}

/// Values of [`Request::status`].
mod status {
    /// Done; the result is in the request.
    pub(super) const DONE: u64 = 0;
    /// There is no such operation, or the range is not in the heap, or the pointer points inside.
    pub(super) const REFUSED: u64 = 1;
    /// A leaf has failed; the result is its code.
    pub(super) const LEAF_FAILED: u64 = 2;
}

/// What the program asks, in its own memory.
#[repr(C)]
#[derive(Clone, Copy)]
struct Request {
    operation: u64,
    first: u64,
    count: u64,
    seed: u64,
    second: u64,
    /// Out: one of [`status`].
    status: u64,
    /// Out: by operation.
    result: u64,
}

const REQUEST_WORDS: usize = size_of::<Request>() / 8;

/// Serves one request. Called by the entry code with what was in RDI.
extern "C" fn serve(address: usize) {
    let mut bytes = [0; size_of::<Request>()];
    if !outside::read(address, &mut bytes) {
        return;
    }
    let mut words = [0u64; REQUEST_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    let [operation, first, count, seed, second, ..] = words;
    let request = Request { operation, first, count, seed, second, status: 0, result: 0 };
    let (status, result) = match perform(&request) {
        Some(Ok(result)) => (status::DONE, result),
        Some(Err(code)) => (status::LEAF_FAILED, code),
        None => (status::REFUSED, 0),
    };
    let mut answer = [0; 16];
    answer[..8].copy_from_slice(&status.to_le_bytes());
    answer[8..].copy_from_slice(&result.to_le_bytes());
    outside::write(address + core::mem::offset_of!(Request, status), &answer);
}

/// Does what is asked: `None` if it cannot be asked, an error if a leaf fails.
fn perform(request: &Request) -> Option<Result<u64, u64>> {
    match request.operation {
        op::FILL => {
            for word in words(request)? {
                set(word, pattern(request.seed, word as u64));
            }
            Some(Ok(request.count))
        }
        op::CHECKSUM => Some(Ok(words(request)?.fold(0, |sum: u64, word| sum.wrapping_add(get(word))))),
        op::VERIFY => {
            let wrong = words(request)?.filter(|&word| get(word) != pattern(request.seed, word as u64));
            Some(Ok(wrong.count() as u64))
        }
        op::GET if request.first < HEAP_SIZE as u64 => {
            let word = get(request.first as usize / 8);
            Some(Ok(word >> (8 * (request.first % 8)) & 0xff))
        }
        op::ECHO => echo(request),
        op::REPORT => {
            let mut target = Block512([0; 512]);
            if !outside::read(request.first as usize, &mut target.0) {
                return None;
            }
            let mut data = ReportData([0; 64]);
            data.0[..8].copy_from_slice(&request.seed.to_le_bytes());
            let report = leaf::report(&target, &data);
            outside::write(request.second as usize, &report.0).then_some(Ok(0))
        }
        op::SEAL => Some(leaf::seal_key().map(|key| fingerprint(&key))),
        _ => None,
    }
}

fn echo(request: &Request) -> Option<Result<u64, u64>> {
    let mut buffer = [0; 4096];
    let buffer = buffer.get_mut(..request.count as usize)?;
    let copied =
        outside::read(request.first as usize, buffer) && outside::write(request.second as usize, buffer);
    copied.then_some(Ok(request.count))
}

/// The heap's words that a request names.
fn words(request: &Request) -> Option<core::ops::Range<usize>> {
    let end = request.first.checked_add(request.count)?;
    (end <= (HEAP_SIZE / 8) as u64).then_some(request.first as usize..end as usize)
}

/// What word `index` holds after a fill: different for each word and each seed.
fn pattern(seed: u64, index: u64) -> u64 {
    let mixed = (seed ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

fn get(word: usize) -> u64 {
    // SAFETY: Callers have checked that `word` is in the heap, which is mapped for as long as the enclave is
    // and which no Rust object lies in.
    unsafe { core::ptr::read_volatile(outside::heap().cast::<u64>().wrapping_add(word)) }
}

fn set(word: usize, value: u64) {
    // SAFETY: As in `get`.
    unsafe { core::ptr::write_volatile(outside::heap().cast::<u64>().wrapping_add(word), value) }
}

/// FNV-1a: enough to tell two keys apart. The key itself must not leave the enclave; a real one would not
/// tell even this much.
fn fingerprint(key: &[u8]) -> u64 {
    key.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// There is nobody to tell: the thread stops, and the program around it sees an exception.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        // SAFETY: `ud2` raises an exception and does nothing else.
        unsafe { core::arch::asm!("ud2") };
    }
}
