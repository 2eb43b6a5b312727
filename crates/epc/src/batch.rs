//! The pages that a reclaim pass handles together, in groups of one owner.
//!
//! Owners are asked about all their pages at once. A batch keeps each of them alive.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::owner::Victim;
use crate::owners::OwnerId;

/// Pages of one owner, which stand together in a batch.
struct Group<H> {
    owner: H,
    pages: usize,
}

/// Pages in the order of their owners, and for each of these in that of their indices.
pub(crate) struct Batch<H> {
    groups: Vec<Group<H>>,
    victims: Vec<Victim>,
}

impl<H> Batch<H> {
    /// Puts together pages, in their order, and those who own them, in any order and not only once.
    pub(crate) fn new(
        mut owners: Vec<(OwnerId, H)>,
        victims: impl ExactSizeIterator<Item = (OwnerId, Victim)>,
    ) -> Self {
        owners.sort_unstable_by_key(|(id, _)| *id);
        owners.dedup_by_key(|(id, _)| *id);
        let mut batch =
            Self { groups: Vec::with_capacity(owners.len()), victims: Vec::with_capacity(victims.len()) };
        let (mut owners, mut last) = (owners.into_iter(), None);
        for (id, victim) in victims {
            if last != Some(id) {
                let (_, owner) = owners.find(|(owner, _)| *owner == id).expect("a page comes with its owner");
                batch.groups.push(Group { owner, pages: 0 });
                last = Some(id);
            }
            batch.victims.push(victim);
            batch.groups.last_mut().expect("there is one by now").pages += 1;
        }
        batch
    }

    pub(crate) fn victims(&self) -> &[Victim] {
        &self.victims
    }

    fn groups(&self) -> impl Iterator<Item = (&H, Range<usize>)> {
        let mut start = 0;
        self.groups.iter().map(move |group| {
            let pages = start..start + group.pages;
            start = pages.end;
            (&group.owner, pages)
        })
    }

    /// Calls `each` with each owner and its pages.
    pub(crate) fn for_each_owner(&self, each: impl Fn(&H, &[Victim])) {
        self.groups().for_each(|(owner, pages)| each(owner, &self.victims[pages]));
    }

    /// Calls `ask` with each owner, its pages, and room for an answer about each; returns all answers.
    pub(crate) fn ask<A: Copy>(&self, default: A, ask: impl Fn(&H, &[Victim], &mut [A])) -> Vec<A> {
        let mut answers = vec![default; self.victims.len()];
        for (owner, pages) in self.groups() {
            ask(owner, &self.victims[pages.clone()], &mut answers[pages]);
        }
        answers
    }

    /// Drops the pages that are not to be kept, and owners without pages. `keep` has an entry for each page.
    pub(crate) fn retain(&mut self, keep: &[bool]) {
        let mut rest = keep;
        for group in &mut self.groups {
            let (pages, others) = rest.split_at(group.pages);
            group.pages = pages.iter().filter(|keep| **keep).count();
            rest = others;
        }
        self.groups.retain(|group| group.pages != 0);
        let mut keep = keep.iter();
        self.victims.retain(|_| keep.next() == Some(&true));
    }
}
