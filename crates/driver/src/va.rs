//! Version arrays: for each page that an enclave has, a slot for the version of its evicted copy.
//!
//! A VA page has 512 slots and is itself never evicted, as on Linux. The enclave gets one whenever it would
//! have more pages than slots. Linux decides by the page count alone, and so allocates another VA page
//! each time a removal and an addition cross a multiple of 512 (sgx_encl_grow in Linux's ioctl.c);
//! counting the slots that are there gives the same numbers without that growth. Source: Linux,
//! arch/x86/kernel/cpu/sgx/ioctl.c and encl.c.

use alloc::vec::Vec;

use usgx_isa::{EpcPage, VaSlot};

use crate::page::SlotRef;

/// Slots in a VA page.
pub(crate) const SLOTS: u64 = 512;

struct VaPage {
    page: EpcPage,
    used: [u64; 8],
    nr_free: u16,
}

/// The version array pages of an enclave.
#[derive(Default)]
pub(crate) struct VaPages {
    pages: Vec<VaPage>,
    /// Those with free slots; the last one is used next.
    with_free: Vec<u32>,
}

impl VaPages {
    /// Whether one more page than `page_count` needs another VA page.
    pub(crate) fn must_grow(&self, page_count: u64) -> bool {
        page_count >= self.nr_slots()
    }

    /// Adds an empty VA page.
    pub(crate) fn grow(&mut self, page: EpcPage) {
        let va = u32::try_from(self.pages.len()).expect("the EPC has fewer pages than that");
        self.pages.push(VaPage { page, used: [0; 8], nr_free: SLOTS as u16 });
        self.with_free.push(va);
    }

    /// Takes away the VA page added last, of which no slot is used.
    pub(crate) fn shrink(&mut self) -> Option<EpcPage> {
        let page = self.pages.pop()?;
        debug_assert_eq!(u64::from(page.nr_free), SLOTS, "a VA page in use is given up");
        let va = self.pages.len() as u32;
        self.with_free.retain(|other| *other != va);
        Some(page.page)
    }

    /// Takes a free slot. There always is one for a page of the enclave that has none.
    pub(crate) fn take(&mut self) -> Option<SlotRef> {
        let va = *self.with_free.last()?;
        let page = &mut self.pages[va as usize];
        let (word, bits) = page.used.iter_mut().enumerate().find(|(_, bits)| **bits != u64::MAX)?;
        let bit = bits.trailing_ones();
        *bits |= 1 << bit;
        page.nr_free -= 1;
        if page.nr_free == 0 {
            self.with_free.pop();
        }
        Some(SlotRef::new(va, (word * 64) as u16 + bit as u16))
    }

    /// Gives back a slot whose version the processor has taken out.
    pub(crate) fn give_back(&mut self, slot: SlotRef) {
        let page = &mut self.pages[slot.va() as usize];
        let (word, bit) = (usize::from(slot.slot() / 64), 1 << (slot.slot() % 64));
        debug_assert_ne!(page.used[word] & bit, 0, "a free slot is given back");
        page.used[word] &= !bit;
        page.nr_free += 1;
        if page.nr_free == 1 {
            self.with_free.push(slot.va());
        }
    }

    /// The slot as the processor names it.
    pub(crate) fn slot(&self, slot: SlotRef) -> VaSlot {
        VaSlot { page: self.pages[slot.va() as usize].page, index: slot.slot() }
    }

    /// The EPC pages.
    pub(crate) fn pages(&self) -> impl Iterator<Item = EpcPage> {
        self.pages.iter().map(|page| page.page)
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    pub(crate) fn nr_slots(&self) -> u64 {
        self.pages.len() as u64 * SLOTS
    }

    pub(crate) fn nr_used(&self) -> u64 {
        self.pages.iter().map(|page| SLOTS - u64::from(page.nr_free)).sum()
    }

    pub(crate) fn is_used(&self, slot: SlotRef) -> bool {
        self.pages[slot.va() as usize].used[usize::from(slot.slot() / 64)] & (1 << (slot.slot() % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_slot_is_handed_out_once_and_again_when_given_back() {
        let mut va = VaPages::default();
        assert!(va.must_grow(0) && va.take().is_none());
        va.grow(EpcPage(7));
        assert!(!va.must_grow(511) && va.must_grow(512));
        va.grow(EpcPage(9));
        let slots: Vec<SlotRef> = core::iter::from_fn(|| va.take()).collect();
        let names: BTreeSet<_> = slots.iter().map(|slot| va.slot(*slot)).map(|s| (s.page, s.index)).collect();
        assert_eq!((slots.len(), names.len(), va.nr_used()), (1024, 1024, 1024));
        assert!(names.iter().all(|(page, index)| [7, 9].contains(&page.0) && *index < 512));
        for slot in &slots[100..103] {
            va.give_back(*slot);
            assert!(!va.is_used(*slot));
        }
        assert_eq!(va.take(), Some(slots[100]), "the first free one");
        assert_eq!(va.nr_used(), 1022);
    }

    #[test]
    fn the_last_page_can_be_given_up() {
        let mut va = VaPages::default();
        va.grow(EpcPage(7));
        va.grow(EpcPage(9));
        assert_eq!(va.shrink(), Some(EpcPage(9)));
        assert_eq!(va.take().map(|slot| va.slot(slot).page), Some(EpcPage(7)));
    }
}
