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
        let waits = self.0.enclaves().iter().any(|enclave| enclave.wants_root());
        let evicted: u64 = self.0.enclaves().iter().map(|enclave| enclave.lock().va.nr_evicted()).sum();
        for page in self.0.zombies.lock().pages() {
            assert_eq!(self.0.epc.state(page), PageState::Raw, "only virtual EPCs leave zombies");
        }
        let (epc, roots) = (self.0.epc.stats(), self.0.roots.lock());
        for page in roots.pages() {
            assert_eq!(self.0.epc.state(page), PageState::Owned, "root VA pages are not reclaimable");
        }
        let owned = owned + roots.pages().count() + epc.raw;
        assert_eq!(
            owned, epc.used,
            "every page in use belongs to an enclave that is open or to a virtual EPC, or is a root VA page"
        );
        assert!(!waits || roots.has_room(), "VA pages of idle enclaves find a root slot");
        assert_eq!(evicted, roots.nr_used(), "VA pages that are out and root slots in use");
    }
}

impl<M: Machine> Inner<M> {
    /// Whether nothing of it is left in the EPC but VA pages that can leave.
    fn wants_root(&self) -> bool {
        let state = self.lock();
        let out = matches!(state.secs, Some(Place::Evicted(_) | Place::Lost(_)));
        self.kernel.config.behaviour.evict_va && out && state.va.resident().next().is_some()
    }

    /// Checks one enclave and returns the number of EPC pages that it has.
    fn check(&self) -> usize {
        let (state, epc) = (self.lock(), &self.kernel.epc);
        let (mut resident, mut count, mut slots) = (0, 0, 0);
        let secs = state.secs.iter().map(|place| (None, *place));
        for (index, place) in state.pages.iter().map(|(index, page)| (Some(index), page.place)).chain(secs) {
            count += 1;
            if let Some(slot) = place.slot() {
                assert!(state.va.is_used(slot), "the slot of page {index:?} is taken");
                slots += u64::from(!state.va.is_lost(slot));
            }
            let Some(page) = place.epc_page() else { continue };
            assert!(!matches!(place, Place::Reclaiming(_)), "no pass is at work, yet one has page {index:?}");
            let Some(index) = index else {
                assert_eq!(epc.state(page), PageState::Owned, "the SECS is not reclaimable");
                continue;
            };
            resident += 1;
            if epc.is_poisoned(page) {
                continue;
            }
            assert_eq!(epc.state(page), PageState::Active, "page {index} is reclaimable");
            let (owner, number) = epc.owner(page).expect("a reclaimable page has an owner");
            assert!(owner == self.owner && number == index, "the owner of page {index}");
        }
        assert_eq!(count, state.page_count, "pages and page count");
        assert_eq!(resident, state.resident, "pages in the EPC and their count");
        assert_eq!(slots, state.va.nr_used(), "pages that are out and slots in use");

        for (va, page) in state.va.resident() {
            match epc.owner(page) {
                Some((owner, number)) => {
                    assert_eq!(epc.state(page), PageState::Active, "VA page {va} is reclaimable");
                    assert!(owner == self.owner && number == self.secs_index() + 1 + u64::from(va));
                }
                None => assert_eq!(epc.state(page), PageState::Owned, "VA page {va} is not reclaimable"),
            }
        }
        assert_eq!(state.va.nr_pinned(), 0, "no pass is at work, yet one has pinned slots");
        assert!(state.va.free_slots() >= state.slots_needed(), "no eviction waits for a load");
        assert!(resident == 0 || state.secs_page().is_some(), "children in the EPC have an SECS there");
        resident as usize + state.va.resident().count() + usize::from(state.secs_page().is_some())
    }
}
