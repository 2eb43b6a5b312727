//! A check of all books against each other, for tests.

use usgx_epc::PageState;

use crate::driver::Driver;
use crate::enclave::Inner;
use crate::page::Place;
use crate::seams::Machine;

impl<M: Machine> Driver<M> {
    /// Compares what the EPC manager, the enclaves and their version arrays say.
    ///
    /// # Panics
    /// If they disagree. Only for tests, at moments when no other thread is at work.
    pub fn check_invariants(&self) {
        self.0.epc.check_invariants();
        let owned: usize = self.0.enclaves().iter().map(|enclave| enclave.check()).sum();
        let epc = self.0.epc.stats();
        assert_eq!(owned, epc.used, "every page in use belongs to an enclave that is open");
    }
}

impl<M: Machine> Inner<M> {
    /// Checks one enclave and returns the number of EPC pages that it has.
    fn check(&self) -> usize {
        let (state, epc) = (self.lock(), &self.kernel.epc);
        let (mut resident, mut count, mut slots) = (0, 0, 0);
        let secs = state.secs.iter().map(|place| (None, *place));
        for (index, place) in state.pages.iter().map(|(index, page)| (Some(index), page.place)).chain(secs) {
            count += 1;
            if let Some(slot) = place.slot() {
                assert!(state.va.is_used(slot), "the slot of page {index:?} is taken");
                slots += 1;
            }
            let Some(page) = place.epc_page() else { continue };
            assert!(!matches!(place, Place::Reclaiming(_)), "no pass is at work, yet one has page {index:?}");
            let Some(index) = index else {
                assert_eq!(epc.state(page), PageState::Owned, "the SECS is not reclaimable");
                continue;
            };
            resident += 1;
            assert_eq!(epc.state(page), PageState::Active, "page {index} is reclaimable");
            let (owner, number) = epc.owner(page).expect("a reclaimable page has an owner");
            assert!(owner.0.ptr_eq(&self.this) && number == index, "the owner of page {index}");
        }
        assert_eq!(count, state.page_count, "pages and page count");
        assert_eq!(resident, state.resident, "pages in the EPC and their count");
        assert_eq!(slots, state.va.nr_used(), "pages that are out and slots in use");
        assert!(state.va.nr_slots() >= state.page_count, "a slot for every page");
        for page in state.va.pages() {
            assert_eq!(epc.state(page), PageState::Owned, "VA pages are not reclaimable");
        }
        assert!(resident == 0 || state.secs_page().is_some(), "children in the EPC have an SECS there");
        resident as usize + state.va.len() + usize::from(state.secs_page().is_some())
    }
}
