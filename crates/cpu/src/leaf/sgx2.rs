//! EAUG, EMODPR and EMODT: changing an enclave that runs.
//!
//! Called by the driver's fault path and by the SGX2 `ioctl`s. What they do takes effect for the enclave when it
//! runs EACCEPT. Source: SDM volume 3D, the leaves' own sections.

use usgx_isa::code::Operand;
use usgx_isa::layout::Secinfo;
use usgx_isa::{EpcPage, Fault, LeafError, LinAddr, SgxCode};

use crate::bytes::PageBytes;
use crate::epcm::State;
use crate::processor::Processor;
use crate::secinfo::{self, MODIFIED, PAGE_TYPE, PENDING, PR, PT_REG, PT_TCS, PT_TRIM, R, RWX, W};
use crate::tracking::LogicalProcessors;

/// Runs EAUG.
pub(super) fn eaug<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    target: EpcPage,
    secs: EpcPage,
    linaddr: LinAddr,
) -> Result<(), Fault> {
    cpu.require_sgx2()?;
    let entry = cpu.operand(target, Operand::Target)?;
    if !linaddr.is_page_aligned() {
        return Err(Fault::Gp);
    }
    let secs_entry = cpu.operand(secs, Operand::Secs)?;
    let _target = entry.lock.exclusive().ok_or(Fault::Gp)?;
    if entry.state().is_valid() {
        return Err(cpu.epcm_fault(Operand::Target));
    }
    let _secs = secs_entry.lock.shared().ok_or(Fault::Gp)?;
    let enclave = cpu.resident(secs).ok_or_else(|| cpu.epcm_fault(Operand::Secs))?;
    if !enclave.is_initialised() || !enclave.contains(linaddr) {
        return Err(Fault::Gp);
    }
    cpu.bytes().fill_zero(target);
    enclave.add_child();
    entry.publish(State::owned(R | W | PENDING | PT_REG, secs), linaddr.0);
    Ok(())
}

/// Runs EMODPR.
pub(super) fn emodpr<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    page: EpcPage,
    secinfo: &Secinfo,
) -> Result<(), LeafError> {
    cpu.require_sgx2()?;
    let entry = cpu.operand(page, Operand::Target)?;
    let flags = secinfo::checked_flags(secinfo)?;
    if flags & (R | W) == W {
        return Err(Fault::Gp.into());
    }
    let _target = entry.lock.shared().ok_or(Fault::Gp)?;
    let state = entry.state();
    if !state.is_valid() {
        return Err(cpu.epcm_fault(Operand::Target).into());
    }
    let _accept = entry.lock.accept().ok_or(SgxCode::EpcPageConflict)?;
    // Read again: EACCEPT changes these bits under the accept lock.
    let state = entry.state();
    if state.has(PENDING | MODIFIED) {
        return Err(SgxCode::PageNotModifiable.into());
    }
    if state.page_type() != PT_REG {
        return Err(cpu.epcm_fault(Operand::Target).into());
    }
    let enclave = cpu.owner(state);
    if !enclave.is_initialised() {
        return Err(Fault::Gp.into());
    }
    entry.change(RWX & !flags, PR);
    entry.set_stamp(enclave.tracker.epoch());
    Ok(())
}

/// Runs EMODT.
pub(super) fn emodt<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    page: EpcPage,
    secinfo: &Secinfo,
) -> Result<(), LeafError> {
    cpu.require_sgx2()?;
    let entry = cpu.operand(page, Operand::Target)?;
    let new_type = secinfo::checked_flags(secinfo)? & PAGE_TYPE;
    if !matches!(new_type, PT_TCS | PT_TRIM) {
        return Err(Fault::Gp.into());
    }
    let _target = entry.lock.exclusive().ok_or(SgxCode::EpcPageConflict)?;
    let state = entry.state();
    if !state.is_valid() {
        return Err(cpu.epcm_fault(Operand::Target).into());
    }
    let _accept = entry.lock.accept().ok_or(SgxCode::EpcPageConflict)?;
    if !matches!((state.page_type(), new_type), (PT_REG, PT_TCS | PT_TRIM) | (PT_TCS, PT_TRIM)) {
        return Err(cpu.epcm_fault(Operand::Target).into());
    }
    if state.has(PENDING | MODIFIED) {
        return Err(SgxCode::PageNotModifiable.into());
    }
    let enclave = cpu.owner(state);
    if !enclave.is_initialised() {
        return Err(Fault::Gp.into());
    }
    entry.change(RWX | PR | PAGE_TYPE, MODIFIED | new_type);
    entry.set_stamp(enclave.tracker.epoch());
    Ok(())
}
