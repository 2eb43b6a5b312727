//! Raw system calls. Instructions in the runtime's image pass the seccomp filter, so these never trap.

use core::arch::asm;

/// Makes a system call and returns RAX: a result, or a negative errno.
///
/// # Safety
/// As the call itself: pointers must be valid for what the kernel does with them, and the call must not take
/// away memory or state that Rust code relies on.
pub unsafe fn syscall(number: u64, args: [u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the caller vouches for the call; RCX and R11 are the only registers that it clobbers.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as i64 => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// System call numbers of x86-64 that the runtime makes or knows.
#[allow(missing_docs, dead_code, reason = "the names are the documentation; the list is kept whole")]
pub mod nr {
    pub const WRITE: u64 = 1;
    pub const EXIT_GROUP: u64 = 231;
}
