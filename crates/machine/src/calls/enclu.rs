//! ENCLU: the user leaves that touch keys or the EPCM.
//!
//! The runtime has checked the thread's page tables, so a page that is in the EPC counts as mapped; one that is
//! not is an ordinary page fault, which the runtime has resolved and then runs the leaf again.

use std::sync::atomic::Ordering::Relaxed;

use usgx_cpu::{EncluError, Translate};
use usgx_isa::layout::{PageType, enclu as leaf, pf};
use usgx_isa::{EpcPage, LinAddr, Vector};
use usgx_wire::slot::enclu_outcome;
use usgx_wire::window::entry;

use super::{Words, reply};
use crate::clients::worker::Link;
use crate::hardware::books::Faulter;
use crate::system::{Hw, OpenEnclave};

/// The look-up that the driver lends for the time of a leaf.
struct Resident<'a>(&'a dyn Fn(u64) -> Option<EpcPage>);

impl Translate for Resident<'_> {
    fn translate(&self, addr: LinAddr, _write: bool) -> Option<EpcPage> {
        (self.0)(addr.page().0)
    }
}

pub(super) fn enclu(link: &Link, words: &Words) -> Words {
    let [_, handle, number, rbx, rcx, rdx, ..] = *words;
    let gp = reply([enclu_outcome::EXCEPTION, Vector::Gp as u64, 0, 0]);
    let Some(open) = link.client.enclave(handle) else { return gp };
    let Ok(number) = u32::try_from(number) else { return gp };
    let operands = [rbx, rcx, rdx].map(LinAddr);
    let result = open.enclave.with_pages(|secs, look_up| {
        let result = run(&link.host.hw, secs, number, operands, &Resident(look_up));
        if result.is_ok() {
            show(link, &open, number, operands[1], look_up);
        }
        result
    });
    // Any fault brings the SECS back.
    let result = result.unwrap_or(Err(EncluError::PageFault { addr: operands[0], write: false, sgx: false }));
    match result {
        Ok(()) if returns_code(number) => reply([enclu_outcome::DONE, 0, 0, 0]),
        Ok(()) => reply([enclu_outcome::DONE_NO_CODE, 0, 0, 0]),
        Err(EncluError::Code(code)) => reply([enclu_outcome::DONE, code as u64, 0, 0]),
        Err(EncluError::Gp) => gp,
        Err(EncluError::PageFault { addr, write, sgx }) => {
            let mut code = pf::USER;
            if write {
                code |= pf::WRITE;
            }
            if sgx {
                let code = u64::from(code | pf::PRESENT | pf::SGX);
                reply([enclu_outcome::EXCEPTION, Vector::Pf as u64, code, addr.0])
            } else {
                link.missing_operand.store(addr.page().0 | 1, Relaxed);
                reply([enclu_outcome::NOT_PRESENT, Vector::Pf as u64, u64::from(code), addr.0])
            }
        }
    }
}

fn run(
    hw: &Hw,
    secs: EpcPage,
    number: u32,
    [rbx, rcx, rdx]: [LinAddr; 3],
    map: &dyn Translate,
) -> Result<(), EncluError> {
    match number {
        leaf::EREPORT => hw.ereport(secs, rbx, rcx, rdx, map),
        leaf::EGETKEY => hw.egetkey(secs, rbx, rcx, map),
        leaf::EACCEPT => hw.eaccept(secs, rbx, rcx, map),
        leaf::EMODPE => hw.emodpe(secs, rbx, rcx, map),
        leaf::EACCEPTCOPY => hw.eacceptcopy(secs, rbx, rcx, rdx, map),
        // Entry, exit and EDECCSSA are the runtime's; EVERIFYREPORT2 exists on no profile.
        _ => Err(EncluError::Gp),
    }
}

/// Whether a leaf reports in RAX how it went.
fn returns_code(number: u32) -> bool {
    matches!(number, leaf::EGETKEY | leaf::EACCEPT | leaf::EACCEPTCOPY)
}

/// Shows the permissions of the page at `addr`, which a leaf may have changed. One that was accepted just now is mapped
/// as well: nobody accepts a page but to use it, and the kernel's page tables would have had it since its fault.
fn show(
    link: &Link,
    open: &OpenEnclave,
    number: u32,
    addr: LinAddr,
    look_up: &dyn Fn(u64) -> Option<EpcPage>,
) {
    let (host, addr) = (&link.host, addr.page().0);
    let Some(page) = look_up(addr) else { return };
    let Some(epcm) = host.hw.epcm(page) else { return };
    open.view.refresh(addr, &epcm);
    let is_accepted = matches!(number, leaf::EACCEPT | leaf::EACCEPTCOPY) && epcm.page_type == PageType::Reg;
    if is_accepted && open.view.entry(addr) & entry::MAPPED == 0 {
        let faulter = Faulter { client: link.client.id(), clock: link.slot.clock() };
        // If it cannot be now, the first access finds out why.
        let _ = open.view.map(&host.hw, &host.frames, addr, page, Some(&faulter));
    }
}
