//! EREMOVE: taking a page out of its enclave for good.
//!
//! Called by the driver when it frees a page, and at start-up on every page. Source: SDM volume 3D, "EREMOVE".

use usgx_isa::code::Operand;
use usgx_isa::{EpcPage, Fault, LeafError, SgxCode};

use crate::bytes::PageBytes;
use crate::processor::Processor;
use crate::secinfo::{MODIFIED, PT_SECS, PT_TRIM, PT_VA};
use crate::tracking::LogicalProcessors;

/// Runs EREMOVE.
pub(super) fn eremove<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    page: EpcPage,
) -> Result<(), LeafError> {
    let entry = cpu.operand(page, Operand::Target)?;
    let _target = entry.lock.exclusive().ok_or(Fault::Gp)?;
    let state = entry.state();
    if !state.is_valid() {
        return Ok(());
    }
    match state.page_type() {
        PT_VA => {
            entry.invalidate();
            cpu.bytes().discard(page);
        }
        PT_SECS => {
            let enclave = cpu.resident(page).expect("a locked SECS page stays resident");
            if enclave.nr_children() != 0 {
                return Err(SgxCode::ChildPresent.into());
            }
            cpu.residents().remove(entry.address());
            entry.invalidate();
            cpu.bytes().discard(page);
        }
        _ => {
            let enclave = cpu.owner(state);
            // An accepted PT_TRIM page is given up by the enclave itself: threads may go on running.
            let given_up = state.page_type() == PT_TRIM && !state.has(MODIFIED);
            if !given_up && enclave.tracker.is_active(cpu.threads()) {
                return Err(SgxCode::EnclaveAct.into());
            }
            entry.invalidate();
            cpu.bytes().discard(page);
            enclave.drop_child();
        }
    }
    Ok(())
}
