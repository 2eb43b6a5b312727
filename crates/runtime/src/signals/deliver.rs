//! Handing signals to the program: the frame as the kernel would build it, and its undoing.

use core::sync::atomic::Ordering;

use super::frame::{
    FP_MAGIC1, FXSAVE_SIZE, FpState, OWNED, RtSigframe, SS_AUTODISARM, SS_DISABLE, SigInfo, Sigaction,
    StackT, Ucontext, bit, signum,
};
use super::pending;
use super::tables::{self, DEFAULT, IGNORE, sa};
use crate::arch::syscall::{errno, nr};
use crate::arch::{getpid, gettid};
use crate::sys;
use crate::syscalls::{debug, stubs};
use crate::thread::Thread;
use crate::usercopy;
use crate::{enclaves, enclu};

const RED_ZONE: u64 = 128;
const USER_CS: u16 = 0x33;
const USER_SS: u16 = 0x2b;
/// Direction, resume and trap flags: cleared when a handler starts.
const CLEARED_FLAGS: u64 = 0x400 | 0x1_0000 | 0x100;

/// Hands a synchronous exception to the program: its handler, or its end, as Linux would.
pub fn deliver_sync(thread: &mut Thread, uc: &mut Ucontext, sig: i32, info: &SigInfo) {
    if debug::wants_tracer(thread) && debug::be_traced_now(thread) {
        debug::raise_again(uc, sig);
        return;
    }
    let action = thread.process().actions.lock().get(sig);
    if thread.mask & bit(sig) != 0 || action.handler <= IGNORE {
        die(uc, sig, info);
    } else {
        enter_handler(thread, uc, sig, info, &action, None);
    }
}

/// Hands a signal that somebody sent to the program. `temporary` is the mask in force while the interrupted
/// system call waited, if it had one of its own.
pub fn deliver_async(
    thread: &mut Thread,
    uc: &mut Ucontext,
    sig: i32,
    info: &SigInfo,
    temporary: Option<u64>,
) {
    let mut temporary = temporary.or_else(|| stubs::temporary_mask(uc));
    if temporary.is_none() && OWNED & bit(sig) & thread.mask != 0 {
        temporary = stubs::interrupt_wait(uc, sig);
    }
    if OWNED & bit(sig) != 0 && temporary.unwrap_or(thread.mask) & bit(sig) != 0 {
        pending::keep(thread, uc, sig, info);
        return;
    }
    let action = thread.process().actions.lock().get(sig);
    match action.handler {
        IGNORE => {}
        DEFAULT => {
            // One of ours, or the handler was taken away while the signal was on its way.
            let harmless =
                bit(signum::SIGCHLD) | bit(signum::SIGCONT) | bit(signum::SIGURG) | bit(signum::SIGWINCH);
            if harmless & bit(sig) == 0 {
                die_again(sig, info);
            }
        }
        _ => {
            enclu::interrupted(thread, uc);
            enclu::leave_for_signal(thread, uc);
            enter_handler(thread, uc, sig, info, &action, temporary);
        }
    }
}

/// What every outermost handler does last: held signals that may go now, and kicks.
pub fn after_handler(thread: &mut Thread, uc: &mut Ucontext) {
    loop {
        deliver_held(thread, uc);
        // What comes from here on is not held any more; what came before is seen by one more look.
        pending::close(thread, uc);
        let wanted = !thread.mask | thread.waits.load(Ordering::Relaxed);
        if thread.held.load(Ordering::Relaxed) & wanted == 0 {
            return;
        }
        pending::reopen(uc);
    }
}

fn deliver_held(thread: &mut Thread, uc: &mut Ucontext) {
    while let Some((sig, info)) = pending::take(thread, !thread.mask | thread.waits.load(Ordering::Relaxed)) {
        // Once it has been told to the call that waits, or to a handler, nobody waits any more.
        thread.waits.store(0, Ordering::Relaxed);
        deliver_async(thread, uc, sig, &info, None);
    }
    if thread.kicked.swap(0, Ordering::Relaxed) != 0 {
        enclu::on_kick(thread, uc);
    }
}

/// Sets the program's mask; takes effect when the handler returns.
pub fn set_mask(thread: &mut Thread, uc: &mut Ucontext, mask: u64) {
    thread.mask = mask & !tables::UNBLOCKABLE;
    uc.sigmask = tables::filtered(mask);
}

