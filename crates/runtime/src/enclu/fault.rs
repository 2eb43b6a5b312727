//! Faults: which are the machine's to repair, which are the protection's, and which the program gets to see.
//!
//! A page of an enclave that is not in the view raises SIGBUS; the machine is asked and either maps it or says
//! what to deliver. A page that is in the view and is protected raises SIGSEGV: if what the program asked for
//! forbids the access, that is an ordinary page fault; if the EPCM forbids it, one with the SGX bit; and if
//! neither does, the real protection is out of date (EMODPE has widened the EPCM's) and is brought up to date.
//!
//! The real protection of a page is what the program asked for, less what the EPCM does not allow. It is
//! narrowed when a page is mapped ([`settle`]) or reprotected (`syscalls::memory`), and widened when a fault shows that it is too narrow. An access
//! from outside an enclave, where hardware answers all ones, gets the page's contents: usgx keeps no secrets.

use usgx_wire::slot::{NR_WORDS, call, fault_kind, outcome};
use usgx_wire::window::entry;

use super::exception::{Exception, Verdict, pf, raise, vector};
use super::{aex, dispatch, leaves};
use crate::arch::syscall::nr;
use crate::enclaves::{self, CHANGES, Enclave, Mapping};
use crate::signals::frame::{SigInfo, Ucontext, signum};
use crate::thread::Thread;
use crate::{cpuid, link, sys, usercopy};

const PAGE: u64 = 4096;
const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_EXEC: u32 = 4;

/// What came of asking the machine.
pub(super) enum Outcome {
    /// The page is mapped, or whatever was asked for is there.
    Repaired,
    /// Nothing was done: the instruction has to run again, and signals may be taken first.
    Retry,
    /// To be delivered.
    Raise(Exception),
}

/// Asks the machine to repair a fault. `kind` is one of [`fault_kind`].
pub(super) fn ask(
    thread: &mut Thread,
    enclave: &'static Enclave,
    address: u64,
    error: u32,
    prot: u32,
    kind: u64,
) -> Outcome {
    let mut words = [0; NR_WORDS];
    words[..6].copy_from_slice(&[
        call::FAULT,
        enclave.handle(),
        address,
        u64::from(error),
        u64::from(prot),
        kind,
    ]);
    let answer = link::slot_call(thread, words);
    let access = error & (pf::W | pf::U | pf::I);
    match answer[1] {
        outcome::MAPPED => {
            if kind == fault_kind::ACCESS {
                settle(enclave, address, answer[2] as u32);
            }
            Outcome::Repaired
        }
        outcome::RETRY => Outcome::Retry,
        outcome::SGX_FAULT => Outcome::Raise(Exception::sgx(address, access)),
        outcome::GP => Outcome::Raise(Exception::GP),
        // SIGBUS, and the errors of a machine that is gone.
        _ => Outcome::Raise(Exception::bus(address, access)),
    }
}

/// P of an error code, as Linux's page table would give it.
pub(super) fn present(word: u32) -> u32 {
    if word & entry::PRESENT != 0 { pf::P } else { 0 }
}

/// The protection that the EPCM allows, as `PROT_*`.
fn epcm_prot(word: u32) -> u32 {
    let bit = |flag, prot| if word & flag != 0 { prot } else { 0 };
    bit(entry::R, PROT_READ) | bit(entry::W, PROT_WRITE) | bit(entry::X, PROT_EXEC)
}

/// Narrows a page that has just been mapped to what the EPCM allows.
fn settle(enclave: &'static Enclave, address: u64, word: u32) {
    let narrower = |prot: u32| word & entry::MAPPED != 0 && prot & !epcm_prot(word) != 0;
    if enclaves::mapping_at(address).is_some_and(|mapping| narrower(mapping.prot)) {
        reprotect(enclave, address);
    }
}

/// A page of the enclave that the thread is in was accepted, by which the machine has mapped it.
pub(super) fn accepted(thread: &Thread, address: u64) {
    if let Some(enclave) = thread.enclave.enclave {
        settle(enclave, address, enclave.page_word(address));
    }
}

