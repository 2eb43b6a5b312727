//! Futexes on words that two processes share.
//!
//! Used by the machine's workers, which sleep on a slot's `turn`. The words are in shared mappings, so the
//! private flag is never set.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::thread::futex;
use rustix::time::Timespec;

/// Sleeps until somebody wakes `word`, unless its value is no longer `expected`; at most for `timeout`.
///
/// Returns in every case without saying why: a spurious wake, a signal, a changed value and a time-out all
/// mean that the caller looks at the word again.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|duration| Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    });
    // Every outcome means the same to the caller, see above.
    let _ = futex::wait(word, futex::Flags::empty(), expected, timeout.as_ref());
}

/// Wakes all who sleep on `word`.
pub fn wake_all(word: &AtomicU32) {
    // Fails only for an address that is no mapped word, which a reference excludes.
    let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
}
