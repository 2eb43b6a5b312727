//! The EPC object: what it is made of, and the moves of a single page.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use usgx_isa::EpcPage;

use crate::counters::{Counters, EpcStats, NodeStats};
use crate::lru::Lru;
use crate::nodes::Nodes;
use crate::order::{OrderedMutex, Rank};
use crate::owner::PageOwner;
use crate::owners::OwnerId;
use crate::platform::Platform;
use crate::poison::Poison;
use crate::policy::{Marks, Policy};
use crate::state::{PageState, StateCell};

/// One contiguous piece of EPC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SectionConfig {
    /// The NUMA node.
    pub node: usize,
    /// The first page.
    pub first: EpcPage,
    /// The number of pages.
    pub pages: u32,
}

impl SectionConfig {
    pub(crate) fn contains(&self, page: EpcPage) -> bool {
        page.0 >= self.first.0 && page.0 - self.first.0 < self.pages
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = EpcPage> + use<> {
        (self.first.0..self.first.0 + self.pages).map(EpcPage)
    }
}

/// A reclaim pass has the page; it can not be taken back now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InReclaim;

/// The Enclave Page Cache.
pub struct Epc<P: Platform, O: PageOwner> {
    pub(crate) platform: Arc<P>,
    pub(crate) states: Box<[StateCell]>,
    pub(crate) nodes: Nodes<P>,
    pub(crate) lru: OrderedMutex<P, Lru<O>>,
    pub(crate) counters: Counters,
    pub(crate) poison: Poison,
    pub(crate) policy: Policy,
    pub(crate) marks: Marks,
    total: usize,
}

impl<P: Platform, O: PageOwner> Epc<P, O> {
    /// An EPC of these sections, all of it dirty: [`sanitize`](Self::sanitize) makes it usable.
    ///
    /// # Panics
    /// If sections overlap, or end above the largest page number.
    #[must_use]
    pub fn new(sections: &[SectionConfig], policy: Policy, platform: Arc<P>) -> Self {
        let end = |s: &SectionConfig| s.first.0.checked_add(s.pages).expect("sections end below 2^32 pages");
        let span = sections.iter().map(end).max().unwrap_or(0) as usize;
        let mut states: Box<[StateCell]> = (0..span).map(|_| StateCell::new(PageState::Outside)).collect();
        for page in sections.iter().flat_map(SectionConfig::iter) {
            let state = &mut states[page.index()];
            assert_eq!(state.get(), PageState::Outside, "EPC sections overlap at {page:?}");
            *state = StateCell::new(PageState::Dirty);
        }
        let total = sections.iter().map(|section| section.pages as usize).sum();
        Self {
            platform,
            states,
            nodes: Nodes::new(sections),
            lru: OrderedMutex::new(Rank::LRU, Lru::new(span)),
            counters: Counters::default(),
            poison: Poison::new(span),
            policy,
            marks: policy.marks(total),
            total,
        }
    }

    /// Frees `page`, which the caller owns alone and which the processor considers invalid.
    pub fn free(&self, page: EpcPage) {
        self.free_all(core::iter::once(page));
    }

    /// Frees pages as [`free`](Self::free) does.
    pub(crate) fn free_all(&self, pages: impl Iterator<Item = EpcPage> + Clone) {
        let count = pages.clone().count();
        if count == 0 {
            return;
        }
        // Counted first: a page that is taken at once must not count below 0.
        self.counters.note_freed(count);
        let retired = self.nodes.put(pages, PageState::Owned, &self.states, &self.poison);
        self.counters.note_retired(retired);
    }

    /// Gives up `page`, which the caller owns alone, for good: EREMOVE refuses it.
    pub fn leak(&self, page: EpcPage) {
        self.states[page.index()].change(PageState::Owned, PageState::Leaked);
        self.counters.used.fetch_sub(1, Relaxed);
        self.counters.leaked.fetch_add(1, Relaxed);
    }

    /// Makes an owner known, so that pages can be made reclaimable as its own.
    pub fn add_owner(&self, owner: O) -> OwnerId {
        self.lru.lock().owners.add(owner)
    }

