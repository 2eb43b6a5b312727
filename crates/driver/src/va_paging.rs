//! Paging of version arrays: when a VA page may leave the EPC, and its way out and back.
//!
//! A VA page is on the reclaimer's list like any page of the enclave, under a number behind the SECS's. It needs no
//! blocking and no tracking, as nobody but the driver has it mapped. What it needs is this: for each page of the
//! enclave in the EPC, the SECS included, a free slot in a VA page that is in the EPC as well, so that no
//! eviction ever has to wait for a load. So of an enclave at work, VA pages go whose slots are taken; when
//! everything else has gone, all of them. Where an SECS has to stay before INIT (as on Linux), only full ones go until then.
//! One with slots that threads without the lock are about to use is pinned, and stays in any case.
//! Source of the rules: SDM volume 3D, "EWB", "ELDB/ELDU/ELDBC/ELDUC".

use core::sync::atomic::Ordering::Relaxed;

use usgx_epc::{Age, Reclaim, Used, Victim, Written};
use usgx_isa::{Encls, EpcPage, EvictedPage, LeafError, LinAddr, SgxCode, VaSlot};

use crate::driver::Kernel;
use crate::enclave::Inner;
use crate::event::Event;
use crate::paging::LoadError;
use crate::patience::Supply;
use crate::roots::Roots;
use crate::seams::{BackingStore, Machine, StoreError};
use crate::state::State;
use crate::va::VaPlace;

impl<M: Machine> Kernel<M> {
    /// Takes a slot of a root page; a new root page only if one is free at once.
    fn take_root_slot(&self) -> Option<VaSlot> {
        let mut roots = self.roots.lock();
        if let Some(slot) = roots.take() {
            return Some(slot);
        }
        let page = self.epc.alloc(Reclaim::Forbidden).ok()?;
        if self.hw.epa(page).is_err() {
            self.release(page);
            return None;
        }
        self.va_pages.fetch_add(1, Relaxed);
        roots.grow(page);
        roots.take()
    }

    /// Makes a root page of one of the pages that were just written back, if no root slot is free and no page either, as
    /// is usual when threads reclaim for themselves; tells whether it did.
    pub(crate) fn make_root(&self, victims: &[Victim], written: &mut [Written]) -> bool {
        if self.epc.free_pages() != 0 {
            return false;
        }
        let gone = victims.iter().zip(written).find(|(_, written)| **written == Written::Gone);
        let Some((victim, written)) = gone else { return false };
        *written = self.keep_victim_as_root(victim.page);
        *written == Written::Taken
    }

    /// Makes a root page of a page that has just become invalid, if no root slot is free; tells whether it did.
    ///
    /// With this at hand whenever an SECS leaves the EPC, or a VA page takes the last root slot, an idle enclave's VA
    /// pages find a root slot when no page is free any more. Otherwise an EPC could fill with VA pages that none can leave.
    fn keep_as_root(&self, page: EpcPage) -> bool {
        let mut roots = self.roots.lock();
        let made = self.make_if_missing(&roots, page);
        if made {
            roots.grow(page);
        }
        made
    }

    /// The same with a page of a reclaim pass; tells what became of it.
    fn keep_victim_as_root(&self, page: EpcPage) -> Written {
        let mut roots = self.roots.lock();
        if !self.make_if_missing(&roots, page) {
            return Written::Gone;
        }
        // Before others can find it: whoever empties the root page frees it, at once.
        self.epc.take_written(page);
        roots.grow(page);
        Written::Taken
    }

    /// Makes a VA page of an invalid page, if no root slot is free; tells whether it did.
    fn make_if_missing(&self, roots: &Roots, page: EpcPage) -> bool {
        let made = !roots.has_room() && !self.epc.is_poisoned(page) && self.hw.epa(page).is_ok();
        if made {
            self.va_pages.fetch_add(1, Relaxed);
        }
        made
    }

