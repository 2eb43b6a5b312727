//! An enclave as the reclaimer knows it: an owner of pages.
//!
//! Ageing takes time, for system calls or for page tables, so it happens without the enclave's lock, as on Linux. Then
//! old pages are marked, with the lock: faults leave them alone from here on, and so does everything else that looks at
//! a page. A page that a fault has mapped in between goes all the same, since what is marked is taken out of all address
//! spaces before it is blocked, which again needs no lock.
//! Source: Linux, arch/x86/kernel/cpu/sgx/main.c.

use alloc::sync::{Arc, Weak};
use smallvec::{SmallVec, smallvec};
use usgx_epc::{Age, HeldOwner, PageOwner, Used, Victim, Written};
use usgx_isa::{Encls, EpcPage};

use crate::enclave::Inner;
use crate::page::Place;
use crate::seams::{AddressSpaces, BackingStore, Machine};

/// An enclave as the EPC manager knows it.
pub(crate) struct Owner<M: Machine>(pub(crate) Weak<Inner<M>>);

/// An enclave that lives until a reclaim pass is through.
pub(crate) struct Held<M: Machine>(Arc<Inner<M>>);

impl<M: Machine> PageOwner for Owner<M> {
    type Held = Held<M>;

    fn get(&self) -> Option<Held<M>> {
        self.0.upgrade().map(Held)
    }
}

impl<M: Machine> Held<M> {
    /// Child pages, and VA pages, which nobody has mapped and which need no blocking.
    fn split<'a>(&self, victims: &'a [Victim]) -> (&'a [Victim], &'a [Victim]) {
        let secs = self.0.secs_index();
        victims.split_at(victims.partition_point(|victim| victim.index < secs))
    }

    fn located(&self, victims: &[Victim]) -> SmallVec<[(u64, EpcPage); 16]> {
        victims.iter().map(|victim| (self.0.addr(victim.index), victim.page)).collect()
    }

    /// Tells the age of child pages, and makes room in the store for the old ones.
    fn age_children(&self, victims: &[Victim], used: Used, ages: &mut [Age]) {
        if victims.is_empty() {
            return;
        }
        let (id, kernel) = (self.0.id, &self.0.kernel);
        let mut young: SmallVec<[bool; 16]> = smallvec![false; victims.len()];
        if used == Used::Spared {
            kernel.spaces.test_and_clear_young(id, &self.located(victims), &mut young);
        }
        for ((victim, young), age) in victims.iter().zip(young).zip(ages) {
            *age = if young {
                Age::Young
            } else if kernel.store.reserve(id, victim.index).is_err() {
                Age::Refused
            } else {
                Age::Old
            };
        }
    }
}

impl<M: Machine> HeldOwner for Held<M> {
    fn age(&self, victims: &[Victim], used: Used, ages: &mut [Age]) {
        let (victims, va_pages) = self.split(victims);
        let (ages, va_ages) = ages.split_at_mut(victims.len());
        self.age_children(victims, used, ages);
        if va_pages.is_empty() && !ages.contains(&Age::Old) {
            return;
        }
        let mut state = self.0.lock();
        for (victim, age) in va_pages.iter().zip(va_ages) {
            *age = self.0.age_va(&mut state, victim, used);
        }
        for (victim, _) in victims.iter().zip(ages).filter(|(_, age)| **age == Age::Old) {
            state.set_place(victim.index, Place::Reclaiming(victim.page));
        }
    }

    fn block(&self, victims: &[Victim]) {
        let (victims, _) = self.split(victims);
        if victims.is_empty() {
            return;
        }
        self.0.kernel.spaces.zap(self.0.id, &self.located(victims));
        for victim in victims {
            // A page that is blocked already (an earlier write-back failed) says so, and is as good. Any other
            // refusal shows again in EWB, which has a way back.
            let _ = self.0.kernel.hw.eblock(victim.page);
        }
    }

    fn write(&self, victims: &[Victim], written: &mut [Written]) {
        let (victims, va_pages) = self.split(victims);
        let (written, va_written) = written.split_at_mut(victims.len());
        let mut state = self.0.write_back(victims, written);
        let made_root = !va_pages.is_empty() && self.0.kernel.make_root(victims, written);
        for (victim, written) in va_pages.iter().zip(va_written) {
            *written = self.0.write_back_va(&mut state, victim);
        }
        if made_root {
            self.0.kernel.drop_spare_roots();
        }
    }
}