    /// Forgets an owner, in its destruction: all its pages have been freed or taken back.
    ///
    /// # Panics
    /// If a page of it is still reclaimable.
    pub fn remove_owner(&self, id: OwnerId) {
        let owner = self.lru.lock().owners.remove(id);
        // Not under the lock, as nobody knows what that does.
        drop(owner);
    }

    /// Lets reclaim passes have `page`, as the newest one, unless it is broken. `index` is the owner's name for it.
    pub fn mark_reclaimable(&self, page: EpcPage, owner: OwnerId, index: u64) {
        let mut lru = self.lru.lock();
        if self.poison.has(page) {
            return;
        }
        self.states[page.index()].change(PageState::Owned, PageState::Active);
        lru.set_owner(page, owner, index);
        lru.push_back(page);
    }

    /// Takes `page` back from the reclaimer.
    ///
    /// # Errors
    /// A pass has it; the owner will be asked about it, or it will be back on the list soon.
    pub fn unmark_reclaimable(&self, page: EpcPage) -> Result<(), InReclaim> {
        let mut lru = self.lru.lock();
        let state = &self.states[page.index()];
        match state.get() {
            PageState::Reclaiming => return Err(InReclaim),
            PageState::Active => {
                lru.remove(page);
                lru.clear_owner(page);
                state.change(PageState::Active, PageState::Owned);
            }
            // A pass met the page while its owner was already being destroyed, and forgot it.
            _ => {}
        }
        Ok(())
    }

    /// Whether `ksgxd` has work: fewer free pages than the high mark, and something to reclaim.
    pub fn should_reclaim(&self) -> bool {
        self.counters.free() < self.marks.high && self.can_reclaim()
    }

    /// Whether free pages are so few that whoever needs more should reclaim first.
    pub fn is_low(&self) -> bool {
        self.counters.free() < self.marks.low && self.can_reclaim()
    }

    /// Whether any page is on the list of reclaimable pages.
    pub fn can_reclaim(&self) -> bool {
        self.lru.lock().len() != 0
    }

    /// Pages in all sections.
    pub fn total_pages(&self) -> usize {
        self.total
    }

    /// Pages on free lists.
    pub fn free_pages(&self) -> usize {
        self.counters.free()
    }

    /// Reads the counters.
    pub fn stats(&self) -> EpcStats {
        let active = self.lru.lock().len();
        self.counters.read(self.total, active)
    }

    /// Whether `page` was reported as broken.
    pub fn is_poisoned(&self, page: EpcPage) -> bool {
        self.state(page) != PageState::Outside && self.poison.has(page)
    }

    /// Reads the counters of each node, ascending by number.
    pub fn node_stats(&self) -> Vec<NodeStats> {
        self.nodes.stats()
    }

    /// The state of `page`.
    pub fn state(&self, page: EpcPage) -> PageState {
        self.states.get(page.index()).map_or(PageState::Outside, StateCell::get)
    }

    /// The owner of a page that is reclaimable or in reclaim, and the owner's name for it.
    pub fn owner(&self, page: EpcPage) -> Option<(OwnerId, u64)> {
        self.lru.lock().owner(page)
    }

    /// Counts the pages in each state and compares with the lists and counters.
    ///
    /// # Panics
    /// If they disagree. Only for tests, at moments when no other thread is at work.
    pub fn check_invariants(&self) {
        let count = |state| self.states.iter().filter(|cell| cell.get() == state).count();
        let free = count(PageState::Free);
        assert_eq!(free, self.nodes.count_free(), "free states and free lists");
        assert_eq!(free, self.counters.free(), "free states and free counter");
        assert_eq!(count(PageState::Active), self.lru.lock().len(), "active states and active list");
        let raw = count(PageState::Raw);
        assert_eq!(raw, self.counters.raw.load(Relaxed), "raw pages");
        let used = count(PageState::Owned) + count(PageState::Active) + count(PageState::Reclaiming) + raw;
        assert_eq!(used, self.counters.used.load(Relaxed), "used states and used counter");
        assert_eq!(count(PageState::Poisoned), self.counters.poisoned.load(Relaxed), "retired pages");
        let rest = count(PageState::Dirty) + count(PageState::Leaked) + count(PageState::Poisoned);
        assert_eq!(free + used + rest, self.total, "every page is in one state");
    }
}