    /// Frees the page that an SECS has left, or keeps it for the VA page that is to follow.
    pub(crate) fn free_secs(&self, page: EpcPage) {
        if !self.config.behaviour.evict_va || !self.keep_as_root(page) {
            self.epc.free(page);
        }
    }

    /// Whether enclaves have VA pages in the EPC, which may want to leave it.
    fn has_va_pages(&self, roots: &Roots) -> bool {
        self.va_pages.load(Relaxed) > roots.len()
    }

    /// Gives up root pages without which there are free slots enough.
    pub(crate) fn drop_spare_roots(&self) {
        loop {
            let spare = {
                let mut roots = self.roots.lock();
                let needed = self.has_va_pages(&roots);
                roots.take_spare(needed)
            };
            let Some(page) = spare else { break };
            self.release_va(page);
        }
    }

    /// Gives back a slot of a root page. A version that is still in it is no harm: EWB writes over it.
    fn give_root_slot(&self, slot: VaSlot) {
        self.roots.lock().give_back(slot);
        self.drop_spare_roots();
    }

    /// Frees what an enclave that ends had of VA pages.
    pub(crate) fn release_va_pages(&self, places: impl Iterator<Item = VaPlace>) {
        for place in places {
            match place {
                VaPlace::Resident(page) => {
                    self.epc
                        .unmark_reclaimable(page)
                        .expect("a pass holds a reference to the owner of its pages");
                    self.release_va(page);
                }
                VaPlace::Evicted(root) => self.roots.lock().give_back(root),
                VaPlace::Lost => {}
            }
        }
        self.drop_spare_roots();
    }
}

impl<M: Machine> Inner<M> {
    /// The number of a VA page, for the backing store and the reclaimer: behind that of the SECS.
    fn va_index(&self, va: u32) -> u64 {
        self.secs_index() + 1 + u64::from(va)
    }

    /// The VA page that the reclaimer knows as `index`, if it is one.
    fn va_number(&self, index: u64) -> u32 {
        u32::try_from(index - self.secs_index() - 1).expect("an enclave has less than 2^23 VA pages")
    }

    /// Lets the reclaimer have the VA pages that it does not know yet.
    pub(crate) fn list_va_pages(&self, state: &mut State) {
        if !self.kernel.config.behaviour.evict_va {
            return;
        }
        let first = self.va_index(0);
        state.va.list(|va, page| {
            self.kernel.epc.mark_reclaimable(page, self.owner, first + u64::from(va));
        });
    }

    /// Whether the VA page can go and leave a free slot for each page that is in the EPC.
    fn can_spare(&self, state: &State, va: u32) -> bool {
        if state.va.is_pinned(va) {
            return false;
        }
        if !self.may_leave() {
            return state.va.is_full(va);
        }
        state.va.free_slots() - state.va.free_slots_of(va) >= state.slots_needed()
    }

    /// Tells the age of a VA page.
    pub(crate) fn age_va(&self, state: &mut State, victim: &Victim, used: Used) -> Age {
        let va = self.va_number(victim.index);
        if used == Used::Spared && state.va.test_and_clear_young(va) {
            return Age::Young;
        }
        // With the last child gone the SECS goes too, right before the VA pages.
        let idle = state.resident == 0 && self.may_leave();
        if !idle && !self.can_spare(state, va) {
            Age::Needed
        } else if self.kernel.store.reserve(self.id, victim.index).is_err() {
            Age::Refused
        } else {
            Age::Old
        }
    }

    /// Writes a VA page back, if it still can go.
    pub(crate) fn write_back_va(&self, state: &mut State, victim: &Victim) -> Written {
        let va = self.va_number(victim.index);
        if !self.can_spare(state, va) || !self.try_write_back_va(state, victim, va) {
            self.kernel.store.discard(self.id, victim.index);
            return Written::Kept;
        }
        self.kernel.va_pages.fetch_sub(1, Relaxed);
        let more = {
            let roots = self.kernel.roots.lock();
            self.kernel.has_va_pages(&roots)
        };
        if more { self.kernel.keep_victim_as_root(victim.page) } else { Written::Gone }
    }

