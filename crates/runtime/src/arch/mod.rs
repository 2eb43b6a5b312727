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

/// The number of the processor that the calling thread runs on, which it may leave at any time.
pub fn processor() -> u32 {
    /// Linux keeps the number in the limit of this segment, for the vDSO's `getcpu`: every program may read it.
    const CPU_AND_NODE: u64 = 0x7b;
    let mut limit = 0_u64;
    // SAFETY: reads a descriptor's limit, or leaves the register alone; touches neither memory nor the stack.
    unsafe {
        core::arch::asm!("lsl {}, {}", inout(reg) limit, in(reg) CPU_AND_NODE, options(nomem, nostack))
    };
    // The node is above.
    limit as u32 & 0xfff
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
