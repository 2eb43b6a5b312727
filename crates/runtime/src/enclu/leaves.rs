//! ENCLU itself: which leaf, whether it is legal here, and the leaves of enclave mode.
//!
//! EENTER and ERESUME are [`super::entry`]'s, EDECCSSA is [`super::edeccssa`]'s, EEXIT is done here. The others touch the EPCM or keys: they are
//! messages to the machine's hardware face, which checks what the processor checks; only the protection of
//! this process's mappings is checked here, first, as paging comes before the EPCM. Source:
//! SDM volume 3D, "SGX User Leaf Function Reference".

use usgx_wire::slot::{NR_WORDS, call, enclu_outcome, fault_kind};

use super::entry::{self, ENCLU_LEN, is_canonical};
use super::exception::{Exception, Verdict, pf, raise};
use super::mode::{OUTSIDE, SELECTOR_ALLOW};
use super::{aex, edeccssa, fault};
use crate::enclaves;
use crate::link;
use crate::signals::frame::{SigInfo, Sigcontext, Ucontext};
use crate::thread::Thread;
use crate::usercopy;

/// ENCLU.
pub const ENCLU: [u8; 3] = [0x0f, 0x01, 0xd7];

const EREPORT: u32 = 0;
const EGETKEY: u32 = 1;
const EENTER: u32 = 2;
const ERESUME: u32 = 3;
const EEXIT: u32 = 4;
const EACCEPT: u32 = 5;
const EMODPE: u32 = 6;
const EACCEPTCOPY: u32 = 7;
const EVERIFYREPORT2: u32 = 8;
const EDECCSSA: u32 = 9;

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const ZF: u64 = 1 << 6;
/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC_FLAGS: u64 = 0x8d5;
/// How often a leaf's operands are faulted in before signals may be taken.
const ROUNDS: u32 = 64;

/// What stands at an interrupted instruction.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Opcode {
    /// ENCLU.
    Enclu,
    /// Something else.
    Other,
    /// The page was taken out of the view between the trap and this look: the instruction must run again, and
    /// its fetch brings the page back.
    Gone,
}

/// Looks at the interrupted instruction.
pub(super) fn opcode(uc: &Ucontext) -> Opcode {
    let rip = uc.mcontext.rip;
    let mut bytes = [0_u8; ENCLU.len()];
    // SAFETY: the buffer has room.
    let got = unsafe { usercopy::copy_in(bytes.as_mut_ptr(), rip, bytes.len()) };
    if bytes[..got] != ENCLU[..got] {
        Opcode::Other
    } else if got == ENCLU.len() {
        Opcode::Enclu
    } else if enclaves::find(rip + got as u64).is_some_and(|(_, prot)| prot != 0) {
        Opcode::Gone
    } else {
        Opcode::Other
    }
}

/// Carries out the ENCLU at the interrupted instruction.
pub(super) fn run(thread: &mut Thread, uc: &mut Ucontext, info: &mut SigInfo) -> Verdict {
    let leaf = uc.mcontext.rax as u32;
    if !thread.enclave.is_inside() {
        return match leaf {
            EENTER => entry::enter(thread, uc, info, false),
            ERESUME => entry::enter(thread, uc, info, true),
            _ => raise(thread, uc, info, &Exception::GP),
        };
    }
    if !thread.enclave.in_elrange(uc.mcontext.rip) {
        return raise(thread, uc, info, &Exception::GP);
    }
    match leaf {
        EEXIT if is_canonical(uc.mcontext.rbx) => {
            exit(thread, uc);
            Verdict::Resume
        }
        EDECCSSA => edeccssa::run(thread, uc, info),
        EREPORT | EGETKEY | EACCEPT..=EVERIFYREPORT2 => at_machine(thread, uc, info, leaf),
        _ => raise(thread, uc, info, &Exception::GP),
    }
}

/// EEXIT.
fn exit(thread: &mut Thread, uc: &mut Ucontext) {
    uc.mcontext.rip = uc.mcontext.rbx;
    uc.mcontext.rcx = thread.enclave.aep;
    aex::restore_trap_flag(thread.enclave.opt_in, thread.enclave.trap_flag, uc);
    entry::restore_segments(&thread.enclave);
    aex::release_tcs(thread, thread.enclave.cssa());
    let mode = &thread.enclave;
    mode.unpublish();
    mode.selector.store(SELECTOR_ALLOW, core::sync::atomic::Ordering::Relaxed);
    mode.set_phase(OUTSIDE);
}

