//! EDBGRD and EDBGWR: a debugger's eight bytes at a time.
//!
//! Called by the driver's `access` handler, for `ptrace` and `/proc/PID/mem`. EPCM permissions and BLOCKED do
//! not matter to them. Source: SDM volume 3D, "EDBGRD" and "EDBGWR".

use usgx_isa::code::Operand;
use usgx_isa::{EpcPage, Fault, LeafError, PAGE_SIZE, SgxCode};

use crate::bytes::PageBytes;
use crate::enclu::tcs;
use crate::processor::Processor;
use crate::secinfo::{MODIFIED, PENDING, PT_REG, PT_TCS, PT_VA};
use crate::secs::DEBUG;
use crate::tracking::LogicalProcessors;

const WIDTH: usize = 8;
/// What of a VA slot a debugger may learn: whether it is in use.
const SLOT_MASK: u64 = !7;

/// Runs EDBGRD.
pub(super) fn edbgrd<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    page: EpcPage,
    offset: u16,
) -> Result<u64, LeafError> {
    let offset = checked_offset(offset)?;
    let entry = cpu.operand(page, Operand::Target)?;
    let _target = entry.lock.shared().ok_or(Fault::Gp)?;
    let state = entry.state();
    if !state.is_valid() || !matches!(state.page_type(), PT_REG | PT_TCS | PT_VA) {
        return Err(cpu.epcm_fault(Operand::Target).into());
    }
    if state.has(PENDING | MODIFIED) {
        return Err(SgxCode::PageNotDebuggable.into());
    }
    if state.page_type() == PT_TCS && offset >= tcs::LIMIT {
        return Err(Fault::Gp.into());
    }
    if state.page_type() != PT_VA && !cpu.owner(state).has(DEBUG) {
        return Err(Fault::Gp.into());
    }
    let mut bytes = [0; WIDTH];
    cpu.bytes().read(page, offset, &mut bytes);
    let value = u64::from_le_bytes(bytes);
    Ok(match state.page_type() {
        PT_VA if value & SLOT_MASK != 0 => u64::MAX,
        PT_VA => 0,
        _ => value,
    })
}

/// Runs EDBGWR.
pub(super) fn edbgwr<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    page: EpcPage,
    offset: u16,
    value: u64,
) -> Result<(), LeafError> {
    let offset = checked_offset(offset)?;
    let entry = cpu.operand(page, Operand::Target)?;
    let _target = entry.lock.shared().ok_or(Fault::Gp)?;
    let state = entry.state();
    if !state.is_valid() || !matches!(state.page_type(), PT_REG | PT_TCS) {
        return Err(cpu.epcm_fault(Operand::Target).into());
    }
    if state.has(PENDING | MODIFIED) {
        return Err(SgxCode::PageNotDebuggable.into());
    }
    if state.page_type() == PT_TCS && offset != tcs::FLAGS {
        return Err(Fault::Gp.into());
    }
    if !cpu.owner(state).has(DEBUG) {
        return Err(Fault::Gp.into());
    }
    cpu.bytes().write(page, offset, &value.to_le_bytes());
    Ok(())
}

fn checked_offset(offset: u16) -> Result<usize, Fault> {
    let offset = usize::from(offset);
    if offset.is_multiple_of(WIDTH) && offset < PAGE_SIZE { Ok(offset) } else { Err(Fault::Gp) }
}