/// Gives the page at `address` the real protection that it should have; whether that worked.
fn reprotect(enclave: &'static Enclave, address: u64) -> bool {
    let _guard = CHANGES.lock();
    match enclaves::mapping_at(address) {
        Some(mapping) if core::ptr::eq(mapping.enclave, enclave) && !mapping.placeholder => {
            protect(address & !(PAGE - 1), PAGE, real_prot(&mapping, enclave.page_word(address)))
        }
        // It has gone meanwhile; the access finds out.
        _ => true,
    }
}

fn real_prot(mapping: &Mapping, word: u32) -> u32 {
    if word & entry::MAPPED != 0 { mapping.prot & epcm_prot(word) } else { mapping.prot }
}

fn protect(start: u64, len: u64, prot: u32) -> bool {
    // SAFETY: changes the protection of a mapping of a view, within what the program asked for.
    (unsafe { sys!(nr::MPROTECT, start, len, prot) }) == 0
}

/// Takes an exception: inside an enclave, at an address of one, or at an ENCLU. Anything else is the
/// program's own.
pub fn on_fault(thread: &mut Thread, sig: i32, info: &mut SigInfo, uc: &mut Ucontext) -> Verdict {
    super::interrupted(thread, uc);
    if sig == signum::SIGSYS && info.code == dispatch::SYS_USER_DISPATCH {
        return dispatch::on_syscall(thread, uc, info);
    }
    if !info.by_kernel() {
        super::leave_for_signal(thread, uc);
        return Verdict::Deliver;
    }
    // A processor that has SGX, but not for us, raises other exceptions than #UD.
    if sig == signum::SIGSEGV
        && leaves::opcode(uc) == leaves::Opcode::Enclu
        && uc.mcontext.cr2 != uc.mcontext.rip
    {
        return leaves::run(thread, uc, info);
    }
    let number = uc.mcontext.trapno as u8;
    if number == vector::PF {
        return page_fault(thread, sig, info, uc);
    }
    if !thread.enclave.is_inside() {
        return Verdict::Deliver;
    }
    let exception = inside(thread, sig, info, uc, number);
    raise(thread, uc, info, &exception)
}

/// What an exception other than a page fault is, inside an enclave.
fn inside(thread: &Thread, sig: i32, info: &SigInfo, uc: &mut Ucontext, number: u8) -> Exception {
    let mode = &thread.enclave;
    const INT3_LEN: u64 = 1;
    match number {
        vector::BP => {
            // The kernel has stepped over it; here it is a fault.
            uc.mcontext.rip = uc.mcontext.rip.wrapping_sub(INT3_LEN);
            if mode.opt_in { Exception::from_kernel(sig, info, uc) } else { Exception::UD }
        }
        vector::DB => Exception::from_kernel(sig, info, uc),
        _ if !mode.in_elrange(uc.mcontext.rip) => Exception::GP,
        vector::GP if cpuid::is_at(uc.mcontext.rip) => Exception::UD,
        vector::GP if is_software_interrupt(uc.mcontext.rip) => Exception::UD,
        _ => Exception::from_kernel(sig, info, uc),
    }
}

/// INT n and the like, which outside an enclave are a question of the gate's privilege.
fn is_software_interrupt(rip: u64) -> bool {
    const INT: u8 = 0xcd;
    const IN_OUT: [u8; 12] = [0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef, 0x6c, 0x6d, 0x6e, 0x6f];
    usercopy::get::<u8>(rip).is_some_and(|byte| byte == INT || IN_OUT.contains(&byte))
}

