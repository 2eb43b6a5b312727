//! A map from an enclave's page numbers to something small, for many pages.
//!
//! Entries live in blocks of 32: an enclave whose pages lie side by side pays little more than the entries, and of
//! neighbours that are looked up one after the other only the first is searched for. A page that lies alone pays for a
//! block.

use std::cell::Cell;
use std::collections::HashMap;

/// Entries of a block.
const BLOCK: usize = 32;
/// No block has this number.
const NO_BLOCK: u64 = u64::MAX;

#[derive(Debug)]
struct Block<T> {
    entries: [Option<T>; BLOCK],
    used: u32,
}

/// The map.
#[derive(Debug)]
pub(crate) struct PageMap<T> {
    /// Where in `blocks` the block with a number is.
    places: HashMap<u64, usize>,
    blocks: Vec<Option<Box<Block<T>>>>,
    /// Places in `blocks` that are empty.
    free: Vec<usize>,
    /// The block that was found last, and its place.
    last: Cell<(u64, usize)>,
    len: usize,
}

impl<T> Default for PageMap<T> {
    fn default() -> Self {
        Self {
            places: HashMap::new(),
            blocks: Vec::new(),
            free: Vec::new(),
            last: Cell::new((NO_BLOCK, 0)),
            len: 0,
        }
    }
}

const fn split(index: u64) -> (u64, usize) {
    (index / BLOCK as u64, (index % BLOCK as u64) as usize)
}

impl<T> PageMap<T> {
    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the block with a number is.
    fn place(&self, number: u64) -> Option<usize> {
        let (last, place) = self.last.get();
        if last == number {
            return Some(place);
        }
        let place = *self.places.get(&number)?;
        self.last.set((number, place));
        Some(place)
    }

    fn block(&mut self, number: u64) -> Option<&mut Block<T>> {
        let place = self.place(number)?;
        self.blocks[place].as_deref_mut()
    }

    /// Makes a block that is not there.
    fn add_block(&mut self, number: u64) -> &mut Block<T> {
        let place = self.free.pop().unwrap_or_else(|| {
            self.blocks.push(None);
            self.blocks.len() - 1
        });
        self.places.insert(number, place);
        self.last.set((number, place));
        self.blocks[place].insert(Box::new(Block { entries: [const { None }; BLOCK], used: 0 }))
    }

    fn remove_block(&mut self, number: u64) {
        if let Some(place) = self.places.remove(&number) {
            self.blocks[place] = None;
            self.free.push(place);
        }
        self.last.set((NO_BLOCK, 0));
    }

    /// The entry of a page.
    pub(crate) fn get(&self, index: u64) -> Option<&T> {
        let (number, at) = split(index);
        self.blocks[self.place(number)?].as_ref()?.entries[at].as_ref()
    }

    /// The entry of a page.
    pub(crate) fn get_mut(&mut self, index: u64) -> Option<&mut T> {
        let (number, at) = split(index);
        self.block(number)?.entries[at].as_mut()
    }

    /// Sets the entry of a page; returns what was there.
    pub(crate) fn insert(&mut self, index: u64, entry: T) -> Option<T> {
        let (number, at) = split(index);
        let block = match self.place(number) {
            Some(place) => self.blocks[place].as_deref_mut().expect("a block that has a place is there"),
            None => self.add_block(number),
        };
        let old = block.entries[at].replace(entry);
        if old.is_none() {
            block.used += 1;
            self.len += 1;
        }
        old
    }

    /// Removes the entry of a page; an empty block is given back.
    pub(crate) fn remove(&mut self, index: u64) -> Option<T> {
        let (number, at) = split(index);
        let block = self.block(number)?;
        let old = block.entries[at].take()?;
        block.used -= 1;
        let is_empty = block.used == 0;
        self.len -= 1;
        if is_empty {
            self.remove_block(number);
        }
        Some(old)
    }

    /// All entries with their pages, in any order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.places
            .iter()
            .filter_map(|(number, place)| Some((number, self.blocks[*place].as_ref()?)))
            .flat_map(|(number, block)| {
                let first = number * BLOCK as u64;
                (first..).zip(&block.entries).filter_map(|(index, entry)| Some((index, entry.as_ref()?)))
            })
    }

    /// Removes all entries.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn agrees_with_a_map() {
        let mut seed = 7_u64;
        let mut next = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed >> 33
        };
        let (mut pages, mut plain) = (PageMap::default(), BTreeMap::new());
        for _ in 0..20_000 {
            let (index, value) = (next() % 200 + ((next() % 2) << 28), next());
            if next() % 2 == 0 {
                assert_eq!(pages.insert(index, value), plain.insert(index, value));
            } else {
                assert_eq!(pages.remove(index), plain.remove(&index));
            }
            assert_eq!(pages.get(index), plain.get(&index));
            assert_eq!(pages.len(), plain.len());
        }
        let found: BTreeMap<u64, u64> = pages.iter().map(|(index, value)| (index, *value)).collect();
        assert_eq!(found, plain);
        for index in plain.into_keys() {
            *pages.get_mut(index).expect("is there") += 1;
            pages.remove(index);
        }
        assert!(pages.blocks.iter().all(Option::is_none), "empty blocks are given back");
    }
}
