//! The machine language level: system calls, memory functions, messages of last resort.

pub mod lock;
pub mod mem;
pub mod syscall;

use crate::sys;
use syscall::nr;

/// Writes `message` to standard error.
pub fn complain(message: &str) {
    // SAFETY: write reads `message`, which is valid for its length.
    unsafe { sys!(nr::WRITE, 2, message.as_ptr(), message.len()) };
}

/// Writes `message` and ends the process with SIGABRT's habit: status 134.
pub fn fatal(message: &str) -> ! {
    complain(message);
    loop {
        // SAFETY: exit_group does not return.
        unsafe { sys!(nr::EXIT_GROUP, 134) };
    }
}

/// The calling thread's ID.
pub fn gettid() -> u32 {
    // SAFETY: the call touches no memory.
    (unsafe { sys!(nr::GETTID) }) as u32
}

/// The calling process's ID.
pub fn getpid() -> u32 {
    // SAFETY: the call touches no memory.
    (unsafe { sys!(nr::GETPID) }) as u32
}

/// Closes a descriptor of the runtime's own.
pub fn close(fd: i32) {
    crate::process::disown(fd);
    // SAFETY: the runtime closes only what it opened.
    unsafe { sys!(nr::CLOSE, fd) };
}
