//! The list of reclaimable pages: first in, first out, over all owners and nodes.
//!
//! One doubly linked list through an array with an entry for each page of the EPC, so that a page is taken
//! out of the middle in constant time and nothing is allocated. The owner of a page is known from the moment
//! it becomes reclaimable until it is freed or taken back. Everything here is protected by the `lru` lock, the owners
//! included.

use alloc::boxed::Box;
use core::hint::black_box;
use core::iter::repeat_with;

use usgx_isa::EpcPage;

use crate::owners::{OwnerId, Owners};

/// "No page" in a link. The EPC never has that many pages (that would be 16 TiB).
const NONE: u32 = u32::MAX;
/// How far an entry sees.
const AHEAD: usize = 8;

struct Entry {
    prev: u32,
    next: u32,
    /// The page that came so many pages later: while this one is taken off the list, that one's entry can be on its way
    /// from memory. A walk along `next` alone would wait for each entry in turn. Only a hint: the page may have left.
    ahead: u32,
    owner: Option<OwnerId>,
    /// The owner's name for the page.
    index: u64,
}

const _: () = assert!(size_of::<Entry>() == 24, "an entry for each page of the EPC");

/// The active list.
pub(crate) struct Lru<O> {
    entries: Box<[Entry]>,
    pub(crate) owners: Owners<O>,
    head: u32,
    tail: u32,
    len: usize,
    /// The pages that came last, in a ring, and how many came.
    newest: [u32; AHEAD],
    came: usize,
}

impl<O> Lru<O> {
    pub(crate) fn new(pages: usize) -> Self {
        let entry = || Entry { prev: NONE, next: NONE, ahead: NONE, owner: None, index: 0 };
        Self {
            entries: repeat_with(entry).take(pages).collect(),
            owners: Owners::new(),
            head: NONE,
            tail: NONE,
            len: 0,
            newest: [NONE; AHEAD],
            came: 0,
        }
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
        let before = core::mem::replace(&mut self.newest[self.came % AHEAD], page.0);
        self.came = self.came.wrapping_add(1);
        if let Some(before) = self.entries.get_mut(before as usize) {
            before.ahead = page.0;
        }
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
        let ahead = self.entries[head.index()].ahead;
        black_box(self.entries.get(ahead as usize).map(|entry| entry.next));
        self.remove(head);
        Some(head)
    }
}