/// Ends the process by an exception that nobody handles. Where the instruction would raise it again, it is left
/// to: the core then shows the program's registers.
pub fn die(uc: &Ucontext, sig: i32, info: &SigInfo) {
    // At an enclave's address the kernel's own signal may be another one.
    let of_enclave = enclaves::mapping_at(uc.mcontext.cr2).is_some();
    let repeats = !of_enclave
        && matches!(sig, signum::SIGSEGV | signum::SIGBUS | signum::SIGILL | signum::SIGFPE)
        && info.by_kernel()
        && usercopy::get::<[u8; 3]>(uc.mcontext.rip) != Some(enclu::ENCLU);
    if repeats {
        tables::set_kernel_default(sig);
    } else {
        die_again(sig, info);
    }
}

/// Raises `sig` once more, with its default action.
fn die_again(sig: i32, info: &SigInfo) {
    tables::set_kernel_default(sig);
    let unblock = bit(sig);
    // SAFETY: the kernel reads the information and the mask. For most signals this does not return.
    unsafe {
        sys!(nr::RT_TGSIGQUEUEINFO, getpid(), gettid(), sig, &raw const *info);
        if OWNED & bit(sig) == 0 {
            const SIG_UNBLOCK: u64 = 1;
            const SIG_BLOCK: u64 = 0;
            sys!(nr::RT_SIGPROCMASK, SIG_UNBLOCK, &raw const unblock, 0, 8);
            sys!(nr::RT_SIGPROCMASK, SIG_BLOCK, &raw const unblock, 0, 8);
        }
    }
}

/// Rewrites the runtime's frame so that its return enters the program's handler on a frame of its own.
fn enter_handler(
    thread: &mut Thread,
    uc: &mut Ucontext,
    sig: i32,
    info: &SigInfo,
    action: &Sigaction,
    temporary: Option<u64>,
) {
    if action.flags & sa::RESETHAND != 0 {
        thread.process().actions.lock().set(sig, Sigaction::default());
        if OWNED & bit(sig) == 0 {
            tables::set_kernel_default(sig);
        }
    }
    stubs::leave(uc);
    let Some(at) = push_frame(thread, uc, info, action) else {
        let segv = SigInfo { signo: signum::SIGSEGV, code: 128, ..SigInfo::default() };
        die_again(signum::SIGSEGV, &segv);
        return;
    };
    if thread.altstack.flags & SS_AUTODISARM != 0 {
        thread.altstack = StackT { flags: SS_DISABLE, ..StackT::default() };
    }
    let own = if action.flags & sa::NODEFER == 0 { bit(sig) } else { 0 };
    let mask = temporary.unwrap_or(thread.mask) | action.mask | own;
    set_mask(thread, uc, mask);
    let registers = &mut uc.mcontext;
    registers.rdi = sig as u64;
    registers.rsi = at + core::mem::offset_of!(RtSigframe, info) as u64;
    registers.rdx = at + core::mem::offset_of!(RtSigframe, uc) as u64;
    registers.rax = 0;
    registers.rip = action.handler;
    registers.rsp = at;
    registers.eflags &= !CLEARED_FLAGS;
    registers.cs = USER_CS;
    registers.ss = USER_SS;
    // The initial floating point state, as the kernel starts a handler.
    registers.fpstate = 0;
}

/// Bytes of the saved extended state at `fpstate`, an area that the kernel wrote.
fn fpstate_size(fpstate: u64) -> usize {
    // SAFETY: the kernel's frame of the running handler.
    let area = unsafe { &*(fpstate as *const FpState) };
    if area.magic1 == FP_MAGIC1 { area.extended_size as usize } else { FXSAVE_SIZE }
}

