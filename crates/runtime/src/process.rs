//! What the runtime knows of the process: handlers that the program installed, reserved descriptors, how the
//! image was started.
//!
//! All threads share one [`Process`]. A vfork child runs in the same memory but has handlers of its own, so it
//! gets a copy ([`crate::thread::Thread::separate`]). Everything else is shared even then.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use usgx_wire::boot::Boot;

use crate::arch::lock::Lock;
use crate::arch::syscall::nr;
use crate::arch::{close, getpid};
use crate::signals::frame::Sigaction;
use crate::signals::pending::Pending;
use crate::sys;
use crate::thread::Once;

/// Handlers by signal number.
#[derive(Clone, Copy)]
pub struct Actions {
    table: [Sigaction; 65],
}

impl Actions {
    /// All default.
    pub const fn new() -> Self {
        Self { table: [Sigaction { handler: 0, flags: 0, restorer: 0, mask: 0 }; 65] }
    }

    /// What the program asked for `sig` (1 to 64).
    pub fn get(&self, sig: i32) -> Sigaction {
        self.table[(sig as usize).min(64)]
    }

    /// Notes what the program asks for `sig` (1 to 64).
    pub fn set(&mut self, sig: i32, action: Sigaction) {
        self.table[(sig as usize).min(64)] = action;
    }
}

/// The shared state of the threads of a process.
pub struct Process {
    /// What the program asked for, signal by signal.
    pub actions: Lock<Actions>,
    /// Signals that the program blocks and the kernel does not keep.
    pub pending: Pending,
    /// Nonzero if the program has said that its parent is to trace it, and the kernel has not been told yet.
    pub trace_me: AtomicU32,
}

impl Process {
    /// All signals default, and none that waits.
    pub const fn new() -> Self {
        Self { actions: Lock::new(Actions::new()), pending: Pending::new(), trace_me: AtomicU32::new(0) }
    }
}

/// The image's process.
pub static PROCESS: Process = Process::new();

/// How the attendant started this image.
pub static BOOT: Once<Boot> = Once::new();

/// The process that the image was started in; forks have another.
pub static FIRST_PID: AtomicU32 = AtomicU32::new(0);

/// Whether this is the very process that the attendant injected, not a fork of it.
pub fn is_first() -> bool {
    FIRST_PID.load(Ordering::Relaxed) == getpid()
}

/// Descriptors of the runtime's among the reserved numbers, one bit each. The others of these numbers are the
/// program's if it opens so many files.
static OWN: AtomicU64 = AtomicU64::new(0);

/// The bit of `fd`, 0 if it is no reserved number.
fn own_bit(fd: i32) -> u64 {
    let boot = BOOT.get();
    let index = i64::from(fd) - i64::from(boot.fd_base);
    if (0..i64::from(boot.fd_count.min(64))).contains(&index) { 1 << index } else { 0 }
}

/// Notes that `fd` is the runtime's.
pub fn own(fd: i32) {
    OWN.fetch_or(own_bit(fd), Ordering::Relaxed);
}

/// Notes that `fd` is nobody's.
pub fn disown(fd: i32) {
    OWN.fetch_and(!own_bit(fd), Ordering::Relaxed);
}

/// Whether `fd` is the runtime's, and not the program's to close or replace.
pub fn is_own(fd: i32) -> bool {
    OWN.load(Ordering::Relaxed) & own_bit(fd) != 0
}

/// Moves a descriptor out of the program's way, close-on-exec: to a reserved number if one is free, else to the
/// lowest free one beyond; if the limit of open files has come down below those, to one just below the limit.
pub fn reserve(fd: i32) -> i32 {
    if fd < 0 {
        return fd;
    }
    let base = i64::from(BOOT.get().fd_base);
    let moved = duplicate(fd, base).or_else(|| {
        let top = open_file_limit() - RESERVE;
        (i64::from(fd) < top).then(|| duplicate(fd, top)).flatten()
    });
    let Some(moved) = moved else { return fd };
    close(fd);
    own(moved);
    moved
}

/// Numbers below a low limit that the runtime prefers.
const RESERVE: i64 = 16;

/// Duplicates `fd` to the lowest free number from `least` on.
fn duplicate(fd: i32, least: i64) -> Option<i32> {
    const F_DUPFD_CLOEXEC: u64 = 1030;
    // SAFETY: duplicates a descriptor of the runtime.
    let moved = unsafe { sys!(nr::FCNTL, fd, F_DUPFD_CLOEXEC, least) };
    (moved >= 0).then_some(moved as i32)
}

fn open_file_limit() -> i64 {
    const RLIMIT_NOFILE: u64 = 7;
    let mut limit = [0u64; 2];
    // SAFETY: the kernel writes a `struct rlimit`.
    unsafe { sys!(nr::GETRLIMIT, RLIMIT_NOFILE, limit.as_mut_ptr()) };
    limit[0] as i64
}