fn page_fault(thread: &mut Thread, sig: i32, info: &mut SigInfo, uc: &mut Ucontext) -> Verdict {
    let address = uc.mcontext.cr2;
    let error = uc.mcontext.err as u32;
    let mode = &thread.enclave;
    if mode.is_inside() && error & pf::I != 0 && !mode.in_elrange(address) {
        return raise(thread, uc, info, &Exception::GP);
    }
    let Some(mapping) = enclaves::mapping_at(address) else {
        if !mode.is_inside() {
            return Verdict::Deliver;
        }
        let exception = if mode.in_elrange(address) && usercopy::get::<u8>(address).is_some() {
            // Ordinary memory within ELRANGE.
            Exception::sgx(address, error & (pf::W | pf::U | pf::I))
        } else {
            Exception::from_kernel(sig, info, uc)
        };
        return raise(thread, uc, info, &exception);
    };
    let mut missing = None;
    let outcome = if sig == signum::SIGBUS {
        // For a missing page the kernel does not look whether the mapping may be executed: the page comes, and
        // then the processor looks.
        let fetch = if mapping.prot & PROT_EXEC != 0 { error & pf::I } else { 0 };
        let access = error & pf::W | fetch | pf::U;
        missing = Some(Exception::bus(address, access));
        if mapping.placeholder {
            Outcome::Raise(Exception::bus(address, access))
        } else {
            ask(thread, mapping.enclave, address, access, mapping.prot, fault_kind::ACCESS)
        }
    } else {
        protection(thread, &mapping, address, error, info.code)
    };
    match outcome {
        Outcome::Repaired | Outcome::Retry => {
            match &missing {
                Some(exception) => aex::come_back(thread, uc, Some(exception)),
                // The processor would have found the wider permission by itself.
                None => thread.enclave.refresh(),
            }
            Verdict::Resume
        }
        Outcome::Raise(exception) => raise(thread, uc, info, &exception),
    }
}

/// A fault that the real protection of a mapping raises.
fn protection(thread: &Thread, mapping: &Mapping, address: u64, error: u32, code: i32) -> Outcome {
    let access = error & (pf::W | pf::U | pf::I) | pf::U;
    let needed = if error & pf::I != 0 {
        PROT_EXEC
    } else if error & pf::W != 0 {
        PROT_WRITE
    } else {
        // On x86 what can be written or executed can be read.
        PROT_READ | PROT_WRITE | PROT_EXEC
    };
    let word = mapping.enclave.page_word(address);
    if error & pf::PK != 0 {
        return Outcome::Raise(Exception { code, ..Exception::denied(address, error) });
    }
    if mapping.prot & needed == 0 {
        return Outcome::Raise(Exception::denied(address, access | present(word)));
    }
    if mapping.placeholder {
        return Outcome::Raise(Exception::bus(address, access));
    }
    let inside = thread.enclave.is_inside() && thread.enclave.in_elrange(address);
    let epcm_needs = if needed & PROT_READ != 0 { PROT_READ } else { needed };
    if word & entry::MAPPED != 0 && epcm_prot(word) & epcm_needs == 0 {
        let exception = Exception::sgx(address, access);
        return Outcome::Raise(if inside { exception } else { Exception::denied(address, access | pf::P) });
    }
    if reprotect(mapping.enclave, address) {
        Outcome::Repaired
    } else {
        Outcome::Raise(Exception::denied(address, access))
    }
}

/// Has a page of the enclave mapped for the runtime's own reading; whether it is worth trying again.
pub(super) fn read_in(thread: &mut Thread, address: u64) -> bool {
    let Some(mapping) = enclaves::mapping_at(address) else { return false };
    if mapping.placeholder || mapping.prot & PROT_READ == 0 {
        return false;
    }
    !matches!(
        ask(thread, mapping.enclave, address, aex::READ, mapping.prot, fault_kind::ACCESS),
        Outcome::Raise(_)
    )
}

/// Tells the machine that a TCS which it has taken out of the window is inactive, with this thread's CSSA.
pub(super) fn give_back_tcs(thread: &mut Thread) {
    let mode = &thread.enclave;
    let mut words = [0; NR_WORDS];
    words[..5].copy_from_slice(&[
        call::STORE_TCS,
        mode.handle,
        mode.tcs_address,
        u64::from(mode.cssa()),
        mode.aep,
    ]);
    link::slot_call(thread, words);
}
