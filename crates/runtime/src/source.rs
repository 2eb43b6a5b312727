//! Pages that are to go into an enclave, copied from the program's memory for the machine.
//!
//! Linux takes none from a mapping that can never be executable, such as one of a file on a `noexec` mount. Only
//! `/proc/self/smaps` tells, which is slow: so a thread remembers the last mapping that was fine, until a mapping may
//! have gone or changed its place.

use core::sync::atomic::{AtomicU64, Ordering};

use usgx_wire::process::DATA_SIZE;
use usgx_wire::slot::upcall::NEVER_EXECUTABLE;

use crate::link::data;
use crate::procfs::Lines;
use crate::thread::Thread;
use crate::usercopy;

/// How often mappings may have gone.
static CHANGES: AtomicU64 = AtomicU64::new(1);

/// Notes that a mapping may have gone, or that another one took its place.
pub fn forget() {
    CHANGES.fetch_add(1, Ordering::Release);
}

/// A mapping whose pages may go into an enclave. Only its own thread touches it.
pub struct Known {
    start: AtomicU64,
    end: AtomicU64,
    /// [`CHANGES`] when it was looked up; 0 for none.
    changes: AtomicU64,
}

impl Known {
    /// Nothing is known.
    pub const fn nothing() -> Self {
        Self { start: AtomicU64::new(0), end: AtomicU64::new(0), changes: AtomicU64::new(0) }
    }

    fn end(&self, address: u64) -> Option<u64> {
        let [start, end, changes] =
            [&self.start, &self.end, &self.changes].map(|word| word.load(Ordering::Relaxed));
        let still = changes == CHANGES.load(Ordering::Acquire);
        (still && (start..end).contains(&address)).then_some(end)
    }

    fn remember(&self, mapping: &Vma, changes: u64) {
        self.start.store(mapping.start, Ordering::Relaxed);
        self.end.store(mapping.end, Ordering::Relaxed);
        self.changes.store(changes, Ordering::Relaxed);
    }
}

/// Answers [`usgx_wire::slot::upcall::SOURCE`]: copies into the thread's data area, to `offset`, up to the end of a
/// mapping.
pub fn copy(thread: &Thread, address: u64, length: usize, offset: usize) -> u64 {
    let end = match thread.source.end(address) {
        Some(end) => end,
        None => match look_up(thread, address) {
            Ok(end) => end,
            Err(Never) => return NEVER_EXECUTABLE,
        },
    };
    let length = length.min((end - address) as usize).min(DATA_SIZE.saturating_sub(offset));
    // SAFETY: the data area reaches as far, and it is this call's.
    unsafe { usercopy::copy_in(data(thread).add(offset), address, length) as u64 }
}

/// The mapping can never be executable.
struct Never;

/// A mapping of the process.
struct Vma {
    start: u64,
    end: u64,
    of_file: bool,
}

/// Where the part of memory ends that may be copied. As on Linux it is the first mapping that ends above the address
/// that counts, even if it begins above; the copy then finds that nothing is there.
fn look_up(thread: &Thread, address: u64) -> Result<u64, Never> {
    let changes = CHANGES.load(Ordering::Acquire);
    let Some(mapping) = first_above(address) else { return Ok(u64::MAX) };
    // Memory without a file can always be made executable.
    if mapping.of_file && !may_be_executable(mapping.start) {
        return Err(Never);
    }
    if mapping.start > address {
        return Ok(u64::MAX);
    }
    thread.source.remember(&mapping, changes);
    Ok(mapping.end)
}

fn first_above(address: u64) -> Option<Vma> {
    let mut lines = Lines::of(c"/proc/self/maps")?;
    loop {
        let mapping = parse(lines.next()?)?;
        if mapping.end > address {
            return Some(mapping);
        }
    }
}

/// `START-END rwxp OFFSET MAJOR:MINOR INODE PATH`.
fn parse(line: &[u8]) -> Option<Vma> {
    let mut words = line.split(|byte| *byte == b' ');
    let mut range = words.next()?.split(|byte| *byte == b'-').map(hexadecimal);
    let (start, end) = (range.next()??, range.next()??);
    Some(Vma { start, end, of_file: words.nth(3)? != b"0" })
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}

/// Whether the mapping that begins here has the flag `me`; yes if nobody tells.
fn may_be_executable(start: u64) -> bool {
    let Some(mut lines) = Lines::of(c"/proc/self/smaps") else { return true };
    let mut found = false;
    while let Some(line) = lines.next() {
        if let Some(flags) = line.strip_prefix(b"VmFlags:") {
            if found {
                return flags.split(|byte| *byte == b' ').any(|flag| flag == b"me");
            }
        } else if parse(line).is_some_and(|mapping| mapping.start == start) {
            found = true;
        }
    }
    true
}
