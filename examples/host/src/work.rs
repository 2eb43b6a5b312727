//! What the program does with its enclave: fills 64 MiB inside of it, and checks every byte, from inside and
//! from outside.

use crate::enclave::{Enclave, Error, Request};
use crate::layout::HEAP_SIZE;

const PAGE_SIZE: u64 = 4096;
const WORDS_PER_PAGE: u64 = PAGE_SIZE / 8;
/// Pages per call: often enough to show progress.
const STEP: u64 = 64;
/// Single bytes read at random places.
const SAMPLES: u64 = 2048;
/// Any number; another one gives another pattern.
const SEED: u64 = 0x5567_7856;

/// The enclave's operations.
mod op {
    pub(super) const FILL: u64 = 1;
    pub(super) const CHECKSUM: u64 = 2;
    pub(super) const VERIFY: u64 = 3;
    pub(super) const GET: u64 = 4;
    pub(super) const ECHO: u64 = 5;
    pub(super) const REPORT: u64 = 6;
    pub(super) const SEAL: u64 = 7;
}

/// How far the work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done.
    pub phase: &'static str,
    /// Pages done.
    pub done: u64,
    /// Pages in all.
    pub total: u64,
}

/// What came out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Bytes that were compared with what they should be.
    pub checked: u64,
    /// Bytes, or words of eight, that were not.
    pub wrong: u64,
    /// The enclave's measurement, as its own report states it.
    pub measurement: [u8; 32],
}

/// The pattern that the enclave fills its heap with.
fn pattern(index: u64) -> u64 {
    let mixed = (SEED ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 29
}

/// Works through the enclave's heap.
///
/// # Errors
///
/// If the enclave cannot be entered or does not answer; wrong contents are no error but in the outcome.
pub fn work(enclave: &Enclave, progress: &mut dyn FnMut(Progress)) -> Result<Outcome, Error> {
    let total = HEAP_SIZE as u64 / PAGE_SIZE;
    let mut outcome = Outcome { measurement: measurement(enclave)?, ..Outcome::default() };
    let request = |operation, page: u64| Request {
        operation,
        first: page * WORDS_PER_PAGE,
        count: STEP * WORDS_PER_PAGE,
        seed: SEED,
        ..Request::default()
    };
    let mut each = |phase, action: &mut dyn FnMut(u64) -> Result<(), Error>| -> Result<(), Error> {
        for page in (0..total).step_by(STEP as usize) {
            action(page)?;
            progress(Progress { phase, done: page + STEP, total });
        }
        Ok(())
    };
    each("filling", &mut |page| enclave.call(request(op::FILL, page)).map(drop))?;
    each("checking inside", &mut |page| {
        outcome.wrong += enclave.call(request(op::VERIFY, page))?;
        outcome.checked += STEP * PAGE_SIZE;
        Ok(())
    })?;
    each("checking outside", &mut |page| {
        let sum = enclave.call(request(op::CHECKSUM, page))?;
        let words = page * WORDS_PER_PAGE..(page + STEP) * WORDS_PER_PAGE;
        let expected = words.fold(0u64, |sum, word| sum.wrapping_add(pattern(word)));
        outcome.wrong += u64::from(sum != expected);
        Ok(())
    })?;
    for sample in 0..SAMPLES {
        // Far apart and in no order, so that hardly two of them share a page.
        let offset = pattern(!sample) % HEAP_SIZE as u64;
        let byte = enclave.call(Request { operation: op::GET, first: offset, ..Request::default() })?;
        outcome.wrong += u64::from(byte != pattern(offset / 8) >> (8 * (offset % 8)) & 0xff);
        outcome.checked += 1;
        if (sample + 1) % STEP == 0 {
            progress(Progress { phase: "reading at random", done: sample + 1, total: SAMPLES });
        }
    }
    outcome.wrong += u64::from(!keys_and_copies_agree(enclave)?);
    Ok(outcome)
}

/// What tells an enclave on a machine from others.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// MRENCLAVE, as the enclave's own report states it.
    pub measurement: [u8; 32],
    /// A fingerprint of its seal key.
    pub seal_key: u64,
}

/// Asks the enclave who it is.
///
/// # Errors
///
/// If the enclave cannot be entered or does not answer.
pub fn identity(enclave: &Enclave) -> Result<Identity, Error> {
    let seal_key = enclave.call(Request { operation: op::SEAL, ..Request::default() })?;
    Ok(Identity { measurement: measurement(enclave)?, seal_key })
}

/// The enclave's measurement, from a report for nobody in particular.
fn measurement(enclave: &Enclave) -> Result<[u8; 32], Error> {
    let target = [0u8; 512];
    let mut report = [0u8; 432];
    enclave.call(Request {
        operation: op::REPORT,
        first: target.as_ptr() as u64,
        second: report.as_mut_ptr() as u64,
        ..Request::default()
    })?;
    let report = std::hint::black_box(report);
    let mut measurement = [0; 32];
    measurement.copy_from_slice(&report[64..96]);
    Ok(measurement)
}

/// The seal key is the same each time, and bytes come back as they went in.
fn keys_and_copies_agree(enclave: &Enclave) -> Result<bool, Error> {
    let seal = || enclave.call(Request { operation: op::SEAL, ..Request::default() });
    let message = *b"through the enclave and back";
    let mut copy = [0u8; 28];
    enclave.call(Request {
        operation: op::ECHO,
        first: message.as_ptr() as u64,
        count: message.len() as u64,
        second: copy.as_mut_ptr() as u64,
        ..Request::default()
    })?;
    Ok(seal()? == seal()? && std::hint::black_box(copy) == message)
}
