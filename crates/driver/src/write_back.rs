//! Writing back: EWB with its tracking, and the way back when something refuses.
//!
//! ETRACK comes only after the processor asked for it, and once for a whole batch: it tracks every page of
//! the enclave that was blocked before it. The kick comes only when threads are still inside after that, and
//! is made without the lock; the pages wait as `Reclaiming`, which nobody else touches.
//!
//! What Linux does and we do not: when EWB fails, Linux counts the page as evicted and hands out an EPC page
//! that still is valid. Here the page stays the enclave's, `Blocked`, and the next pass or fault tries again.
//! When the store refuses what EWB produced, the page is loaded back to where it was.
//! Source: Linux, arch/x86/kernel/cpu/sgx/main.c; SDM volume 3D, "EWB", "ETRACK".

use alloc::vec;

use usgx_epc::{Victim, Written};
use usgx_isa::{Encls, EpcPage, EvictedPage, LeafError, LinAddr, SgxCode};

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
enum Attempt {
    /// In the store, with its version in the slot; the EPC page is invalid.
    Written(SlotRef),
    /// In the EPC, usable again.
    Restored,
    /// Nowhere. The EPC page is invalid.
    Lost(SlotRef),
    /// In the EPC, blocked: threads may still use translations to it.
    Untracked,
    /// In the EPC, blocked: the processor refused.
    Refused,
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
        let mut left = vec![true; victims.len()];
        for round in 0..ROUNDS {
            let mut tracked = false;
            for ((victim, written), left) in victims.iter().zip(&mut *written).zip(&mut left) {
                if !*left {
                    continue;
                }
                let after = match (round, tracked) {
                    (0, false) => After::Nothing,
                    (0, true) => After::Etrack,
                    _ => After::Kick,
                };
                let mut attempt = self.attempt(&mut state, transit, victim, after);
                if matches!(attempt, Attempt::Untracked) && !tracked {
                    tracked = true;
                    self.etrack(&mut state);
                    attempt = self.attempt(&mut state, transit, victim, after.max(After::Etrack));
                }
                if matches!(attempt, Attempt::Untracked) {
                    // Neither will the others be, before a kick: they were blocked together.
                    break;
                }
                *written = self.settle(&mut state, victim, &attempt);
                *left = false;
            }
            if !left.contains(&true) || round + 1 == ROUNDS {
                break;
            }
            drop(state);
            self.kick();
            state = self.lock();
        }
        for ((victim, written), _) in victims.iter().zip(&mut *written).zip(left).filter(|(_, left)| *left) {
            *written = self.settle(&mut state, victim, &Attempt::Untracked);
        }
        if state.resident == 0 && self.may_leave() {
            self.write_back_secs(&mut state, transit);
        }
        state
    }

    /// EWB of one page, and what must follow it at once. `after` says what was tried before.
    fn attempt(
        &self,
        state: &mut State,
        transit: &mut EvictedPage,
        victim: &Victim,
        after: After,
    ) -> Attempt {
        let slot = state.va.take().expect("there is a slot for each page in the EPC");
        match self.kernel.hw.ewb(victim.page, state.va.slot(slot), transit) {
            // "Occupied" is a remark: the eviction is done. It would mean that our books of the slots are wrong.
            Ok(_) | Err(LeafError::Code(SgxCode::VaSlotOccupied)) => {
                if self.kernel.store.put(self.id, victim.index, transit).is_ok() {
                    self.note(Event::Evict { addr: self.victim_addr(victim), after });
                    return Attempt::Written(slot);
                }
                let attempt = self.restore(state, transit, victim, slot);
                if matches!(attempt, Attempt::Lost(_)) {
                    // It did leave the EPC.
                    self.note(Event::Evict { addr: self.victim_addr(victim), after });
                    self.note(Event::Lose { addr: self.victim_addr(victim) });
                }
                attempt
            }
            Err(error) => {
                state.va.give_back(slot);
                match error {
                    LeafError::Code(SgxCode::NotTracked) => Attempt::Untracked,
                    _ => Attempt::Refused,
                }
            }
        }
    }

    /// The linear address of a page, 0 for the SECS.
    fn victim_addr(&self, victim: &Victim) -> u64 {
        if victim.index == self.secs_index() { 0 } else { self.addr(victim.index) }
    }

    /// Loads what EWB just produced back into the EPC page that it came from.
    fn restore(&self, state: &mut State, transit: &EvictedPage, victim: &Victim, slot: SlotRef) -> Attempt {
        let is_secs = victim.index == self.secs_index();
        let addr = LinAddr(self.victim_addr(victim));
        let secs = if is_secs { None } else { state.secs_page() };
        match self.kernel.hw.eldu(victim.page, state.va.slot(slot), addr, secs, transit) {
            Ok(()) => {
                state.va.give_back(slot);
                Attempt::Restored
            }
            Err(_) => Attempt::Lost(slot),
        }
    }

    /// Records the outcome for a child page.
    fn settle(&self, state: &mut State, victim: &Victim, attempt: &Attempt) -> Written {
        let (place, written) = match *attempt {
            Attempt::Written(slot) => (Place::Evicted(slot), Written::Gone),
            Attempt::Lost(slot) => (Place::Lost(slot), Written::Gone),
            Attempt::Restored => (Place::Resident(victim.page), Written::Kept),
            Attempt::Untracked | Attempt::Refused => (Place::Blocked(victim.page), Written::Kept),
        };
        state.set_place(victim.index, place);
        if written == Written::Gone {
            state.resident -= 1;
        }
        if !matches!(attempt, Attempt::Written(_)) {
            self.kernel.store.discard(self.id, victim.index);
        }
        written
    }

    /// Writes back the SECS of an enclave none of whose pages is in the EPC. If anything refuses, it stays.
    fn write_back_secs(&self, state: &mut State, transit: &mut EvictedPage) {
        let index = self.secs_index();
        let Some(Place::Resident(page)) = state.secs else { return };
        if self.kernel.epc.is_poisoned(page) || self.kernel.store.reserve(self.id, index).is_err() {
            return;
        }
        match self.attempt(state, transit, &Victim { page, index }, After::Nothing) {
            Attempt::Written(slot) => {
                state.secs = Some(Place::Evicted(slot));
                self.kernel.free_secs(page);
            }
            Attempt::Lost(slot) => {
                state.secs = Some(Place::Lost(slot));
                self.kernel.store.discard(self.id, index);
                self.kernel.free_secs(page);
            }
            Attempt::Restored | Attempt::Untracked | Attempt::Refused => {
                self.kernel.store.discard(self.id, index);
            }
        }
    }

    /// Makes a `Blocked` page usable again. There is no leaf that unblocks, so it goes out and comes back in.
    pub(crate) fn unblock(&self, state: &mut State, index: u64, page: EpcPage) -> Result<EpcPage, LoadError> {
        self.kernel.transits.with(|transit| self.unblock_through(transit, state, index, page))
    }

    fn unblock_through(
        &self,
        transit: &mut EvictedPage,
        state: &mut State,
        index: u64,
        page: EpcPage,
    ) -> Result<EpcPage, LoadError> {
        let victim = Victim { page, index };
        let slot = state.va.take().expect("there is a slot for each page in the EPC");
        let result = self.kernel.hw.ewb(page, state.va.slot(slot), transit);
        if !matches!(result, Ok(_) | Err(LeafError::Code(SgxCode::VaSlotOccupied))) {
            state.va.give_back(slot);
            self.etrack(state);
            return Err(LoadError::Busy(Obstacle::NotTracked));
        }
        match self.restore(state, transit, &victim, slot) {
            Attempt::Restored => {
                state.set_place(index, Place::Resident(page));
                Ok(page)
            }
            // The EPC page is invalid but still on the reclaimer's list, from which it can be taken only if no
            // pass has it. A pass would find the page `Blocked` and be refused, again and again; so it is given
            // up here, with the contents, which the processor refused to take back.
            _ => {
                if self.kernel.epc.unmark_reclaimable(page).is_ok() {
                    state.set_place(index, Place::Lost(slot));
                    state.resident -= 1;
                    self.kernel.release(page);
                    self.note(Event::Evict { addr: self.addr(index), after: After::Nothing });
                    self.note(Event::Lose { addr: self.addr(index) });
                }
                Err(LoadError::Failed)
            }
        }
    }
}
