//! FAULT: a page of an enclave was touched and is not mapped, or is the TCS of an entry.
//!
//! The driver brings the page into the EPC and has it mapped; whether the access is allowed is the EPCM's to say,
//! and it is asked again under the enclave's lock, because the page may be on its way out by then.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use usgx_cpu::Access;
use usgx_driver::{FaultOutcome, Prot};
use usgx_isa::LinAddr;
use usgx_isa::layout::{PageType, pf};
use usgx_wire::slot::{fault_kind, outcome};
use usgx_wire::window::entry;

use super::{Words, reply};
use crate::clients::worker::Link;
use crate::sight::timed;
use crate::system::OpenEnclave;

/// How often a fault that must be repeated is repeated here, before the client is asked to: it would only come
/// back, 20 us later.
const MAX_REPEATS: u32 = 16;
/// How long to wait for the reclaimer between two tries.
const PATIENCE: Duration = Duration::from_micros(500);

pub(super) fn fault(link: &Link, words: &Words) -> Words {
    let [_, handle, addr, code, prot, kind, ..] = *words;
    let Some(open) = link.client.enclave(handle) else { return reply([outcome::SIGBUS, 0]) };
    let page = LinAddr(addr).page();
    let was_operand = link.missing_operand.swap(0, Relaxed) == page.0 | 1;
    let vma = Prot::from_bits_truncate((prot & 7) as u8);
    let resolved = timed(&open.record.faults, || resolve(link, &open, page, vma, || link.signal_pending()));
    let answer = match resolved {
        FaultOutcome::Mapped => judge(link, &open, addr, access(code), kind),
        FaultOutcome::Retry | FaultOutcome::OutOfMemory => (outcome::RETRY, 0),
        FaultOutcome::Sigbus => (outcome::SIGBUS, 0),
    };
    match answer {
        // The page that an ENCLU leaf missed is there now. Whether the leaf may use it is the leaf's to say
        // (EACCEPT works on pages that nobody may access yet).
        (outcome::SGX_FAULT, _) if was_operand => reply([outcome::RETRY, 0]),
        (outcome, entry) => reply([outcome, entry]),
    }
}

/// Runs the driver's fault handler, again if it says so and it may help, and `stop` does not say that it is enough.
pub(super) fn resolve(
    link: &Link,
    open: &OpenEnclave,
    page: LinAddr,
    vma: Prot,
    stop: impl Fn() -> bool,
) -> FaultOutcome {
    for _ in 0..MAX_REPEATS {
        match open.enclave.fault(page.0, vma) {
            FaultOutcome::Retry | FaultOutcome::OutOfMemory if !stop() => {
                link.host.platform.wait_for_pass(PATIENCE);
            }
            other => return other,
        }
    }
    FaultOutcome::Retry
}

fn access(code: u64) -> Access {
    if code & u64::from(pf::FETCH) != 0 {
        Access::Fetch
    } else if code & u64::from(pf::WRITE) != 0 {
        Access::Write
    } else {
        Access::Read
    }
}

/// What to do about an access to a page that the driver has mapped.
fn judge(link: &Link, open: &OpenEnclave, addr: u64, access: Access, kind: u64) -> (u64, u64) {
    let page = LinAddr(addr).page();
    let judged = open.enclave.with_pages(|secs, look_up| {
        // Gone again, or on its way out.
        let epcm = look_up(page.0).and_then(|epc_page| link.host.hw.epcm(epc_page))?;
        let shown = open.view.entry(page.0);
        if kind == fault_kind::TCS {
            let is_tcs = epcm.page_type == PageType::Tcs && epcm.linaddr == page;
            if !is_tcs || epcm.blocked || epcm.pending || epcm.modified {
                return Some((outcome::SGX_FAULT, 0));
            }
            return (shown & entry::TCS != 0).then_some((outcome::MAPPED, u64::from(shown)));
        }
        if !epcm.permits(secs, LinAddr(addr), access) {
            return Some((outcome::SGX_FAULT, 0));
        }
        (shown & entry::MAPPED != 0).then_some((outcome::MAPPED, u64::from(shown)))
    });
    judged.ok().flatten().unwrap_or((outcome::RETRY, 0))
}
