//! System calls that take a signal mask: the kernel never gets the runtime's signals, the program never misses
//! them.

use super::stubs::{self, MaskIn};
use crate::arch::syscall::{errno, nr};
use crate::signals;
use crate::signals::deliver;
use crate::signals::frame::{StackT, Ucontext};
use crate::signals::tables::{self, filtered};
use crate::sys;
use crate::thread::Thread;
use crate::usercopy;

/// `rt_sigprocmask`.
pub fn sigprocmask(thread: &mut Thread, uc: &mut Ucontext, args: [u64; 6]) -> i64 {
    let [how, set, old, size, ..] = args;
    if size != 8 {
        return -errno::EINVAL;
    }
    let before = thread.mask;
    if set != 0 {
        let Some(set) = usercopy::get::<u64>(set) else { return -errno::EFAULT };
        let mask = match how as i32 {
            0 => before | set,
            1 => before & !set,
            2 => set,
            _ => return -errno::EINVAL,
        };
        deliver::set_mask(thread, uc, mask);
    }
    if old != 0 && !usercopy::put(old, &before) {
        return -errno::EFAULT;
    }
    0
}

/// `rt_sigpending`.
pub fn sigpending(thread: &Thread, args: [u64; 6]) -> i64 {
    let [set, size, ..] = args;
    if size > 8 {
        return -errno::EINVAL;
    }
    let mut pending = 0u64;
    // SAFETY: the kernel writes one word.
    unsafe { sys!(nr::RT_SIGPENDING, &raw mut pending, 8) };
    let pending = pending & thread.mask | signals::pending::of(thread);
    // SAFETY: one word, of which the program may ask for less.
    let done = unsafe { usercopy::copy_out(set, (&raw const pending).cast(), size as usize) };
    if done == size as usize { 0 } else { -errno::EFAULT }
}

/// `sigaltstack`.
pub fn sigaltstack(thread: &mut Thread, uc: &Ucontext, args: [u64; 6]) -> i64 {
    let [new, old, ..] = args;
    let sp = uc.mcontext.rsp;
    let before = thread.altstack;
    if new != 0 {
        let Some(new) = usercopy::get::<StackT>(new) else { return -errno::EFAULT };
        if let Err(error) = tables::set_stack(thread, &new, sp) {
            return -error;
        }
    }
    if old != 0 {
        let state = tables::stack_state(&before, sp) | before.flags & crate::signals::frame::SS_AUTODISARM;
        if !usercopy::put(old, &StackT { flags: state, pad: 0, ..before }) {
            return -errno::EFAULT;
        }
    }
    0
}

/// `rt_sigsuspend`, `ppoll`, `pselect6`, `epoll_pwait`, `epoll_pwait2`: wait with a mask of their own. Returns
/// what RAX becomes.
pub fn wait(thread: &mut Thread, uc: &mut Ucontext, number: u64, args: [u64; 6]) -> i64 {
    let (place, address, size) = match number {
        nr::RT_SIGSUSPEND => (MaskIn::Rdi, args[0], args[1]),
        nr::PPOLL => (MaskIn::R10, args[3], args[4]),
        nr::PSELECT6 => match usercopy::get::<[u64; 2]>(args[5]) {
            Some([address, size]) => (MaskIn::R9Pair, address, size),
            None => return -errno::EFAULT,
        },
        _ => (MaskIn::R8, args[4], args[5]),
    };
    if size != 8 || address == 0 {
        // No mask, or one that the kernel refuses.
        return plain(uc, number, args);
    }
    let Some(asked) = usercopy::get::<u64>(address) else { return -errno::EFAULT };
    let asked = asked & !tables::UNBLOCKABLE;
    signals::pending::announce(thread, !asked);
    if let Some((sig, info)) = signals::pending::take(thread, !asked) {
        // A signal that the runtime holds goes through this mask: the wait is over at once.
        uc.mcontext.rax = -errno::EINTR as u64;
        deliver::deliver_async(thread, uc, sig, &info, Some(asked));
        return uc.mcontext.rax as i64;
    }
    stubs::forward_mask(uc, number, place, asked, filtered(asked), true)
}

/// `rt_sigtimedwait`.
pub fn timed_wait(thread: &mut Thread, uc: &mut Ucontext, args: [u64; 6]) -> i64 {
    let [set, info_at, _, size, ..] = args;
    if size != 8 {
        return -errno::EINVAL;
    }
    let Some(set) = usercopy::get::<u64>(set) else { return -errno::EFAULT };
    signals::pending::announce(thread, set);
    if let Some((sig, info)) = signals::pending::take(thread, set) {
        if info_at != 0 && !usercopy::put(info_at, &info) {
            return -errno::EFAULT;
        }
        return i64::from(sig);
    }
    stubs::forward_mask(uc, nr::RT_SIGTIMEDWAIT, MaskIn::Rdi, set, filtered(set), false)
}

/// `signalfd`, `signalfd4`.
pub fn signalfd(number: u64, args: [u64; 6]) -> i64 {
    if args[2] != 8 {
        return -errno::EINVAL;
    }
    let Some(set) = usercopy::get::<u64>(args[1]) else { return -errno::EFAULT };
    let shown = filtered(set);
    // SAFETY: the kernel reads the mask on this stack.
    unsafe { sys!(number, args[0], &raw const shown, 8, args[3]) }
}

/// Makes a trapped call as it is once the handler has returned; here, if the stack does not allow that.
pub fn plain(uc: &mut Ucontext, number: u64, args: [u64; 6]) -> i64 {
    if stubs::forward(uc, number) {
        return number as i64;
    }
    // SAFETY: the program's own call.
    unsafe { crate::arch::syscall::on_behalf(number, args) }
}
