//! Signals: the runtime's handlers, and the program's handlers behind them.
//!
//! Every handler that the kernel knows is [`usgx_signal`]; the program's are in [`crate::process::Actions`]. A
//! signal for the program is handed on by building the kernel's frame anew on the stack that the program asked
//! for, and rewriting the runtime's own frame so that its `rt_sigreturn` enters the program's handler
//! ([`deliver`]). So while the program runs, no frame of the runtime is live on the alternate stack.
//!
//! In a handler of the runtime all signals are blocked but SIGSEGV, SIGBUS and SIGTRAP. Two things can happen on top
//! of a handler: a guarded copy faults (fixed up at once), or somebody sends one of the three with `kill` (held
//! until the outer handler is done).

pub mod deliver;
pub mod frame;
pub mod pending;
pub mod post;
pub mod tables;

use core::arch::naked_asm;
use core::sync::atomic::Ordering;

use usgx_wire::place::{IMAGE_SIZE, RUNTIME_BASE};

use crate::arch::syscall::nr;
use crate::enclu::Verdict;
use crate::thread::Thread;
use crate::{cpuid, enclu, filter, link, syscalls, usercopy};
use frame::{SigInfo, Ucontext, signum};

pub use deliver::deliver_sync;

/// `si_code` of a signal that a socket sends.
pub const SI_SIGIO: i32 = -5;

/// Where the kernel's frames return to.
#[unsafe(naked)]
pub unsafe extern "C" fn usgx_restorer() {
    naked_asm!("mov eax, {}", "syscall", "ud2", const nr::RT_SIGRETURN)
}

/// What the kernel calls: the arguments are already those of [`on_signal`]. The flags that the interrupted code
/// may have left are the kernel's to clear, but for alignment checks, which compiled code does not expect. Flags are
/// loaded only where those are on: POPFQ under a debugger's single step would make its TF the program's.
#[unsafe(naked)]
pub unsafe extern "C" fn usgx_signal() {
    naked_asm!(
        "pushfq",
        "test dword ptr [rsp], 0x40000",
        "jnz 2f",
        "lea rsp, [rsp + 8]",
        "jmp {handler}",
        "2:",
        "and dword ptr [rsp], ~0x40500",
        "popfq",
        "jmp {handler}",
        handler = sym on_signal,
    )
}

/// Handles one signal. `info` and `uc` are in the frame that the kernel has just pushed.
extern "C" fn on_signal(sig: i32, info: *mut SigInfo, uc: *mut Ucontext) {
    // SAFETY: the kernel's frame is this handler's alone.
    let (info, uc) = unsafe { (&mut *info, &mut *uc) };
    if (sig == signum::SIGSEGV || sig == signum::SIGBUS) && info.by_kernel() && usercopy::fixup(uc) {
        return;
    }
    // SAFETY: handlers run on the runtime's stack.
    let thread = unsafe { Thread::current_from_sp() };
    if thread.owns_stack(uc.mcontext.rsp) && in_image(uc.mcontext.rip) {
        on_nested(thread, sig, info, uc);
        return;
    }
    // Whatever it waited in has been interrupted.
    thread.waits.store(0, Ordering::Relaxed);
    match sig {
        signum::SIGSYS if filter::is_trap(info) => {
            syscalls::on_trap(thread, info.syscall(), uc);
        }
        signum::SIGSYS
            if info.code == enclu::SYS_USER_DISPATCH
                && syscalls::debug::wants_tracer(thread)
                && !enclu::is_inside(thread) =>
        {
            syscalls::debug::on_call(thread, info, uc);
        }
        signum::SIGSYS if info.code == enclu::SYS_USER_DISPATCH => on_exception(thread, sig, info, uc),
        signum::SIGSYS if !info.by_kernel() && filter::has_trapped(uc) => {
            // One that was pending has swallowed the trap's.
            syscalls::on_trap(thread, uc.mcontext.rax, uc);
            deliver::deliver_async(thread, uc, sig, info, None);
        }
        // One that is pending swallows the next, so each stands for both.
        link::KICK_SIGNAL if info.code == pending::LOOK || info.code == SI_SIGIO && thread.slot >= 0 => {
            if thread.slot >= 0 {
                link::drain_kicks(thread);
                thread.kicked.store(1, Ordering::Relaxed);
            }
            pending::look(thread, uc);
        }
        signum::SIGILL if info.by_kernel() => {
            let taken = enclu::on_sigill(thread, uc)
                || syscalls::exec::on_failed(thread, uc)
                || syscalls::tracer::on_waited(uc)
                || cpuid::on_sigill(uc);
            if !taken {
                on_exception(thread, sig, info, uc);
            }
        }
        signum::SIGSEGV if info.by_kernel() && !enclu::is_inside(thread) && cpuid::on_sigsegv(uc) => {}
        signum::SIGSEGV | signum::SIGBUS | signum::SIGTRAP | signum::SIGFPE if info.by_kernel() => {
            on_exception(thread, sig, info, uc);
        }
        _ => deliver::deliver_async(thread, uc, sig, info, None),
    }
    deliver::after_handler(thread, uc);
}

fn on_exception(thread: &mut Thread, sig: i32, info: &mut SigInfo, uc: &mut Ucontext) {
    match enclu::on_fault(thread, sig, info, uc) {
        Verdict::Resume => {}
        // The enclave's rules may have made another signal of it.
        Verdict::Deliver => deliver_sync(thread, uc, info.signo, info),
    }
}

/// A signal on top of a handler.
fn on_nested(thread: &mut Thread, sig: i32, info: &SigInfo, uc: &mut Ucontext) {
    if info.by_kernel() {
        // A bug of the runtime. Die of it as of any other, with the frame at hand.
        deliver::die(uc, sig, info);
    } else {
        pending::postpone(thread, uc, sig, info);
    }
}

/// Whether `rip` is in the runtime's code.
pub fn in_image(rip: u64) -> bool {
    rip.wrapping_sub(RUNTIME_BASE) < IMAGE_SIZE
}
