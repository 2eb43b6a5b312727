//! Enclave mode, carried out in the thread: entry, exit, asynchronous exit, and the faults in between.
//!
//! The processor has no SGX, so ENCLU raises `#UD` and arrives here ([`on_sigill`]); the vDSO function that
//! programs see goes around that for EENTER ([`vdso`]). What a processor keeps in its own registers while a
//! thread is inside is in [`Mode`]. The machine owns the EPC; it shows TCSs and page states in the enclave's
//! window, so that entering and leaving need no message unless something is not in the EPC.
//!
//! What always holds:
//! - A handler of the program, and a signal frame that it can see, never have an enclave's registers: before
//!   anything is handed to the program, the thread has left ([`leave_for_signal`], [`exception::raise`]).
//! - `slot.inside` names the enclave from before the first instruction inside until after the last store of
//!   the exit.
//! - STATE in a TCS's word is set by the one thread that executes on it, and cleared by it alone.
//! - FS and GS are the enclave's exactly while the phase is inside (or in its last steps of entering).
//! - Faults of EENTER and ERESUME themselves change nothing and are reported at the ENCLU.
//!
//! Not as on hardware: code outside ELRANGE that an enclave jumps to without EEXIT runs on in enclave mode
//! until something traps; where CPUID cannot be made to trap it works inside; an outside access to enclave
//! memory gets its contents. Interrupts that nobody needs to handle, as those of the host's clock, and page faults
//! on memory outside, are no exits: an enclave with AEX-Notify is told of signals, of kicks, and of faults on its
//! own pages.

mod aex;
mod dispatch;
mod edeccssa;
mod entry;
mod exception;
mod fault;
mod frame;
mod leaves;
mod mode;
mod segments;
mod vdso;

pub use dispatch::{SYS_USER_DISPATCH, allow_calls, block_calls};
pub use exception::Verdict;
pub use fault::on_fault;
pub use leaves::ENCLU;
pub use mode::Mode;

use crate::signals::deliver_sync;
use crate::signals::frame::{SigInfo, Ucontext};
use crate::thread::Thread;

/// Notes what the processor can do. Called once, after [`crate::cpuid::init`], before the program runs.
pub fn init() {
    segments::init();
    edeccssa::init();
}

/// Whether the thread is in enclave mode.
pub fn is_inside(thread: &Thread) -> bool {
    thread.enclave.is_inside()
}

/// Takes an invalid opcode, if it is ENCLU, and deals with it, delivery of what it raises included.
pub fn on_sigill(thread: &mut Thread, uc: &mut Ucontext) -> bool {
    interrupted(thread, uc);
    match leaves::opcode(uc) {
        leaves::Opcode::Enclu => {}
        leaves::Opcode::Gone => return true,
        leaves::Opcode::Other => return false,
    }
    let mut info = SigInfo::default();
    if leaves::run(thread, uc, &mut info) == Verdict::Deliver {
        deliver_sync(thread, uc, info.signo, &info);
    }
    true
}

/// Makes an entry that was interrupted half way, in the vDSO function, either undone or complete. After this
/// the context is the program's or the enclave's, never the runtime's own.
pub fn interrupted(thread: &mut Thread, uc: &mut Ucontext) {
    vdso::interrupted(thread, uc);
}

/// Leaves the enclave, if the thread is inside, for a signal that somebody sent.
pub fn leave_for_signal(thread: &mut Thread, uc: &mut Ucontext) {
    interrupted(thread, uc);
    if is_inside(thread) {
        aex::exit(thread, uc, None);
    }
}

/// Takes a kick: the machine wants every thread to leave the enclave once. Leaving and coming back is a matter
/// of bookkeeping, unless the TCS has been taken away: then the thread leaves, and its ERESUME brings the TCS
/// back.
pub fn on_kick(thread: &mut Thread, uc: &mut Ucontext) {
    if is_inside(thread) && thread.enclave.live_tcs().is_none() {
        leave_for_signal(thread, uc);
    }
    aex::come_back(thread, uc, None);
}

/// Makes the record of a fork's child that of a thread outside. A fork is a system call, so it comes from
/// outside.
pub fn fork_child(thread: &mut Thread) {
    thread.enclave = Mode::default();
}
