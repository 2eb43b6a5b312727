//! The part of an enclave that its lock protects.

use usgx_isa::EpcPage;

use crate::page::{EnclPage, PageKind, Place, Prot};
use crate::table::PageTable;
use crate::va::VaPages;

/// ATTRIBUTES that every enclave may have: DEBUG, MODE64BIT, KSS, AEXNOTIFY.
pub(crate) const UNPRIVILEGED: u64 = 1 << 1 | 1 << 2 | 1 << 7 | 1 << 10;
/// ATTRIBUTES.PROVISIONKEY.
pub(crate) const PROVISIONKEY: u64 = 1 << 4;
/// ATTRIBUTES.DEBUG.
pub(crate) const DEBUG: u64 = 1 << 1;

/// Whereabouts and rights of an enclave.
#[derive(Default)]
pub(crate) struct State {
    /// Where the SECS is; `None` before CREATE.
    pub(crate) secs: Option<Place>,
    pub(crate) pages: PageTable,
    pub(crate) va: VaPages,
    /// Pages the enclave has, with its SECS: those that have a right to a slot.
    pub(crate) page_count: u64,
    /// Child pages in the EPC. The SECS can not go before they are 0.
    pub(crate) resident: u64,
    pub(crate) attributes: u64,
    pub(crate) xfrm: u64,
    pub(crate) miscselect: u32,
    /// Tracking cycles started.
    pub(crate) cycles: u64,
    /// ATTRIBUTES that INIT lets pass.
    pub(crate) allowed: u64,
}

impl State {
    /// The EPC page of the SECS, if that is resident.
    pub(crate) fn secs_page(&self) -> Option<EpcPage> {
        self.secs.and_then(Place::epc_page)
    }

    /// Slots that must be free: one for each page in the EPC, the SECS included, but those that have theirs already.
    pub(crate) fn slots_needed(&self) -> u64 {
        self.resident - self.va.nr_pinned() + u64::from(self.secs_page().is_some())
    }

    /// Records a new page that is in the EPC.
    pub(crate) fn add(&mut self, index: u64, page: EpcPage, max_prot: Prot, kind: PageKind) {
        self.pages.insert(index, EnclPage { place: Place::Resident(page), max_prot, kind });
        self.page_count += 1;
        self.resident += 1;
    }

    /// Forgets a page that was in the EPC.
    pub(crate) fn remove(&mut self, index: u64) {
        self.pages.remove(index);
        self.page_count -= 1;
        self.resident -= 1;
    }

    pub(crate) fn set_place(&mut self, index: u64, place: Place) {
        self.pages.get_mut(index).expect("a page in transit has a record").place = place;
    }
}
