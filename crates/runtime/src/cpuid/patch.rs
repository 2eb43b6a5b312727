//! Replaces CPUID by UD2 in executable memory, where the processor cannot make CPUID trap.
//!
//! Both are two bytes. What has been replaced is remembered in a hash set of addresses: written under a lock
//! by whoever patches (a handler of a trapped system call, or the start), read without one by the `SIGILL`
//! handler of any thread. An address enters the set before the bytes change, so no thread can meet a UD2 that
//! is not in it. Code that is written at run time (a JIT's) is not seen; programs do not generate CPUID.
//!
//! Only private mappings are given to [`patch_range`]: the change must not reach the file.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use usgx_wire::place;

use super::{CPUID, decode, needs_patching};
use crate::arch::lock::Lock;
use crate::arch::syscall::nr;
use crate::{sys, usercopy};

/// An instruction that raises `#UD` on every processor.
const UD2: [u8; 2] = [0x0f, 0x0b];
const PAGE: u64 = 4096;
const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;

/// Where the set lives: between the records of threads and the windows.
const SET_BASE: u64 = place::RUNTIME_BASE + 0x8_0000_0000;
/// Places in the set; a power of two. A large program has a few hundred CPUIDs.
const SET_PLACES: usize = 1 << 13;
/// Beyond this, probing gets long: no more is patched.
const SET_FULL: u32 = (SET_PLACES / 4 * 3) as u32;
/// A place whose address has been taken out again.
const GONE: u64 = 1;

const MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE: u64 = 0x02 | 0x20 | 0x10_0000;

/// Places in use, [`GONE`] ones among them; and, as a lock, the right to change the set.
static USED: Lock<u32> = Lock::new(0);
/// 1 once the set's memory is there.
static READY: AtomicU32 = AtomicU32::new(0);

const _: () = assert!(place::THREADS_BASE + place::MAX_THREADS * place::THREAD_STRIDE <= SET_BASE);
const _: () = assert!(SET_BASE + (SET_PLACES * 8) as u64 <= place::WINDOWS_BASE);

/// Makes the set's memory.
pub(super) fn init() {
    // SAFETY: the range lies in the runtime's own part of the address space and is not in use.
    let at = unsafe {
        sys!(
            nr::MMAP,
            SET_BASE,
            SET_PLACES * 8,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE,
            -1_i64,
            0
        )
    };
    READY.store(u32::from(at as u64 == SET_BASE), Ordering::Release);
}

fn set() -> &'static [AtomicU64] {
    if READY.load(Ordering::Acquire) == 0 {
        return &[];
    }
    // SAFETY: `init` has mapped it for good; it is reached through atomics only.
    unsafe { core::slice::from_raw_parts(SET_BASE as *const AtomicU64, SET_PLACES) }
}

fn places(address: u64) -> impl Iterator<Item = usize> {
    let first = (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize;
    (0..SET_PLACES).map(move |step| (first + step) % SET_PLACES)
}

/// Whether CPUID at `address` has been replaced.
pub(super) fn is_patched(address: u64) -> bool {
    let set = set();
    !set.is_empty() && is_among(address, |place| set[place].load(Ordering::Acquire))
}

/// As [`is_patched`], for a process whose words `read` gives, by their addresses; 0 for those that are not there.
pub fn is_patched_in(address: u64, read: impl Fn(u64) -> u64) -> bool {
    is_among(address, |place| read(SET_BASE + 8 * place as u64))
}

fn is_among(address: u64, look: impl Fn(usize) -> u64) -> bool {
    for place in places(address) {
        match look(place) {
            0 => return false,
            found if found == address => return true,
            _ => {}
        }
    }
    false
}

fn remember(set: &[AtomicU64], used: &mut u32, address: u64) -> bool {
    if *used >= SET_FULL {
        return false;
    }
    for place in places(address) {
        let found = set[place].load(Ordering::Relaxed);
        if found == address {
            return true;
        }
        if found == 0 {
            set[place].store(address, Ordering::Release);
            *used += 1;
            return true;
        }
    }
    false
}

/// Replaces every CPUID in `len` bytes from `start` (whole pages, one private mapping, mapped with the
/// protection `prot`). Called for everything executable at the start, and whenever more appears.
pub fn patch_range(start: u64, len: u64, prot: u32) {
    let set = set();
    if !needs_patching() || set.is_empty() || prot & (PROT_READ | PROT_EXEC) != PROT_READ | PROT_EXEC {
        return;
    }
    let end = start.saturating_add(len);
    let mut used = USED.lock();
    forget_changed(set, *used, start, end);
    let mut at = start;
    let mut buffer = [0_u8; 4097];
    while at < end {
        // One byte more than a page, so that a CPUID across the boundary is seen.
        let want = (end - at).min(buffer.len() as u64) as usize;
        // SAFETY: the buffer has room for `want` bytes.
        let got = unsafe { usercopy::copy_in(buffer.as_mut_ptr(), at, want) };
        if got < 2 {
            return;
        }
        for i in find(&buffer[..got]) {
            let address = at + i as u64;
            if judge(start, end, address) && remember(set, &mut used, address) {
                replace(address, prot);
            }
        }
        at += PAGE;
    }
}

/// Forgets what was patched in a range and is not there any more: something else is mapped there now.
fn forget_changed(set: &[AtomicU64], used: u32, start: u64, end: u64) {
    if used == 0 {
        return;
    }
    for place in set {
        let address = place.load(Ordering::Relaxed);
        if (start..end).contains(&address) && usercopy::get::<[u8; 2]>(address) != Some(UD2) {
            place.store(GONE, Ordering::Release);
        }
    }
}

/// Where `0f a2` stands in `bytes`.
fn find(bytes: &[u8]) -> impl Iterator<Item = usize> {
    bytes.windows(2).enumerate().filter(|(_, pair)| *pair == CPUID).map(|(i, _)| i)
}

/// Looks at what surrounds the candidate.
fn judge(start: u64, end: u64, address: u64) -> bool {
    let mut around = [0_u8; decode::BEFORE + decode::AFTER];
    let first = address.saturating_sub(decode::BEFORE as u64).max(start);
    let last = (address + decode::AFTER as u64).min(end);
    // SAFETY: the buffer has room for both.
    let got = unsafe { usercopy::copy_in(around.as_mut_ptr(), first, (last - first) as usize) };
    let at = (address - first) as usize;
    got >= at + 2 && decode::is_cpuid(&around[..got], at)
}

/// Writes UD2 over the instruction. The pages stay executable meanwhile: other threads may run there.
fn replace(address: u64, prot: u32) {
    let page = address & !(PAGE - 1);
    let len = ((address + 1) & !(PAGE - 1)) + PAGE - page;
    // SAFETY: changes the protection of program memory and sets it back; the caller vouches that it is a
    // private mapping with this protection.
    unsafe {
        if prot & PROT_WRITE != 0 || sys!(nr::MPROTECT, page, len, prot | PROT_WRITE) == 0 {
            usercopy::copy_out(address, UD2.as_ptr(), UD2.len());
            if prot & PROT_WRITE == 0 {
                sys!(nr::MPROTECT, page, len, prot);
            }
        }
    }
}
