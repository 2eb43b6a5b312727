//! Writing back: EWB with its tracking, and the way back when something refuses.
//!
//! ETRACK comes only after the processor asked for it, and once for a whole batch: it tracks every page of
//! the enclave that was blocked before it. The kick comes only when threads are still inside after that.
//!
//! All this is done without the enclave's lock, so that threads that reclaim pages of one enclave do not wait for each
//! other: the pages are `Reclaiming`, which nobody else touches, and as they count as resident, their SECS stays. The
//! lock is taken to get their slots, whose VA pages stay as long as they are *pinned*, for ETRACK, and in the end to
//! record what became of the pages.
//!
//! What Linux does and we do not: when EWB fails, Linux counts the page as evicted and hands out an EPC page
//! that still is valid. Here the page stays the enclave's, `Blocked`, and the next pass or fault tries again.
//! When the store refuses what EWB produced, the page is loaded back to where it was.
//! Source: Linux, arch/x86/kernel/cpu/sgx/main.c; SDM volume 3D, "EWB", "ETRACK".

use smallvec::SmallVec;
use usgx_epc::{InReclaim, Victim, Written};
use usgx_isa::{Encls, EpcPage, EvictedPage, LeafError, LinAddr, SgxCode, VaSlot};

use crate::driver::Kernel;
use crate::enclave::{Guard, Inner};
use crate::event::{After, Event};
use crate::page::{Place, SlotRef};
use crate::paging::LoadError;
use crate::patience::Obstacle;
use crate::seams::{BackingStore, Machine};
use crate::state::State;

/// Rounds of EWB, each ended by a kick if there is something left. The second is enough when the ETRACK of the
/// first was accepted; the third is for an earlier cycle that had not ended.
const ROUNDS: usize = 3;

/// Where a page is after an attempt to write it back.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Attempt {
    /// In the store, with its version in the slot; the EPC page is invalid.
    Written,
    /// In the buffer only: the store refused it. The EPC page is invalid.
    Unstored,
    /// In the EPC, usable again.
    Restored,
    /// Nowhere. The EPC page is invalid.
    Lost,
    /// In the EPC, blocked: threads may still use translations to it.
    Untracked,
    /// In the EPC, blocked: the processor refused.
    Refused,
}

/// A page on its way out, with the slot for its version.
struct Departure {
    victim: Victim,
    slot: SlotRef,
    /// The slot as the processor names it.
    va_slot: VaSlot,
    attempt: Attempt,
    /// What the last attempt came after.
    after: After,
}

impl Departure {
    fn new(state: &mut State, victim: Victim) -> Self {
        let slot = state.va.take().expect("there is a slot for each page in the EPC");
        Self::with(state, victim, slot)
    }

    /// Pages whose write-back goes on without the lock.
    fn pinned(state: &mut State, victims: &[Victim]) -> SmallVec<[Self; 8]> {
        let mut previous = None;
        let depart = |victim: &Victim| {
            let slot = state.va.take_pinned(previous).expect("there is a slot for each page in the EPC");
            previous = Some(slot);
            Self::with(state, *victim, slot)
        };
        victims.iter().map(depart).collect()
    }

    fn with(state: &State, victim: Victim, slot: SlotRef) -> Self {
        let va_slot = state.va.slot(slot);
        Self { victim, slot, va_slot, attempt: Attempt::Untracked, after: After::Nothing }
    }

    fn is_left(&self) -> bool {
        self.attempt == Attempt::Untracked
    }

    /// Whether the EPC page is invalid now.
    fn has_left(&self) -> bool {
        matches!(self.attempt, Attempt::Written | Attempt::Lost)
    }
}

