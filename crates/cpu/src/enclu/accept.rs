//! EACCEPT, EMODPE and EACCEPTCOPY: the enclave's side of changes to its pages.
//!
//! The page named by RCX is pinned throughout. EACCEPT is to have it locked shared on hardware, so it reports
//! `#GP` when a supervisor leaf has it; the other two lock nothing there. Source: SDM volume 3D, the leaves' own
//! sections; where the printed flow tests the wrong operand, what is evidently meant is done.

use usgx_isa::{LinAddr, PAGE_SIZE, SgxCode};

use super::operand::Mapped;
use super::{EncluError, Translate, check_address, tcs};
use crate::bytes::PageBytes;
use crate::epcm::{BLOCKED, State};
use crate::processor::Processor;
use crate::secinfo::{self, MODIFIED, PAGE_TYPE, PENDING, PR, PT_REG, PT_TCS, PT_TRIM, R, RWX, W, X};
use crate::secs::{MODE64BIT, Resident};
use crate::tracking::LogicalProcessors;

const SECINFO_SIZE: usize = 64;
const PAGE_ALIGN: u64 = PAGE_SIZE as u64;
const SECINFO_ALIGN: u64 = SECINFO_SIZE as u64;

/// Runs EACCEPT.
pub(super) fn eaccept<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    enclave: &Resident,
    rbx: LinAddr,
    rcx: LinAddr,
    map: &dyn Translate,
) -> Result<(), EncluError> {
    require_sgx2(cpu)?;
    check_address(enclave, rbx, SECINFO_ALIGN)?;
    let secinfo: [u8; SECINFO_SIZE] = Mapped::find(cpu, rbx, false, map)?.check(enclave)?.read(cpu);
    let flags = checked_flags(&secinfo)?;
    check_address(enclave, rcx, PAGE_ALIGN)?;
    let target = Mapped::find(cpu, rcx, false, map)?;
    if !is_acceptable(flags) {
        return Err(EncluError::Gp);
    }
    let is_acceptable_page = |state: State| state.is_child_of(enclave.page) && !state.has(BLOCKED);
    if !is_acceptable_page(target.entry.state()) {
        return Err(target.refusal());
    }
    let target = target.pin().map_err(|target| target.or_retry(EncluError::Gp))?;
    let mapped = &target.mapped;
    let _accept = mapped.entry.lock.accept().ok_or(EncluError::Gp)?;
    let state = mapped.entry.state();
    if !is_acceptable_page(state) {
        return Err(mapped.refusal());
    }
    const COMPARED: u64 = PENDING | MODIFIED | RWX | PAGE_TYPE;
    if mapped.entry.address() != rcx.0 || (state.secinfo_flags() ^ flags) & COMPARED != 0 {
        return Err(SgxCode::PageAttributesMismatch.into());
    }
    // A page that is only pending was in nobody's translations before.
    let must_be_tracked = state.has(PR | MODIFIED);
    if must_be_tracked && !enclave.tracker.is_tracked(mapped.entry.stamp(), cpu.threads()) {
        return Err(SgxCode::NotTracked.into());
    }
    if state.page_type() == PT_TCS {
        tcs::check_acceptable(&target.read(cpu), enclave.has(MODE64BIT)).map_err(|_| EncluError::Gp)?;
    }
    mapped.entry.clear(PENDING | MODIFIED | PR);
    Ok(())
}

/// Whether EACCEPT can be asked for this at all.
fn is_acceptable(flags: u64) -> bool {
    match flags & PAGE_TYPE {
        PT_REG => flags & MODIFIED == 0 && flags & (PENDING | PR) != 0,
        PT_TCS | PT_TRIM => flags & (PENDING | MODIFIED | PR) == MODIFIED,
        _ => false,
    }
}

