//! Version arrays: for each page that an enclave has, a slot for the version of its evicted copy.
//!
//! A VA page has 512 slots. It can be evicted itself, which `va_paging` is about. The enclave gets one whenever it would
//! have more pages than slots. Linux decides by the page count alone, and so allocates another VA page
//! each time a removal and an addition cross a multiple of 512 (sgx_encl_grow in Linux's ioctl.c);
//! counting the slots that are there gives the same numbers without that growth. Source: Linux,
//! arch/x86/kernel/cpu/sgx/ioctl.c and encl.c.

use smallvec::SmallVec;
use usgx_isa::{EpcPage, VaSlot};

use crate::page::SlotRef;

/// Slots in a VA page.
pub(crate) const SLOTS: u64 = 512;

/// Where a VA page is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum VaPlace {
    /// In the EPC.
    Resident(EpcPage),
    /// In the backing store, its version in a slot of a root page.
    Evicted(VaSlot),
    /// Nowhere, and with it the pages whose versions it held.
    Lost,
}

struct VaPage {
    place: VaPlace,
    used: [u64; 8],
    nr_free: u16,
    /// Slots in the hands of threads that write pages back: they use them without the enclave's lock.
    nr_pinned: u16,
    /// Used since the reclaimer asked last.
    young: bool,
}

/// The version array pages of an enclave. Most have one, which is then found here and not elsewhere in memory.
#[derive(Default)]
pub(crate) struct VaPages {
    pages: SmallVec<[VaPage; 1]>,
    /// Those in the EPC with free slots; the last one is used next.
    with_free: SmallVec<[u32; 4]>,
    /// Free slots of those in the EPC.
    nr_free: u64,
    /// Pinned slots of all.
    nr_pinned: u64,
    /// Those in the EPC of which the reclaimer does not know.
    unlisted: SmallVec<[u32; 4]>,
    nr_lost: u64,
}

impl VaPages {
    /// Whether one more page than `page_count` needs another VA page.
    pub(crate) fn must_grow(&self, page_count: u64) -> bool {
        page_count >= self.nr_slots()
    }

    /// Adds an empty VA page.
    pub(crate) fn grow(&mut self, page: EpcPage) {
        let va = u32::try_from(self.pages.len()).expect("the EPC has fewer pages than that");
        let place = VaPlace::Resident(page);
        self.pages.push(VaPage { place, used: [0; 8], nr_free: SLOTS as u16, nr_pinned: 0, young: true });
        self.with_free.push(va);
        self.unlisted.push(va);
        self.nr_free += SLOTS;
    }

    /// Takes away the VA page added last, if no slot of it is used and the reclaimer does not know it.
    pub(crate) fn shrink(&mut self) -> Option<EpcPage> {
        let va = self.pages.len().checked_sub(1)? as u32;
        if self.free_slots_of(va) != SLOTS {
            return None;
        }
        self.unlisted.last().filter(|last| **last == va)?;
        self.unlisted.pop();
        let VaPlace::Resident(page) = self.pages.pop()?.place else { return None };
        self.with_free.retain(|other| *other != va);
        self.nr_free -= SLOTS;
        Some(page)
    }

    /// Has `list` tell the reclaimer of the VA pages in the EPC that it does not know.
    pub(crate) fn list(&mut self, mut list: impl FnMut(u32, EpcPage)) {
        for va in self.unlisted.drain(..) {
            if let VaPlace::Resident(page) = self.pages[va as usize].place {
                list(va, page);
            }
        }
    }

    /// Moves a VA page between the EPC and elsewhere.
    pub(crate) fn set_place(&mut self, va: u32, place: VaPlace) {
        let page = &mut self.pages[va as usize];
        let free = u64::from(page.nr_free);
        if matches!(page.place, VaPlace::Resident(_)) {
            self.nr_free -= free;
            self.with_free.retain(|other| *other != va);
        }
        (page.place, page.young) = (place, true);
        match place {
            VaPlace::Resident(_) => {
                self.nr_free += free;
                self.unlisted.push(va);
                if free != 0 {
                    self.with_free.push(va);
                }
            }
            VaPlace::Evicted(_) => {}
            VaPlace::Lost => self.nr_lost += 1,
        }
    }

