//! The owners of reclaimable pages, each known once for all its pages.
//!
//! A page says whose it is by an [`OwnerId`], and costs its owner nothing by that: no reference is taken or dropped for
//! any page, which threads that reclaim pages of one owner would have to take turns at. Kept with the list of
//! reclaimable pages, under its lock.

use alloc::vec::Vec;
use core::num::NonZeroU32;

/// An owner of pages, as [`Epc::add_owner`](crate::Epc::add_owner) named it. Named anew when that one is gone.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct OwnerId(NonZeroU32);

impl OwnerId {
    fn new(place: usize) -> Self {
        let number = u32::try_from(place + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("fewer owners than that"))
    }

    fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

struct Entry<O> {
    owner: O,
    /// Pages of which it is known that they are this owner's.
    nr_pages: u32,
}

/// All owners.
pub(crate) struct Owners<O> {
    entries: Vec<Option<Entry<O>>>,
    /// Names that are no owner's.
    unused: Vec<OwnerId>,
}

impl<O> Owners<O> {
    pub(crate) const fn new() -> Self {
        Self { entries: Vec::new(), unused: Vec::new() }
    }

    pub(crate) fn add(&mut self, owner: O) -> OwnerId {
        let entry = Some(Entry { owner, nr_pages: 0 });
        let id = self.unused.pop().unwrap_or_else(|| {
            self.entries.push(None);
            OwnerId::new(self.entries.len() - 1)
        });
        self.entries[id.place()] = entry;
        id
    }

    /// Takes out an owner, who must have no pages any more.
    pub(crate) fn remove(&mut self, id: OwnerId) -> O {
        let entry = self.entries[id.place()].take().expect("an owner is removed once");
        assert_eq!(entry.nr_pages, 0, "pages of an owner that is removed");
        self.unused.push(id);
        entry.owner
    }

    pub(crate) fn get(&self, id: OwnerId) -> &O {
        &self.entries[id.place()].as_ref().expect("an owner with pages is there").owner
    }

    pub(crate) fn note_page(&mut self, id: OwnerId) {
        self.entry(id).nr_pages += 1;
    }

    pub(crate) fn note_page_gone(&mut self, id: OwnerId) {
        self.entry(id).nr_pages -= 1;
    }

    fn entry(&mut self, id: OwnerId) -> &mut Entry<O> {
        self.entries[id.place()].as_mut().expect("pages have an owner that is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_used_again() {
        let mut owners = Owners::new();
        let (a, b) = (owners.add('a'), owners.add('b'));
        assert_eq!((owners.remove(a), *owners.get(b)), ('a', 'b'));
        let c = owners.add('c');
        assert_eq!((c, *owners.get(c), *owners.get(b)), (a, 'c', 'b'));
    }

    #[test]
    #[should_panic(expected = "pages of an owner that is removed")]
    fn an_owner_of_pages_stays() {
        let mut owners = Owners::new();
        let owner = owners.add(());
        owners.note_page(owner);
        owners.note_page(owner);
        owners.note_page_gone(owner);
        owners.remove(owner);
    }
}