/// A leaf that the machine carries out.
fn at_machine(thread: &mut Thread, uc: &mut Ucontext, info: &mut SigInfo, leaf: u32) -> Verdict {
    let mut sgx_faults = 0;
    for _ in 0..ROUNDS {
        if let Some(exception) = paging(thread, &uc.mcontext, leaf) {
            return raise(thread, uc, info, &exception);
        }
        let registers = &uc.mcontext;
        let mut words = [0; NR_WORDS];
        words[..6].copy_from_slice(&[
            call::ENCLU,
            thread.enclave.handle,
            u64::from(leaf),
            registers.rbx,
            registers.rcx,
            registers.rdx,
        ]);
        let answer = link::slot_call(thread, words);
        let exception = match answer[1] {
            enclu_outcome::DONE => {
                if answer[2] == 0 && matches!(leaf, EACCEPT | EACCEPTCOPY) {
                    fault::accepted(thread, uc.mcontext.rcx);
                }
                complete(thread, uc, Some(answer[2]));
                return Verdict::Resume;
            }
            enclu_outcome::DONE_NO_CODE => {
                complete(thread, uc, None);
                return Verdict::Resume;
            }
            enclu_outcome::NOT_PRESENT => match repair(thread, answer[4], answer[3] as u32) {
                fault::Outcome::Repaired if !aex::wants_notice(thread) => continue,
                fault::Outcome::Repaired | fault::Outcome::Retry => {
                    aex::come_back(thread, uc, Some(&Exception::bus(answer[4], answer[3] as u32)));
                    return Verdict::Resume;
                }
                // The page is there now, and pending, say: the leaf is the one to judge that. But not for ever.
                fault::Outcome::Raise(exception) if exception.error & pf::SGX != 0 && sgx_faults < 2 => {
                    sgx_faults += 1;
                    continue;
                }
                fault::Outcome::Raise(exception) => exception,
            },
            enclu_outcome::EXCEPTION => Exception::from_machine(answer[2], answer[3], answer[4]),
            // The machine is gone.
            _ => Exception::GP,
        };
        return raise(thread, uc, info, &exception);
    }
    // The leaf runs again, after whatever signals wait.
    Verdict::Resume
}

fn complete(thread: &mut Thread, uc: &mut Ucontext, code: Option<u64>) {
    if let Some(code) = code {
        uc.mcontext.rax = code;
        uc.mcontext.eflags = uc.mcontext.eflags & !ARITHMETIC_FLAGS | if code != 0 { ZF } else { 0 };
    }
    uc.mcontext.rip += ENCLU_LEN;
    thread.enclave.refresh();
}

/// The fault of an access that a leaf makes, as the access itself would have it repaired.
fn repair(thread: &mut Thread, address: u64, error: u32) -> fault::Outcome {
    let Some(mapping) = enclaves::mapping_at(address) else {
        return fault::Outcome::Raise(Exception::unmapped(address, error));
    };
    if mapping.placeholder {
        return fault::Outcome::Raise(Exception::bus(address, error));
    }
    fault::ask(thread, mapping.enclave, address, error | pf::U, mapping.prot, fault_kind::ACCESS)
}

/// The page fault that this process's mappings raise for a leaf's operands, if they do. Operands outside of
/// ELRANGE are the leaf's own to refuse.
fn paging(thread: &Thread, registers: &Sigcontext, leaf: u32) -> Option<Exception> {
    let (rbx, rcx, rdx) = (registers.rbx, registers.rcx, registers.rdx);
    let operands = match leaf {
        EREPORT => [Some((rbx, PROT_READ)), Some((rcx, PROT_READ)), Some((rdx, PROT_WRITE))],
        EGETKEY => [Some((rbx, PROT_READ)), Some((rcx, PROT_WRITE)), None],
        EACCEPT | EMODPE => [Some((rbx, PROT_READ)), Some((rcx, PROT_READ)), None],
        EACCEPTCOPY => [Some((rbx, PROT_READ)), Some((rdx, PROT_READ)), Some((rcx, PROT_WRITE))],
        EVERIFYREPORT2 => [Some((rbx, PROT_READ)), None, None],
        _ => [None; 3],
    };
    operands.into_iter().flatten().find_map(|(address, needed)| {
        if !thread.enclave.in_elrange(address) {
            return None;
        }
        let error = if needed == PROT_WRITE { pf::W } else { 0 };
        let Some(mapping) = enclaves::mapping_at(address) else {
            return Some(Exception::unmapped(address, error));
        };
        // On x86 what can be written or executed can be read.
        let allowed = if needed == PROT_READ { mapping.prot != 0 } else { mapping.prot & PROT_WRITE != 0 };
        let word = mapping.enclave.page_word(address);
        (!allowed).then(|| Exception::denied(address, error | fault::present(word)))
    })
}
