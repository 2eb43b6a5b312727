//! The list of reclaimable pages: first in, first out, over all owners and nodes.
//!
//! One doubly linked list through an array with an entry for each page of the EPC, so that a page is taken
//! out of the middle in constant time and nothing is allocated. The owner of a page is known from the moment
//! it becomes reclaimable until it is freed or taken back. Everything here is protected by the `lru` lock, the owners
//! included.

use alloc::boxed::Box;

use usgx_isa::EpcPage;

use crate::owners::{OwnerId, Owners};

/// "No page" in a link. The EPC never has that many pages (that would be 16 TiB).
const NONE: u32 = u32::MAX;

struct Entry {
    prev: u32,
    next: u32,
    owner: Option<OwnerId>,
    /// The owner's name for the page.
    index: u64,
}

/// The active list.
pub(crate) struct Lru<O> {
    entries: Box<[Entry]>,
    pub(crate) owners: Owners<O>,
    head: u32,
    tail: u32,
    len: usize,
}

impl<O> Lru<O> {
    pub(crate) fn new(pages: usize) -> Self {
        let entries = (0..pages).map(|_| Entry { prev: NONE, next: NONE, owner: None, index: 0 }).collect();
        Self { entries, owners: Owners::new(), head: NONE, tail: NONE, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Records who owns `page`, of which no owner is known.
    pub(crate) fn set_owner(&mut self, page: EpcPage, owner: OwnerId, index: u64) {
        let entry = &mut self.entries[page.index()];
        debug_assert_eq!(entry.owner, None, "the owner of {page:?}");
        (entry.owner, entry.index) = (Some(owner), index);
        self.owners.note_page(owner);
    }

    /// Forgets who owned `page`, which is on no list.
    pub(crate) fn clear_owner(&mut self, page: EpcPage) {
        if let Some(owner) = self.entries[page.index()].owner.take() {
            self.owners.note_page_gone(owner);
        }
    }

    /// Who owns `page`, and the owner's name for it.
    pub(crate) fn owner(&self, page: EpcPage) -> Option<(OwnerId, u64)> {
        let entry = &self.entries[page.index()];
        entry.owner.map(|owner| (owner, entry.index))
    }

    pub(crate) fn push_back(&mut self, page: EpcPage) {
        let tail = self.tail;
        let entry = &mut self.entries[page.index()];
        (entry.prev, entry.next) = (tail, NONE);
        match tail {
            NONE => self.head = page.0,
            _ => self.entries[tail as usize].next = page.0,
        }
        self.tail = page.0;
        self.len += 1;
    }

    /// Takes out `page`, which is on the list.
    pub(crate) fn remove(&mut self, page: EpcPage) {
        let entry = &mut self.entries[page.index()];
        let (prev, next) = (entry.prev, entry.next);
        (entry.prev, entry.next) = (NONE, NONE);
        match prev {
            NONE => self.head = next,
            _ => self.entries[prev as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            _ => self.entries[next as usize].prev = prev,
        }
        self.len -= 1;
    }

    pub(crate) fn pop_front(&mut self) -> Option<EpcPage> {
        let head = (self.head != NONE).then_some(EpcPage(self.head))?;
        self.remove(head);
        Some(head)
    }
}