    /// EWB of a VA page, and what must follow it at once; tells whether the EPC page is free now.
    fn try_write_back_va(&self, state: &mut State, victim: &Victim, va: u32) -> bool {
        let kernel = &self.kernel;
        let Some(root) = kernel.take_root_slot() else { return false };
        kernel.transits.with(|transit| self.write_back_va_through(transit, state, victim, va, root))
    }

    fn write_back_va_through(
        &self,
        transit: &mut EvictedPage,
        state: &mut State,
        victim: &Victim,
        va: u32,
        root: VaSlot,
    ) -> bool {
        let kernel = &self.kernel;
        if kernel.ewb(victim.page, root, transit).is_err() {
            kernel.give_root_slot(root);
            return false;
        }
        if kernel.store.put(self.id, victim.index, transit).is_ok() {
            self.note(Event::EvictVa { va: u64::from(va) });
            state.va.set_place(va, VaPlace::Evicted(root));
            return true;
        }
        let restored = kernel.hw.eldu(victim.page, root, LinAddr(0), None, transit).is_ok();
        kernel.give_root_slot(root);
        if !restored {
            // It did leave the EPC.
            self.note(Event::EvictVa { va: u64::from(va) });
            self.note(Event::LoseVa { va: u64::from(va) });
            state.va.set_place(va, VaPlace::Lost);
            kernel.store.discard(self.id, victim.index);
        }
        !restored
    }

    /// Brings a VA page into the EPC, so that its slots can be used.
    pub(crate) fn load_va(
        &self,
        state: &mut State,
        va: u32,
        supply: &mut Supply<'_, M>,
    ) -> Result<(), LoadError> {
        let kernel = &self.kernel;
        let root = match state.va.place(va) {
            VaPlace::Resident(_) => return Ok(()),
            VaPlace::Lost => return Err(LoadError::Failed),
            VaPlace::Evicted(root) => root,
        };
        let page: EpcPage = supply.take()?;
        let index = self.va_index(va);
        let loaded = kernel.transits.with(|transit| {
            kernel.store.get(self.id, index, transit)?;
            Ok::<_, StoreError>(kernel.hw.eldu(page, root, LinAddr(0), None, transit))
        });
        let Ok(loaded) = loaded else {
            supply.put_back(page);
            return Err(LoadError::Failed);
        };
        match loaded {
            Ok(()) => {
                kernel.store.discard(self.id, self.va_index(va));
                kernel.va_pages.fetch_add(1, Relaxed);
                self.note(Event::LoadVa { va: u64::from(va) });
                state.va.set_place(va, VaPlace::Resident(page));
                self.list_va_pages(state);
                kernel.give_root_slot(root);
                Ok(())
            }
            Err(error) => {
                kernel.release(page);
                if error == LeafError::Code(SgxCode::MacCompareFail) {
                    // The pages whose versions it holds will never load again.
                    self.note(Event::LoseVa { va: u64::from(va) });
                    kernel.store.discard(self.id, self.va_index(va));
                    state.va.set_place(va, VaPlace::Lost);
                    kernel.give_root_slot(root);
                }
                Err(LoadError::Failed)
            }
        }
    }

    /// Makes sure that there is a slot for one more page in the EPC; tells whether the enclave got a VA page for it.
    ///
    /// Precondition: the SECS is in the EPC.
    pub(crate) fn make_room(&self, state: &mut State, supply: &mut Supply<'_, M>) -> Result<bool, LoadError> {
        while state.va.free_slots() <= state.slots_needed() {
            if let Some(va) = state.va.evicted_with_room() {
                self.load_va(state, va, supply)?;
                continue;
            }
            let page = supply.take()?;
            self.make_va_page(page).map_err(|_| LoadError::Failed)?;
            state.va.grow(page);
            return Ok(true);
        }
        Ok(false)
    }
}
