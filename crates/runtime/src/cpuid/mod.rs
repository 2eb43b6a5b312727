//! CPUID as the profile's processor answers it.
//!
//! The region's header says how the answers differ from the host's: per leaf an AND and an OR mask. Where the
//! processor offers *CPUID faulting*, the instruction raises `#GP` and is carried out here; it is switched on
//! once for each image (threads and forks inherit it, exec resets it). Elsewhere every CPUID that is found in
//! executable memory is replaced by UD2, an instruction of the same size ([`patch`]), and `SIGILL` at an
//! address where that was done is a CPUID.
//!
//! Inside an enclave CPUID is not legal: there `#GP` by CPUID faulting becomes `#UD`
//! ([`crate::enclu::fault`]). Without CPUID faulting it runs natively there, since measured code cannot be
//! changed; enclaves then see the host's answers where hardware raises `#UD`.
//!
//! Everything here is called from the runtime's handlers, or before the program runs.

mod decode;
mod patch;

use core::arch::x86_64::{__cpuid_count, CpuidResult};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use usgx_wire::process::{ANY_SUBLEAF, Header, MAX_CPUID};

use crate::arch::syscall::nr;
use crate::signals::frame::Ucontext;
use crate::sys;
use crate::usercopy;

pub use patch::{is_patched_in, patch_range};

/// `arch_prctl`: whether CPUID is allowed (1) or raises `#GP` (0).
const ARCH_SET_CPUID: u64 = 0x1012;
/// The instruction's bytes.
pub(crate) const CPUID: [u8; 2] = [0x0f, 0xa2];
const CPUID_LEN: u64 = 2;
const GENERAL_PROTECTION: u64 = 13;

/// Nothing has been decided: CPUID is the host's.
const NATIVE: u32 = 0;
/// CPUID raises `#GP`.
const FAULTING: u32 = 1;
/// CPUID is replaced in memory.
const PATCHING: u32 = 2;

static MODE: AtomicU32 = AtomicU32::new(NATIVE);
/// The region's header. Set once, before the program runs; the region stays mapped for good.
static HEADER: AtomicPtr<Header> = AtomicPtr::new(core::ptr::null_mut());

/// Decides how CPUID is caught in this image. Called once, before the program runs.
pub fn init(header: &'static Header) {
    HEADER.store((&raw const *header).cast_mut(), Ordering::Release);
    if header.nr_cpuid == 0 {
        return;
    }
    // SAFETY: sets a flag of the thread.
    let faulting = unsafe { sys!(nr::ARCH_PRCTL, ARCH_SET_CPUID, 0) } == 0;
    if !faulting {
        patch::init();
    }
    MODE.store(if faulting { FAULTING } else { PATCHING }, Ordering::Release);
}

/// Whether executable memory has to be searched for CPUID as it appears ([`patch_range`]).
pub fn needs_patching() -> bool {
    MODE.load(Ordering::Relaxed) == PATCHING
}

/// Takes a `#GP` that CPUID faulting has raised outside an enclave.
pub fn on_sigsegv(uc: &mut Ucontext) -> bool {
    if uc.mcontext.trapno != GENERAL_PROTECTION || !is_at(uc.mcontext.rip) {
        return false;
    }
    carry_out(uc);
    true
}

/// Takes an invalid opcode at an address where CPUID has been replaced.
pub fn on_sigill(uc: &mut Ucontext) -> bool {
    if !needs_patching() || !patch::is_patched(uc.mcontext.rip) {
        return false;
    }
    carry_out(uc);
    true
}

/// Whether CPUID faulting is on and CPUID stands at `rip`.
pub fn is_at(rip: u64) -> bool {
    MODE.load(Ordering::Relaxed) == FAULTING && usercopy::get::<[u8; 2]>(rip) == Some(CPUID)
}

fn carry_out(uc: &mut Ucontext) {
    let registers = &mut uc.mcontext;
    let answer = emulate(registers.rax as u32, registers.rcx as u32);
    registers.rax = u64::from(answer.eax);
    registers.rbx = u64::from(answer.ebx);
    registers.rcx = u64::from(answer.ecx);
    registers.rdx = u64::from(answer.edx);
    registers.rip += CPUID_LEN;
}

/// What the program is shown.
pub(crate) fn emulate(leaf: u32, subleaf: u32) -> CpuidResult {
    let mut answer = host(leaf, subleaf);
    let header = HEADER.load(Ordering::Acquire);
    if header.is_null() {
        return answer;
    }
    // SAFETY: set by `init` to a region that stays mapped and is not written any more.
    let header = unsafe { &*header };
    let used = (header.nr_cpuid as usize).min(MAX_CPUID);
    let matches = |entry: &&usgx_wire::process::CpuidEntry| {
        entry.leaf == leaf && (entry.subleaf == subleaf || entry.subleaf == ANY_SUBLEAF)
    };
    if let Some(entry) = header.cpuid[..used].iter().find(matches) {
        answer.eax = answer.eax & entry.and[0] | entry.or[0];
        answer.ebx = answer.ebx & entry.and[1] | entry.or[1];
        answer.ecx = answer.ecx & entry.and[2] | entry.or[2];
        answer.edx = answer.edx & entry.and[3] | entry.or[3];
    }
    answer
}

/// The host's own answer.
pub fn host(leaf: u32, subleaf: u32) -> CpuidResult {
    let faulting = MODE.load(Ordering::Relaxed) == FAULTING;
    if faulting {
        // SAFETY: sets a flag of the thread. No program code runs before it is set back: the program's
        // signals are blocked in handlers.
        unsafe { sys!(nr::ARCH_PRCTL, ARCH_SET_CPUID, 1) };
    }
    let answer = __cpuid_count(leaf, subleaf);
    if faulting {
        // SAFETY: as above.
        unsafe { sys!(nr::ARCH_PRCTL, ARCH_SET_CPUID, 0) };
    }
    answer
}