impl<M: Machine> Inner<M> {
    /// Writes back pages that are `Reclaiming` and blocked, and then the SECS, if it is the only page left. Returns the
    /// enclave's lock.
    pub(crate) fn write_back(&self, victims: &[Victim], written: &mut [Written]) -> Guard<'_, M> {
        self.kernel.transits.with(|transit| self.write_back_through(transit, victims, written))
    }

    fn write_back_through(
        &self,
        transit: &mut EvictedPage,
        victims: &[Victim],
        written: &mut [Written],
    ) -> Guard<'_, M> {
        let mut state = self.lock();
        let mut pages = Departure::pinned(&mut state, victims);
        let mut left = pages.len();
        for round in 0..ROUNDS {
            if left == 0 {
                break;
            }
            drop(state);
            if round != 0 {
                self.kick();
            }
            // Those that are left are the last ones.
            let first = pages.len() - left;
            let done = self.write_out(transit, &mut pages[first..], round);
            left -= done;
            state = self.lock();
            self.settle_all(&mut state, &pages[first..first + done], &mut written[first..]);
        }
        let first = pages.len() - left;
        self.settle_all(&mut state, &pages[first..], &mut written[first..]);
        if state.resident == 0 && self.may_leave() {
            self.write_back_secs(&mut state, transit);
        }
        state
    }

    /// EWB of pages, one after the other, until tracking is in the way of one; returns how many are done. No lock may be
    /// held, and the pages' slots are pinned.
    fn write_out(&self, transit: &mut EvictedPage, pages: &mut [Departure], round: usize) -> usize {
        let mut tracked = false;
        for (done, page) in pages.iter_mut().enumerate() {
            page.after = match (round, tracked) {
                (0, false) => After::Nothing,
                (0, true) => After::Etrack,
                _ => After::Kick,
            };
            self.attempt(transit, page);
            if page.is_left() && !tracked {
                tracked = true;
                self.etrack(&mut self.lock());
                page.after = page.after.max(After::Etrack);
                self.attempt(transit, page);
            }
            if page.is_left() {
                // Neither will the others be, before a kick: they were blocked together.
                return done;
            }
            if page.attempt == Attempt::Unstored {
                self.restore(&self.lock(), transit, page);
            }
        }
        pages.len()
    }

    /// EWB of one page, and into the store with it.
    fn attempt(&self, transit: &mut EvictedPage, page: &mut Departure) {
        page.attempt = match self.kernel.ewb(page.victim.page, page.va_slot, transit) {
            Ok(()) => {
                let stored = self.kernel.store.put(self.id, page.victim.index, transit);
                if stored.is_ok() { Attempt::Written } else { Attempt::Unstored }
            }
            Err(LeafError::Code(SgxCode::NotTracked)) => Attempt::Untracked,
            Err(_) => Attempt::Refused,
        };
    }

    /// The linear address of a page, 0 for the SECS.
    fn victim_addr(&self, victim: &Victim) -> u64 {
        if victim.index == self.secs_index() { 0 } else { self.addr(victim.index) }
    }

    /// Loads what EWB just produced back into the EPC page that it came from.
    fn restore(&self, state: &State, transit: &EvictedPage, page: &mut Departure) {
        let is_secs = page.victim.index == self.secs_index();
        let addr = LinAddr(self.victim_addr(&page.victim));
        let secs = if is_secs { None } else { state.secs_page() };
        let restored = self.kernel.hw.eldu(page.victim.page, page.va_slot, addr, secs, transit);
        page.attempt = if restored.is_ok() { Attempt::Restored } else { Attempt::Lost };
    }

    /// Records the outcome for child pages.
    fn settle_all(&self, state: &mut State, pages: &[Departure], written: &mut [Written]) {
        for (page, written) in pages.iter().zip(written) {
            state.va.unpin(page.slot);
            *written = self.settle(state, page);
        }
    }

    /// Records the outcome for a child page.
    fn settle(&self, state: &mut State, page: &Departure) -> Written {
        self.settle_slot(state, page);
        let place = match page.attempt {
            Attempt::Written => Place::Evicted(page.slot),
            Attempt::Lost => Place::Lost(page.slot),
            Attempt::Restored => Place::Resident(page.victim.page),
            Attempt::Untracked | Attempt::Refused | Attempt::Unstored => Place::Blocked(page.victim.page),
        };
        state.set_place(page.victim.index, place);
        if !page.has_left() {
            return Written::Kept;
        }
        state.resident -= 1;
        Written::Gone
    }

    /// Records what the outcome means for slot and store, and tells of it.
    fn settle_slot(&self, state: &mut State, page: &Departure) {
        let addr = self.victim_addr(&page.victim);
        if page.has_left() {
            self.note(Event::Evict { addr, after: page.after });
        } else {
            state.va.give_back(page.slot);
        }
        if page.attempt == Attempt::Lost {
            self.note(Event::Lose { addr });
        }
        if page.attempt != Attempt::Written {
            self.kernel.store.discard(self.id, page.victim.index);
        }
    }

    /// Writes back the SECS of an enclave none of whose pages is in the EPC. If anything refuses, it stays.
    fn write_back_secs(&self, state: &mut State, transit: &mut EvictedPage) {
        let index = self.secs_index();
        let Some(Place::Resident(page)) = state.secs else { return };
        if self.kernel.epc.is_poisoned(page) || self.kernel.store.reserve(self.id, index).is_err() {
            return;
        }
        let mut secs = Departure::new(state, Victim { page, index });
        self.attempt(transit, &mut secs);
        if secs.attempt == Attempt::Unstored {
            self.restore(state, transit, &mut secs);
        }
        self.settle_slot(state, &secs);
        if secs.has_left() {
            let is_stored = secs.attempt == Attempt::Written;
            state.secs = Some(if is_stored { Place::Evicted(secs.slot) } else { Place::Lost(secs.slot) });
            self.kernel.free_secs(page);
        }
    }

    /// Makes a `Blocked` page usable again. There is no leaf that unblocks, so it goes out and comes back in.
    pub(crate) fn unblock(&self, state: &mut State, index: u64, page: EpcPage) -> Result<EpcPage, LoadError> {
        let kernel = &self.kernel;
        // No pass may have the page while it is out.
        kernel.epc.unmark_reclaimable(page).map_err(|InReclaim| LoadError::Busy(Obstacle::InReclaim))?;
        let mut blocked = Departure::new(state, Victim { page, index });
        kernel.transits.with(|transit| {
            if kernel.ewb(page, blocked.va_slot, transit).is_ok() {
                self.restore(state, transit, &mut blocked);
            }
        });
        if self.settle(state, &blocked) == Written::Gone {
            // The processor refuses to take back what it has just given.
            kernel.release(page);
            return Err(LoadError::Failed);
        }
        kernel.epc.mark_reclaimable(page, self.owner, index);
        if blocked.attempt == Attempt::Restored {
            return Ok(page);
        }
        self.etrack(state);
        Err(LoadError::Busy(Obstacle::NotTracked))
    }
}

impl<M: Machine> Kernel<M> {
    /// EWB. That the slot was *occupied* is a remark, the eviction is done; it would mean that our books of the slots are
    /// wrong.
    pub(crate) fn ewb(
        &self,
        page: EpcPage,
        slot: VaSlot,
        transit: &mut EvictedPage,
    ) -> Result<(), LeafError> {
        match self.hw.ewb(page, slot, transit) {
            Ok(_) | Err(LeafError::Code(SgxCode::VaSlotOccupied)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
