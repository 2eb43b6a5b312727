//! One reclaim pass: a batch of pages from the old end of the list, second chance for those that were used.
//!
//! The batch moves `Isolated` → `Marked` → `Blocked` → written, each a type that the next step consumes, so no
//! page is written back that was not blocked and none is blocked that its owner did not agree to give. Pages
//! are handled in groups of one owner. No lock is held in any call to an owner but [`PageOwner::get`]. A pass holds
//! every owner alive; dropping the last reference to one at the end of a pass destroys it here.
//! Called by `ksgxd`, by allocations without a free page, and by the SGX2 ioctls when pages are few.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use usgx_isa::EpcPage;

use crate::batch::Batch;
use crate::epc::Epc;
use crate::lru::Lru;
use crate::order::check_none_held;
use crate::owner::{Age, HeldOwner, PageOwner, Used, Victim, Written};
use crate::platform::Platform;
use crate::state::PageState;

/// Pages that one pass looks at on Linux, and the fewest here. One ETRACK pays for all of a batch that belong to one
/// enclave.
pub const BATCH: usize = 16;

/// Pages off the list.
struct Isolated<H> {
    batch: Batch<H>,
    /// Their places in the list, for going back in the same order.
    order: Vec<usize>,
}
/// Pages that their owners are ready to give up, and nobody can map any more.
struct Marked<H>(Batch<H>);
/// Marked pages that are in no address space and blocked.
struct Blocked<H>(Batch<H>);

impl<P: Platform, O: PageOwner> Epc<P, O> {
    /// Looks at a batch of pages and reclaims those that were not used; returns how many it freed.
    pub fn reclaim_pass(&self) -> usize {
        self.pass(Used::Spared)
    }

    fn pass(&self, used: Used) -> usize {
        check_none_held::<P>("a reclaim pass");
        self.counters.passes.fetch_add(1, Relaxed);
        self.platform.reclaim_begins();
        let isolated = self.isolate();
        let looked_at = isolated.order.len();
        let freed = isolated.age(self, used).block().write(self);
        self.platform.reclaim_ends(looked_at, freed);
        // Release: pairs with the Acquire of whoever waits for this pass, and then looks for its pages.
        self.counters.ended.fetch_add(1, Release);
        self.platform.wake_waiters();
        freed
    }

    /// As many passes as it takes to look at every page that is on the list now and to reclaim it, used or not; returns
    /// how many they freed. If it was none, and another pass is at work, which may put pages back, waits for that one.
    pub fn reclaim_round(&self) -> usize {
        let (active, start) = (self.lru.lock().len() as u64, self.counters.scanned.load(Relaxed));
        let mut freed = 0;
        while self.counters.scanned.load(Relaxed) - start < active && self.can_reclaim() {
            freed += self.pass(Used::Taken);
        }
        let seen = self.passes_ended();
        if freed == 0 && !self.is_quiet_since(seen) {
            self.wait_for_pass(seen);
        }
        freed
    }

    /// Gives an owner a page that it has just written back, for other use, before the pass is through with it. From here
    /// on the page is owned, not reclaimable, and may even be freed while the pass goes on. Called by
    /// [`HeldOwner::write`], which reports [`Written::Taken`].
    pub fn take_written(&self, page: EpcPage) {
        self.leave_pass(&mut self.lru.lock(), page);
    }

    fn leave_pass(&self, lru: &mut Lru<O>, page: EpcPage) {
        lru.clear_owner(page);
        self.states[page.index()].change(PageState::Reclaiming, PageState::Owned);
    }

    /// How many passes have ended. Read before one meets a page in reclaim, it names what to wait for.
    pub fn passes_ended(&self) -> u64 {
        // Acquire: pairs with the Release in `reclaim_pass`, and keeps later looks at pages after this one.
        self.counters.ended.load(Acquire)
    }

    /// Waits until more than `seen` passes have ended; now and then returns early. No lock may be held.
    pub fn wait_for_pass(&self, seen: u64) {
        check_none_held::<P>("waiting for a reclaim pass");
        self.platform.wait_until(&|| self.passes_ended() != seen);
    }

    /// Whether no pass is at work and none has ended since [`passes_ended`](Self::passes_ended) was `seen`.
    pub(crate) fn is_quiet_since(&self, seen: u64) -> bool {
        // In this order: a pass that began before the first reading and has not ended makes the two differ. Relaxed:
        // who missed pages that a pass took off the list has taken the list's lock after it.
        self.counters.passes.load(Relaxed) == seen && self.passes_ended() == seen
    }

