//! Pages that are given away whole, as raw EPC: a virtual EPC's, whose guest builds enclaves in them by itself.
//!
//! What is in them only the guest knows, and so only it could block and write them back: the manager never reclaims
//! them. Their state is one of their own, [`PageState::Raw`], so that such a page can neither become reclaimable nor
//! be freed or lost as an enclave's page: each of these moves says where it starts from. Source: Linux,
//! arch/x86/kernel/cpu/sgx/virt.c, where they are on no list either.

use core::sync::atomic::Ordering::Relaxed;

use usgx_isa::EpcPage;

use crate::epc::Epc;
use crate::owner::PageOwner;
use crate::platform::Platform;
use crate::state::PageState;

impl<P: Platform, O: PageOwner> Epc<P, O> {
    /// Makes `page`, which the caller owns alone, a raw one.
    pub fn mark_raw(&self, page: EpcPage) {
        self.states[page.index()].change(PageState::Owned, PageState::Raw);
        self.counters.raw.fetch_add(1, Relaxed);
    }

    /// Frees `page`, a raw one that is the caller's alone and that the processor considers invalid.
    pub fn free_raw(&self, page: EpcPage) {
        self.states[page.index()].change(PageState::Raw, PageState::Owned);
        self.counters.raw.fetch_sub(1, Relaxed);
        self.free(page);
    }
}
