//! The driver's own version array pages, whose slots hold the versions of evicted VA pages.
//!
//! An enclave that nobody uses gives up every EPC page: its pages, then its SECS, then the VA pages that hold their
//! versions. Those need versions too, in slots of *root* pages, which belong to no enclave and never leave the EPC: one
//! for 512 VA pages, so for 250 thousand pages of enclaves. A root page with no slot in use is given back.
//!
//! Lock order: under an enclave's lock; only the EPC manager's locks are taken with this one held.

use alloc::collections::{BTreeMap, BTreeSet};

use usgx_isa::{EpcPage, VaSlot};

use crate::va::SLOTS;

struct Root {
    used: [u64; 8],
    nr_used: u64,
}

/// All root pages.
#[derive(Default)]
pub(crate) struct Roots {
    pages: BTreeMap<EpcPage, Root>,
    with_free: BTreeSet<EpcPage>,
}

impl Roots {
    /// Adds an empty VA page.
    pub(crate) fn grow(&mut self, page: EpcPage) {
        self.pages.insert(page, Root { used: [0; 8], nr_used: 0 });
        self.with_free.insert(page);
    }

    /// Whether a slot is free.
    pub(crate) fn has_room(&self) -> bool {
        !self.with_free.is_empty()
    }

    /// Takes a free slot, of the same page as long as that has one, so that others become empty.
    pub(crate) fn take(&mut self) -> Option<VaSlot> {
        let page = *self.with_free.first()?;
        let root = self.pages.get_mut(&page)?;
        let (word, bits) = root.used.iter_mut().enumerate().find(|(_, bits)| **bits != u64::MAX)?;
        let bit = bits.trailing_ones();
        *bits |= 1 << bit;
        root.nr_used += 1;
        if root.nr_used == SLOTS {
            self.with_free.remove(&page);
        }
        Some(VaSlot { page, index: (word * 64) as u16 + bit as u16 })
    }

    /// Gives back a slot.
    pub(crate) fn give_back(&mut self, slot: VaSlot) {
        let root = self.pages.get_mut(&slot.page).expect("a slot in use is on a root page");
        let (word, bit) = (usize::from(slot.index / 64), 1 << (slot.index % 64));
        debug_assert_ne!(root.used[word] & bit, 0, "a free root slot is given back");
        root.used[word] &= !bit;
        root.nr_used -= 1;
        self.with_free.insert(slot.page);
    }

    /// Takes out a page with no slot in use, unless it is the last one with free slots and these may be needed.
    pub(crate) fn take_spare(&mut self, needed: bool) -> Option<EpcPage> {
        if needed && self.with_free.len() == 1 {
            return None;
        }
        let page = *self.with_free.iter().find(|page| self.pages[page].nr_used == 0)?;
        self.pages.remove(&page);
        self.with_free.remove(&page);
        Some(page)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.pages.len() as u64
    }

    pub(crate) fn pages(&self) -> impl Iterator<Item = EpcPage> {
        self.pages.keys().copied()
    }

    pub(crate) fn nr_used(&self) -> u64 {
        self.pages.values().map(|root| root.nr_used).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_unique_and_spare_pages_go() {
        let mut roots = Roots::default();
        assert_eq!(roots.take(), None);
        roots.grow(EpcPage(9));
        let slots: BTreeSet<u16> = (0..512).map(|_| roots.take().expect("a slot").index).collect();
        assert_eq!((slots.len(), roots.take()), (512, None));
        roots.grow(EpcPage(3));
        let other = roots.take().expect("a slot");
        assert_eq!((other.page, roots.nr_used()), (EpcPage(3), 513));
        for index in 0..511 {
            roots.give_back(VaSlot { page: EpcPage(9), index });
            assert_eq!(roots.take_spare(false), None);
        }
        roots.give_back(VaSlot { page: EpcPage(9), index: 511 });
        assert_eq!((roots.take_spare(true), roots.len()), (Some(EpcPage(9)), 1));
        roots.give_back(other);
        assert_eq!(roots.take_spare(true), None, "the last one stays as long as it may be needed");
        assert_eq!((roots.take_spare(false), roots.len()), (Some(EpcPage(3)), 0));
    }
}