    fn isolate(&self) -> Isolated<O::Held> {
        let missing = self.marks.high.saturating_sub(self.counters.free());
        let mut lru = self.lru.lock();
        let batch = self.policy.batch(missing, lru.len());
        let mut found = Vec::with_capacity(batch);
        for order in 0..batch {
            let Some(page) = lru.pop_front() else { break };
            let (id, index) = lru.owner(page).expect("a page on the list has an owner");
            self.states[page.index()].change(PageState::Active, PageState::Reclaiming);
            found.push((id, Victim { page, index }, order));
        }
        // With the lock held: who finds the pages gone finds them counted.
        self.counters.scanned.fetch_add(found.len() as u64, Relaxed);
        let mut owners = Vec::new();
        found.retain(|(id, victim, _)| {
            // One reference for a run of its pages.
            if owners.last().is_none_or(|(last, _)| last != id) {
                let Some(owner) = lru.owners.get(*id).get() else {
                    // The destruction of its owner frees it; it counts as one of the batch all the same.
                    self.leave_pass(&mut lru, victim.page);
                    return false;
                };
                owners.push((*id, owner));
            }
            true
        });
        drop(lru);
        found.sort_unstable_by_key(|(id, victim, _)| (*id, victim.index));
        let victims = found.iter().map(|(id, victim, _)| (*id, *victim));
        Isolated { batch: Batch::new(owners, victims), order: found.iter().map(|found| found.2).collect() }
    }

    /// Puts pages back on the list, as the newest ones; broken ones stay with their owners for good.
    fn put_back(&self, pages: impl Iterator<Item = EpcPage>) {
        let mut lru = self.lru.lock();
        for page in pages {
            if self.poison.has(page) {
                self.leave_pass(&mut lru, page);
                continue;
            }
            self.states[page.index()].change(PageState::Reclaiming, PageState::Active);
            lru.push_back(page);
        }
    }
}

impl<H: HeldOwner> Isolated<H> {
    fn age<P: Platform, O: PageOwner<Held = H>>(self, epc: &Epc<P, O>, used: Used) -> Marked<H> {
        let Self { mut batch, order } = self;
        let ages = batch.ask(Age::Young, |owner, victims, ages| owner.age(victims, used, ages));
        let count = |kind| ages.iter().filter(|age| **age == kind).count();
        let (young, refused, needed) = (count(Age::Young), count(Age::Refused), count(Age::Needed));
        epc.counters.young.fetch_add(young as u64, Relaxed);
        epc.counters.refused.fetch_add(refused as u64, Relaxed);
        epc.counters.needed.fetch_add(needed as u64, Relaxed);
        // Where others of the batch were young the next pass may find these free to go.
        let in_vain = refused + if young == 0 { needed } else { 0 };
        epc.counters.refused_in_vain.fetch_add(in_vain, Relaxed);
        let is_old: Vec<bool> = ages.iter().map(|age| *age == Age::Old).collect();
        let pages = batch.victims().iter().map(|victim| victim.page);
        let mut kept: Vec<_> = order.into_iter().zip(pages).zip(&is_old).filter(|(_, old)| !**old).collect();
        kept.sort_unstable_by_key(|((order, _), _)| *order);
        epc.put_back(kept.iter().map(|((_, page), _)| *page));
        batch.retain(&is_old);
        Marked(batch)
    }
}

impl<H: HeldOwner> Marked<H> {
    fn block(self) -> Blocked<H> {
        self.0.for_each_owner(HeldOwner::block);
        Blocked(self.0)
    }
}

impl<H: HeldOwner> Blocked<H> {
    fn write<P: Platform, O: PageOwner<Held = H>>(self, epc: &Epc<P, O>) -> usize {
        let written = self.0.ask(Written::Kept, HeldOwner::write);
        let those = |kind| {
            let outcome = self.0.victims().iter().zip(&written);
            outcome.filter(move |(_, written)| **written == kind).map(|(victim, _)| victim.page)
        };
        let kept = those(Written::Kept).count();
        epc.counters.refused_in_vain.fetch_add(kept, Relaxed);
        epc.counters.kept.fetch_add(kept as u64, Relaxed);
        epc.put_back(those(Written::Kept));
        {
            let mut lru = epc.lru.lock();
            those(Written::Gone).for_each(|page| epc.leave_pass(&mut lru, page));
        }
        epc.free_all(those(Written::Gone));
        let freed = those(Written::Gone).count();
        epc.counters.reclaimed.fetch_add((written.len() - kept) as u64, Relaxed);
        // Only now, with every page where it belongs, may the owners go.
        freed
    }
}
