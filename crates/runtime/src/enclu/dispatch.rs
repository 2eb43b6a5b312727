//! SYSCALL inside an enclave raises `#UD`.
//!
//! The kernel's *syscall user dispatch* is set up for each thread that enters enclaves: a byte says whether
//! system calls from outside of the runtime's image are let through or raise SIGSYS instead. It blocks exactly
//! while the thread is inside (and while one that is about to be traced has to be watched, see
//! [`crate::syscalls::debug`]). Some library operating systems live from that `#UD`: they run programs in
//! enclaves whose system calls they emulate. Where the kernel has no such dispatch, a system call made inside
//! an enclave is carried out, which hardware would not do.

use core::sync::atomic::Ordering;

use usgx_wire::place;

use super::exception::{Exception, Verdict, raise};
use super::mode::{SELECTOR_ALLOW, SELECTOR_BLOCK};
use crate::arch::syscall::nr;
use crate::signals::frame::{SigInfo, Ucontext};
use crate::sys;
use crate::thread::Thread;

const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
const PR_SYS_DISPATCH_ON: u64 = 1;
/// `si_code` of a SIGSYS that the dispatch raises.
pub const SYS_USER_DISPATCH: i32 = 2;
/// Bytes of SYSCALL, which the kernel has stepped over.
const SYSCALL_LEN: u64 = 2;

/// Sets the dispatch up for this thread, once.
pub(super) fn enable(thread: &mut Thread) {
    let mode = &mut thread.enclave;
    if mode.dispatch {
        return;
    }
    mode.selector.store(SELECTOR_ALLOW, Ordering::Relaxed);
    // SAFETY: the selector lives in the thread's record, which outlives the thread.
    let result = unsafe {
        sys!(
            nr::PRCTL,
            PR_SET_SYSCALL_USER_DISPATCH,
            PR_SYS_DISPATCH_ON,
            place::RUNTIME_BASE,
            place::IMAGE_SIZE,
            mode.selector.as_ptr()
        )
    };
    mode.dispatch = result == 0;
}

/// Has the kernel hand over all system calls of this thread, which is outside; false where it cannot.
pub fn block_calls(thread: &mut Thread) -> bool {
    enable(thread);
    if thread.enclave.dispatch {
        thread.enclave.selector.store(SELECTOR_BLOCK, Ordering::Relaxed);
    }
    thread.enclave.dispatch
}

/// Lets them through again.
pub fn allow_calls(thread: &Thread) {
    thread.enclave.selector.store(SELECTOR_ALLOW, Ordering::Relaxed);
}

/// Takes a system call that was tried inside an enclave.
pub(super) fn on_syscall(thread: &mut Thread, uc: &mut Ucontext, info: &mut SigInfo) -> Verdict {
    // The kernel has put the number back into RAX; to the instruction itself, nothing has happened.
    uc.mcontext.rip = uc.mcontext.rip.wrapping_sub(SYSCALL_LEN);
    if !thread.enclave.is_inside() {
        thread.enclave.selector.store(SELECTOR_ALLOW, Ordering::Relaxed);
        return Verdict::Resume;
    }
    raise(thread, uc, info, &Exception::UD)
}