/// Builds the kernel's frame on the program's stack.
fn push_frame(thread: &Thread, uc: &Ucontext, info: &SigInfo, action: &Sigaction) -> Option<u64> {
    if action.flags & sa::RESTORER == 0 {
        return None;
    }
    let mut sp = uc.mcontext.rsp.wrapping_sub(RED_ZONE);
    if action.flags & sa::ONSTACK != 0 && tables::stack_state(&thread.altstack, sp) == 0 {
        sp = thread.altstack.sp + thread.altstack.size;
    }
    let mut fpstate = 0;
    if uc.mcontext.fpstate != 0 {
        let size = fpstate_size(uc.mcontext.fpstate);
        sp = sp.wrapping_sub(size as u64) & !63;
        fpstate = sp;
        // SAFETY: the source is the kernel's frame, as long as it says; the destination is the program's stack.
        if unsafe { usercopy::copy_out(sp, uc.mcontext.fpstate as *const u8, size) } != size {
            return None;
        }
    }
    let at = (sp.wrapping_sub(size_of::<RtSigframe>() as u64) & !15).wrapping_sub(8);
    let frame = RtSigframe {
        pretcode: action.restorer,
        uc: Ucontext {
            flags: uc.flags,
            link: 0,
            stack: thread.altstack,
            mcontext: super::frame::Sigcontext { fpstate, oldmask: thread.mask, ..uc.mcontext },
            sigmask: thread.mask,
        },
        info: *info,
    };
    usercopy::put(at, &frame).then_some(at)
}

/// Carries out the program's `rt_sigreturn`: the runtime's frame becomes what the program's says.
pub fn sigreturn(thread: &mut Thread, uc: &mut Ucontext) {
    let Some(new) = usercopy::get::<Ucontext>(uc.mcontext.rsp) else {
        let segv = SigInfo { signo: signum::SIGSEGV, code: 128, ..SigInfo::default() };
        die_again(signum::SIGSEGV, &segv);
        return;
    };
    let ours = uc.mcontext.fpstate;
    let fpstate =
        if new.mcontext.fpstate == 0 || ours == 0 { 0 } else { load_fpstate(ours, new.mcontext.fpstate) };
    uc.mcontext = super::frame::Sigcontext { fpstate, ..new.mcontext };
    const UC_KNOWN: u64 = 7;
    uc.flags = new.flags & UC_KNOWN;
    set_mask(thread, uc, new.sigmask);
    // The kernel ignores a stack that does not do, too.
    let _ = tables::set_stack(thread, &new.stack, new.mcontext.rsp);
}

/// Copies the program's extended state over the runtime's frame's; returns where it is.
fn load_fpstate(ours: u64, theirs: u64) -> u64 {
    let room = fpstate_size(ours);
    // SAFETY: the area is at least as large as the legacy part; what is not copied keeps the values of the trap.
    unsafe { usercopy::copy_in(ours as *mut u8, theirs, FXSAVE_SIZE) };
    // SAFETY: the same area.
    let area = unsafe { &mut *(ours as *mut FpState) };
    let size = area.extended_size as usize;
    if area.magic1 == FP_MAGIC1 && (FXSAVE_SIZE..=room).contains(&size) {
        // SAFETY: `size` is within the area.
        unsafe {
            usercopy::copy_in(
                (ours as *mut u8).add(FXSAVE_SIZE),
                theirs + FXSAVE_SIZE as u64,
                size - FXSAVE_SIZE,
            )
        };
    } else {
        area.magic1 = 0;
    }
    ours
}

/// `rt_sigaction`.
pub fn sigaction(thread: &mut Thread, sig: i32, new: u64, old: u64, size: u64) -> i64 {
    if size != 8 {
        return -errno::EINVAL;
    }
    let wanted = if new == 0 {
        None
    } else {
        match usercopy::get::<Sigaction>(new) {
            None => return -errno::EFAULT,
            wanted => wanted,
        }
    };
    if !(1..=64).contains(&sig) || (wanted.is_some() && tables::UNBLOCKABLE & bit(sig) != 0) {
        return -errno::EINVAL;
    }
    let process = thread.process();
    let mut actions = process.actions.lock();
    let before = actions.get(sig);
    if let Some(mut wanted) = wanted {
        wanted.mask &= !tables::UNBLOCKABLE;
        let result = tables::set_kernel(sig, &wanted);
        if result < 0 {
            return result;
        }
        actions.set(sig, wanted);
        if wanted.handler == IGNORE {
            // What waits is forgotten, as the kernel forgets it.
            thread.held.fetch_and(!bit(sig), Ordering::Relaxed);
            thread.posted.forget(bit(sig));
            process.pending.forget(bit(sig));
        }
    }
    drop(actions);
    if old != 0 && !usercopy::put(old, &before) {
        return -errno::EFAULT;
    }
    0
}
