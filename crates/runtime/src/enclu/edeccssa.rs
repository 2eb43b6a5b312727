//! EDECCSSA: back to the SSA frame below, without leaving the enclave.
//!
//! A handler that runs on a frame of its own, because of a notification (AEX-Notify) or of a second EENTER, ends with
//! it and goes on as the code that was interrupted: the next exit uses that code's frame again. The TCS is the
//! thread's own while it is inside, so this needs the machine only for a frame that is not mapped. Source: SDM volume
//! 3D, "EDECCSSA".

use core::sync::atomic::{AtomicBool, Ordering};

use super::entry::{self, ENCLU_LEN};
use super::exception::{Exception, Verdict, raise};
use super::{aex, fault};
use crate::cpuid;
use crate::signals::frame::{SigInfo, Ucontext};
use crate::thread::Thread;

const SGX_LEAF: u32 = 0x12;
/// CPUID.(12H,0).EAX: EDECCSSA.
const ENUMERATED: u32 = 1 << 11;
/// How often the frame is faulted in before signals may be taken.
const ROUNDS: u32 = 64;

static EXISTS: AtomicBool = AtomicBool::new(false);

/// Notes whether the processor has the leaf. Called once, before the program runs.
pub(super) fn init() {
    EXISTS.store(cpuid::emulate(SGX_LEAF, 0).eax & ENUMERATED != 0, Ordering::Relaxed);
}

/// Carries out EDECCSSA at the interrupted ENCLU. Preconditions: the thread is inside.
pub(super) fn run(thread: &mut Thread, uc: &mut Ucontext, info: &mut SigInfo) -> Verdict {
    let cssa = thread.enclave.cssa();
    let (true, Some(enclave)) = (EXISTS.load(Ordering::Relaxed) && cssa != 0, thread.enclave.enclave) else {
        return raise(thread, uc, info, &Exception::GP);
    };
    for _ in 0..ROUNDS {
        let Err(obstacle) = entry::check_frame(&thread.enclave, enclave, cssa - 1) else {
            entry::decrement_cssa(&mut thread.enclave);
            uc.mcontext.rip += ENCLU_LEN;
            return Verdict::Resume;
        };
        let missing = obstacle.page_fault();
        match entry::overcome(thread, obstacle) {
            fault::Outcome::Raise(exception) => return raise(thread, uc, info, &exception),
            fault::Outcome::Repaired if !aex::wants_notice(thread) => {}
            fault::Outcome::Repaired | fault::Outcome::Retry => {
                aex::come_back(thread, uc, missing.as_ref());
                return Verdict::Resume;
            }
        }
    }
    // The leaf runs again, after whatever signals wait.
    Verdict::Resume
}
