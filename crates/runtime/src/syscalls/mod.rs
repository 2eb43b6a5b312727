//! Trapped system calls.
//!
//! A trap arrives as `SIGSYS`, with the call's number and arguments in the frame. What is about SGX or signals is
//! answered here; the rest is made by the runtime with the same arguments, in the handler if it cannot block, in
//! the program's context otherwise ([`stubs`]). Whatever a function here returns goes into RAX.

pub mod exec;
pub mod masks;
pub mod memory;
pub mod sandbox;
pub mod spawn;
pub mod stubs;

use crate::arch::syscall::{errno, nr, syscall};
use crate::devices;
use crate::process::{self, BOOT};
use crate::signals::deliver;
use crate::signals::frame::{SigInfo, Ucontext};
use crate::sys;
use crate::thread::Thread;

/// `arch_prctl`: whether CPUID is allowed.
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;

/// Carries out the system call that the filter has trapped.
pub fn on_trap(thread: &mut Thread, info: &SigInfo, uc: &mut Ucontext) {
    let number = info.syscall();
    let registers = &uc.mcontext;
    let args = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
    if number == nr::RT_SIGRETURN {
        deliver::sigreturn(thread, uc);
        return;
    }
    let result = answer(thread, uc, number, args);
    uc.mcontext.rax = result as u64;
}

fn answer(thread: &mut Thread, uc: &mut Ucontext, number: u64, args: [u64; 6]) -> i64 {
    match number {
        nr::OPEN | nr::OPENAT | nr::OPENAT2 | nr::CREAT => {
            devices::open(number, args).unwrap_or_else(|| masks::plain(uc, number, args))
        }
        nr::STAT | nr::LSTAT | nr::NEWFSTATAT | nr::STATX => {
            devices::stat(number, args).unwrap_or_else(|| forward(number, args))
        }
        nr::ACCESS | nr::FACCESSAT | nr::FACCESSAT2 => {
            devices::access(number, args).unwrap_or_else(|| forward(number, args))
        }
        nr::GETDENTS64 => devices::getdents(args),
        nr::IOCTL => devices::ioctl(thread, args).unwrap_or_else(|| masks::plain(uc, number, args)),

        nr::MMAP => memory::mmap(thread, args),
        nr::MPROTECT | nr::PKEY_MPROTECT => memory::mprotect(thread, number, args),
        nr::MUNMAP => memory::munmap(thread, args),
        nr::MREMAP => memory::mremap(thread, args),
        nr::MADVISE => memory::madvise(args),

        nr::RT_SIGACTION => deliver::sigaction(thread, args[0] as i32, args[1], args[2], args[3]),
        nr::RT_SIGPROCMASK => masks::sigprocmask(thread, uc, args),
        nr::RT_SIGPENDING => masks::sigpending(thread, args),
        nr::SIGALTSTACK => masks::sigaltstack(thread, uc, args),
        nr::RT_SIGSUSPEND | nr::PPOLL | nr::PSELECT6 | nr::EPOLL_PWAIT | nr::EPOLL_PWAIT2 => {
            masks::wait(thread, uc, number, args)
        }
        nr::RT_SIGTIMEDWAIT => masks::timed_wait(thread, uc, args),
        nr::SIGNALFD | nr::SIGNALFD4 => masks::signalfd(number, args),

        nr::CLONE | nr::CLONE3 | nr::FORK | nr::VFORK => spawn::spawn(thread, uc, number, args),
        nr::EXECVE | nr::EXECVEAT => exec::execve(uc, number, args),
        nr::EXIT => spawn::exit(thread, args[0]),
        nr::EXIT_GROUP => {
            exec::announce_exit();
            forward(number, args)
        }

        nr::CLOSE_RANGE => close_range(args),
        nr::SECCOMP => sandbox::seccomp(args),
        nr::PRCTL => sandbox::prctl(args),
        nr::ARCH_PRCTL => match args[0] {
            ARCH_GET_CPUID => 1,
            ARCH_SET_CPUID => -errno::ENODEV,
            _ => forward(number, args),
        },
        _ => forward(number, args),
    }
}

/// Makes the program's call here.
fn forward(number: u64, args: [u64; 6]) -> i64 {
    // SAFETY: the program's own call, with its own arguments.
    unsafe { syscall(number, args) }
}

/// `close_range`, around the runtime's descriptors.
fn close_range(args: [u64; 6]) -> i64 {
    let (first, last, flags) = (args[0] as u32, args[1] as u32, args[2]);
    let boot = BOOT.get();
    let base = boot.fd_base as u32;
    let end = base + boot.fd_count as u32;
    if first > last || last < base || first >= end {
        return forward(nr::CLOSE_RANGE, args);
    }
    let mut result = 0;
    if first < base {
        // SAFETY: the program's descriptors below the runtime's.
        result = unsafe { sys!(nr::CLOSE_RANGE, first, base - 1, flags) };
    }
    if last >= end && result == 0 {
        // SAFETY: the program's descriptors above the runtime's.
        result = unsafe { sys!(nr::CLOSE_RANGE, end, last, flags) };
    }
    debug_assert!(process::is_reserved(i64::from(base)));
    result
}