/// Runs EMODPE.
pub(super) fn emodpe<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    enclave: &Resident,
    rbx: LinAddr,
    rcx: LinAddr,
    map: &dyn Translate,
) -> Result<(), EncluError> {
    require_sgx2(cpu)?;
    check_address(enclave, rbx, SECINFO_ALIGN)?;
    check_address(enclave, rcx, PAGE_ALIGN)?;
    let secinfo = Mapped::find(cpu, rbx, false, map)?;
    let target = Mapped::find(cpu, rcx, false, map)?;
    let secinfo: [u8; SECINFO_SIZE] = secinfo.check(enclave)?.read(cpu);
    let flags = checked_flags(&secinfo)?;
    let is_extendable = |state: State| {
        state.is_child_of(enclave.page)
            && state.page_type() == PT_REG
            && !state.has(PENDING | MODIFIED | BLOCKED)
    };
    if !is_extendable(target.entry.state()) {
        return Err(target.refusal());
    }
    let target = target.pin().map_err(|target| target.or_retry(EncluError::Gp))?;
    let mapped = &target.mapped;
    let _accept = mapped.entry.lock.accept().ok_or(EncluError::Gp)?;
    let state = mapped.entry.state();
    if !is_extendable(state) || mapped.entry.address() != rcx.0 {
        return Err(mapped.refusal());
    }
    if !state.has(R) && flags & (R | W) == W {
        return Err(EncluError::Gp);
    }
    mapped.entry.set(flags & RWX);
    Ok(())
}

/// Runs EACCEPTCOPY.
pub(super) fn eacceptcopy<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    enclave: &Resident,
    rbx: LinAddr,
    rcx: LinAddr,
    rdx: LinAddr,
    map: &dyn Translate,
) -> Result<(), EncluError> {
    require_sgx2(cpu)?;
    check_address(enclave, rbx, SECINFO_ALIGN)?;
    check_address(enclave, rcx, PAGE_ALIGN)?;
    check_address(enclave, rdx, PAGE_ALIGN)?;
    let secinfo = Mapped::find(cpu, rbx, false, map)?;
    let target = Mapped::find(cpu, rcx, true, map)?;
    let source = Mapped::find(cpu, rdx, false, map)?;
    let secinfo: [u8; SECINFO_SIZE] = secinfo.check(enclave)?.read(cpu);
    let flags = checked_flags(&secinfo)?;
    if flags & (R | W) == W || flags & PAGE_TYPE != PT_REG {
        return Err(EncluError::Gp);
    }
    let source = source.check(enclave)?;
    let mismatch = EncluError::Code(SgxCode::PageAttributesMismatch);
    let is_pending = |state: State| {
        state.is_child_of(enclave.page)
            && state.page_type() == PT_REG
            && state.has(PENDING)
            && !state.has(MODIFIED | BLOCKED)
    };
    if !is_pending(target.entry.state()) {
        return Err(target.or_retry(mismatch));
    }
    let target = target.pin().map_err(|target| target.or_retry(EncluError::Gp))?;
    let mapped = &target.mapped;
    let _accept = mapped.entry.lock.accept().ok_or(EncluError::Gp)?;
    let state = mapped.entry.state();
    if !is_pending(state) || !state.has(R) || !state.has(W) || state.has(X) || mapped.entry.address() != rcx.0
    {
        return Err(mapped.or_retry(mismatch));
    }
    target.write(cpu, &source.read::<PAGE_SIZE, _, _>(cpu));
    mapped.entry.change(RWX | PENDING, flags & RWX);
    Ok(())
}

fn require_sgx2<B: PageBytes, L: LogicalProcessors>(cpu: &Processor<B, L>) -> Result<(), EncluError> {
    cpu.require_sgx2().map_err(|_| EncluError::Gp)
}

fn checked_flags(secinfo: &[u8; SECINFO_SIZE]) -> Result<u64, EncluError> {
    secinfo::checked_flags_of_bytes(secinfo).map_err(|_| EncluError::Gp)
}