    pub(crate) fn place(&self, va: u32) -> VaPlace {
        self.pages[va as usize].place
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = VaPlace> {
        self.pages.iter().map(|page| page.place)
    }

    /// Whether the VA page was used since the last call.
    pub(crate) fn test_and_clear_young(&mut self, va: u32) -> bool {
        core::mem::take(&mut self.pages[va as usize].young)
    }

    /// Free slots of the VA pages that are in the EPC.
    pub(crate) fn free_slots(&self) -> u64 {
        self.nr_free
    }

    /// Free slots of one VA page.
    pub(crate) fn free_slots_of(&self, va: u32) -> u64 {
        u64::from(self.pages[va as usize].nr_free)
    }

    pub(crate) fn is_full(&self, va: u32) -> bool {
        self.pages[va as usize].nr_free == 0
    }

    /// A VA page that is not in the EPC and has free slots.
    pub(crate) fn evicted_with_room(&self) -> Option<u32> {
        let has_room = |page: &VaPage| page.nr_free != 0 && matches!(page.place, VaPlace::Evicted(_));
        self.pages.iter().position(has_room).map(|va| va as u32)
    }

    /// Takes a free slot. There always is one for a page of the enclave that has none.
    pub(crate) fn take(&mut self) -> Option<SlotRef> {
        self.take_of(*self.with_free.last()?)
    }

    /// Takes a free slot of the VA page of the slot `previous`, or else of one that has none pinned, and pins it. So
    /// threads that write back at the same time do not meet on a VA page's locks and cache lines.
    pub(crate) fn take_pinned(&mut self, previous: Option<SlotRef>) -> Option<SlotRef> {
        let same = previous.map(SlotRef::va).filter(|va| !self.is_full(*va));
        let unused = || self.with_free.iter().rev().find(|va| !self.is_pinned(**va)).copied();
        let va = same.or_else(unused).or_else(|| self.with_free.last().copied())?;
        let slot = self.take_of(va)?;
        self.pages[va as usize].nr_pinned += 1;
        self.nr_pinned += 1;
        Some(slot)
    }

    /// Takes a free slot of a VA page in the EPC, if it has one.
    fn take_of(&mut self, va: u32) -> Option<SlotRef> {
        let page = &mut self.pages[va as usize];
        let (word, bits) = page.used.iter_mut().enumerate().find(|(_, bits)| **bits != u64::MAX)?;
        let bit = bits.trailing_ones();
        *bits |= 1 << bit;
        (page.nr_free, page.young) = (page.nr_free - 1, true);
        self.nr_free -= 1;
        if page.nr_free == 0 {
            self.with_free.retain(|other| *other != va);
        }
        Some(SlotRef::new(va, (word * 64) as u16 + bit as u16))
    }

    /// Lets the VA page of a pinned slot leave the EPC again.
    pub(crate) fn unpin(&mut self, slot: SlotRef) {
        self.pages[slot.va() as usize].nr_pinned -= 1;
        self.nr_pinned -= 1;
    }

    /// Pinned slots: as many pages in the EPC have theirs already.
    pub(crate) fn nr_pinned(&self) -> u64 {
        self.nr_pinned
    }

    /// Whether a slot of the VA page is pinned.
    pub(crate) fn is_pinned(&self, va: u32) -> bool {
        self.pages[va as usize].nr_pinned != 0
    }

    /// Gives back a slot whose version the processor has taken out.
    pub(crate) fn give_back(&mut self, slot: SlotRef) {
        let page = &mut self.pages[slot.va() as usize];
        let (word, bit) = (usize::from(slot.slot() / 64), 1 << (slot.slot() % 64));
        debug_assert_ne!(page.used[word] & bit, 0, "a free slot is given back");
        page.used[word] &= !bit;
        (page.nr_free, page.young) = (page.nr_free + 1, true);
        self.nr_free += 1;
        if page.nr_free == 1 {
            self.with_free.push(slot.va());
        }
    }

    /// The slot as the processor names it. Its VA page is in the EPC.
    pub(crate) fn slot(&self, slot: SlotRef) -> VaSlot {
        match self.place(slot.va()) {
            VaPlace::Resident(page) => VaSlot { page, index: slot.slot() },
            place => panic!("a slot of a VA page that is {place:?} is used"),
        }
    }

    /// The VA pages in the EPC, and their EPC pages.
    pub(crate) fn resident(&self) -> impl Iterator<Item = (u32, EpcPage)> {
        (0..).zip(self.places()).filter_map(|(va, place)| match place {
            VaPlace::Resident(page) => Some((va, page)),
            _ => None,
        })
    }

    pub(crate) fn nr_evicted(&self) -> u64 {
        self.places().filter(|place| matches!(place, VaPlace::Evicted(_))).count() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// Slots that can be used, now or after a load.
    pub(crate) fn nr_slots(&self) -> u64 {
        (self.pages.len() as u64 - self.nr_lost) * SLOTS
    }

    pub(crate) fn is_lost(&self, slot: SlotRef) -> bool {
        self.place(slot.va()) == VaPlace::Lost
    }

    pub(crate) fn nr_used(&self) -> u64 {
        let usable = self.pages.iter().filter(|page| page.place != VaPlace::Lost);
        usable.map(|page| SLOTS - u64::from(page.nr_free)).sum()
    }

    pub(crate) fn is_used(&self, slot: SlotRef) -> bool {
        self.pages[slot.va() as usize].used[usize::from(slot.slot() / 64)] & (1 << (slot.slot() % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

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
    fn batches_take_their_slots_of_different_pages() {
        let mut va = VaPages::default();
        va.grow(EpcPage(7));
        va.grow(EpcPage(9));
        let mut batch = |len| {
            let mut slots: Vec<SlotRef> = Vec::new();
            for _ in 0..len {
                slots.extend(va.take_pinned(slots.last().copied()));
            }
            slots
        };
        let (one, two, three) = (batch(16), batch(500), batch(32));
        assert!(one.iter().all(|slot| slot.va() == 1) && two.iter().all(|slot| slot.va() == 0));
        assert_eq!(three.iter().filter(|slot| slot.va() == 1).count(), 32, "of the one that has most");
        assert_eq!((va.nr_pinned(), va.nr_used()), (548, 548));
        one.iter().chain(&three).for_each(|slot| va.unpin(*slot));
        assert!(va.is_pinned(0) && !va.is_pinned(1));
    }

    #[test]
    fn the_last_page_can_be_given_up() {
        let mut va = VaPages::default();
        va.grow(EpcPage(7));
        va.grow(EpcPage(9));
        assert_eq!(va.shrink(), Some(EpcPage(9)));
        assert_eq!(va.take().map(|slot| va.slot(slot).page), Some(EpcPage(7)));
        va.grow(EpcPage(11));
        assert_eq!(va.take().map(|slot| va.slot(slot).page), Some(EpcPage(11)));
        assert_eq!(va.shrink(), None, "a pass was faster, and needs it");
        assert_eq!(va.free_slots(), 1022);
    }
}
