//! STORE_TCS and STORE_SSA: what an exit stores when its pages were taken away meanwhile.
//!
//! On hardware these stores cannot fault, and a page is not evicted before they are done. Here the page may be
//! gone already, so it is brought back first.

use usgx_driver::{FaultOutcome, Prot};
use usgx_isa::{EpcPage, LinAddr, PAGE_SIZE};
use usgx_wire::window::entry;

use super::fault::resolve;
use super::{EBADF, EFAULT, EINVAL, Words, negative, reply};
use crate::clients::worker::Link;
use crate::system::OpenEnclave;

/// How often to bring a page back that goes away again before it can be written: each time is a full pass over
/// the EPC, so a few are plenty.
const MAX_TRIES: u32 = 1000;

pub(super) fn store_tcs(link: &Link, words: &Words) -> Words {
    let [_, handle, addr, cssa, aep, ..] = *words;
    let Some(open) = link.client.enclave(handle) else { return reply([negative(EBADF)]) };
    let page = LinAddr(addr).page();
    let (Ok(cssa), true) = (u32::try_from(cssa), page.0 == addr) else { return reply([negative(EINVAL)]) };
    store(link, &open, page, |epc_page| {
        // It may be in the window again: another thread tried to enter.
        let host = &link.host;
        open.view.unmap(&host.hw, &host.frames, &[(page.0, epc_page)], entry::PRESENT);
        host.hw.store_tcs(epc_page, 0, cssa, aep)
    })
}

pub(super) fn store_ssa(link: &Link, words: &Words) -> Words {
    let [_, handle, addr, length, ..] = *words;
    let Some(open) = link.client.enclave(handle) else { return reply([negative(EBADF)]) };
    let page = LinAddr(addr).page();
    // Below 4096.
    let offset = (addr - page.0) as usize;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > PAGE_SIZE - offset {
        return reply([negative(EINVAL)]);
    }
    let mut bytes = [0; PAGE_SIZE];
    let bytes = &mut bytes[..length];
    link.memory().read_data(0, bytes);
    store(link, &open, page, |epc_page| link.host.hw.store_implicit(epc_page, offset, bytes))
}

/// Runs `write` on the EPC page behind `page`, under the enclave's lock.
fn store(link: &Link, open: &OpenEnclave, page: LinAddr, write: impl Fn(EpcPage) -> bool) -> Words {
    for _ in 0..MAX_TRIES {
        let done = open.enclave.with_pages(|_, look_up| look_up(page.0).map(&write));
        match done {
            Ok(Some(true)) => return reply([0]),
            Ok(Some(false)) => break,
            Ok(None) | Err(_) => {}
        }
        // A signal does not end this: there is nobody who would store again.
        match resolve(link, open, page, Prot::R | Prot::W, || link.is_over()) {
            FaultOutcome::Mapped | FaultOutcome::Retry | FaultOutcome::OutOfMemory if !link.is_over() => {}
            _ => break,
        }
    }
    reply([negative(EFAULT)])
}
