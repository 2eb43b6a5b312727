//! Trapped system calls.
//!
//! A trap arrives as `SIGSYS`, with the call's number and arguments in the frame. What is about SGX or signals is
//! answered here; the rest is made by the runtime with the same arguments, in the handler if it cannot block, in
//! the program's context otherwise ([`stubs`]). Whatever a function here returns goes into RAX.

pub mod debug;
pub mod exec;
pub mod masks;
pub mod memory;
pub mod sandbox;
pub mod spawn;
pub mod stubs;
pub mod tracer;

use crate::arch::syscall::{errno, nr, on_behalf};
use crate::process::{self, BOOT};
use crate::signals::frame::Ucontext;
use crate::signals::{deliver, post};
use crate::thread::Thread;
use crate::{devices, listing, procfs, source};

/// `arch_prctl`: whether CPUID is allowed.
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;

/// Carries out the system call that the filter has trapped.
pub fn on_trap(thread: &mut Thread, number: u64, uc: &mut Ucontext) {
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
            let opened = devices::open(number, args).or_else(|| debug::open(number, args));
            opened.unwrap_or_else(|| masks::plain(uc, number, args))
        }
        nr::CLOSE | nr::DUP | nr::FCNTL | nr::FSTAT | nr::NEWFSTATAT | nr::STATX
            if process::is_own(args[0] as i32) =>
        {
            -errno::EBADF
        }
        nr::DUP2 | nr::DUP3 if process::is_own(args[1] as i32) => -errno::EBADF,
        nr::STAT | nr::LSTAT | nr::NEWFSTATAT | nr::STATX => {
            devices::stat(number, args).unwrap_or_else(|| forward(number, args))
        }
        nr::ACCESS | nr::FACCESSAT | nr::FACCESSAT2 => {
            devices::access(number, args).unwrap_or_else(|| forward(number, args))
        }
        nr::GETDENTS64 => listing::getdents(args),
        nr::IOCTL => devices::ioctl(thread, args).unwrap_or_else(|| masks::plain(uc, number, args)),

        nr::MMAP => changed(memory::mmap(thread, args)),
        nr::MPROTECT | nr::PKEY_MPROTECT => memory::mprotect(thread, number, args),
        nr::MUNMAP => changed(memory::munmap(thread, args)),
        nr::MREMAP => changed(memory::mremap(thread, args)),
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
        nr::PTRACE => debug::ptrace(thread, args),
        nr::PROCESS_VM_READV | nr::PROCESS_VM_WRITEV => debug::process_vm(thread, number, args),
        nr::READ | nr::READV | nr::PREAD64 | nr::PREADV | nr::PREADV2 => {
            debug::transfer(thread, number, args, false).unwrap_or_else(|| masks::plain(uc, number, args))
        }
        nr::WRITE | nr::WRITEV | nr::PWRITE64 | nr::PWRITEV | nr::PWRITEV2 => {
            debug::transfer(thread, number, args, true).unwrap_or_else(|| masks::plain(uc, number, args))
        }
        nr::KILL | nr::TKILL | nr::TGKILL | nr::RT_SIGQUEUEINFO | nr::RT_TGSIGQUEUEINFO => {
            // A tracer sees what the kernel delivers.
            let sent = if procfs::is_traced() { None } else { post::send(thread, number, args) };
            sent.unwrap_or_else(|| forward(number, args))
        }
        nr::WAIT4 | nr::WAITID if stubs::forward_wait(uc, number) => number as i64,
        nr::ARCH_PRCTL => match args[0] {
            ARCH_GET_CPUID => 1,
            ARCH_SET_CPUID => -errno::ENODEV,
            _ => forward(number, args),
        },
        _ => masks::plain(uc, number, args),
    }
}

/// Passes on the result of a call that may have changed what is mapped where.
fn changed(result: i64) -> i64 {
    source::forget();
    result
}

/// Makes the program's call here.
fn forward(number: u64, args: [u64; 6]) -> i64 {
    // SAFETY: the program's own call, with its own arguments.
    unsafe { on_behalf(number, args) }
}

/// `close_range`, around the runtime's descriptors.
///
/// With `CLOSE_RANGE_UNSHARE` the first part makes the copy of the table, and the rest works on it.
fn close_range(args: [u64; 6]) -> i64 {
    let (first, last, flags) = (args[0] as u32, args[1] as u32, args[2]);
    let boot = BOOT.get();
    let base = boot.fd_base as u32;
    let end = base + boot.fd_count as u32;
    if first > last || last < base || first >= end {
        return forward(nr::CLOSE_RANGE, args);
    }
    let mut from = first;
    for fd in base.max(first)..end.min(last.saturating_add(1)) {
        if !process::is_own(fd as i32) {
            continue;
        }
        if from < fd {
            let result = forward(nr::CLOSE_RANGE, [u64::from(from), u64::from(fd - 1), flags, 0, 0, 0]);
            if result < 0 {
                return result;
            }
        }
        from = fd + 1;
    }
    if from > last {
        return 0;
    }
    forward(nr::CLOSE_RANGE, [u64::from(from), u64::from(last), flags, 0, 0, 0])
}
