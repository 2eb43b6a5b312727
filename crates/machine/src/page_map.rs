//! A map from an enclave's page numbers to something small, for many pages.
//!
//! Entries live in blocks of 32: an enclave whose pages lie side by side pays little more than the entries, and a
//! look-up is one probe for all neighbours. A page that lies alone pays for a block.

use std::collections::HashMap;

/// Entries of a block.
const BLOCK: usize = 32;

#[derive(Debug)]
struct Block<T> {
    entries: [Option<T>; BLOCK],
    used: u32,
}

/// The map.
#[derive(Debug)]
pub(crate) struct PageMap<T> {
    blocks: HashMap<u64, Box<Block<T>>>,
    len: usize,
}

impl<T> Default for PageMap<T> {
    fn default() -> Self {
        Self { blocks: HashMap::new(), len: 0 }
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

    /// The entry of a page.
    pub(crate) fn get(&self, index: u64) -> Option<&T> {
        let (block, at) = split(index);
        self.blocks.get(&block)?.entries[at].as_ref()
    }

    /// The entry of a page.
    pub(crate) fn get_mut(&mut self, index: u64) -> Option<&mut T> {
        let (block, at) = split(index);
        self.blocks.get_mut(&block)?.entries[at].as_mut()
    }

    /// Sets the entry of a page; returns what was there.
    pub(crate) fn insert(&mut self, index: u64, entry: T) -> Option<T> {
        let (block, at) = split(index);
        let empty = || Box::new(Block { entries: [const { None }; BLOCK], used: 0 });
        let block = self.blocks.entry(block).or_insert_with(empty);
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
        let block = self.blocks.get_mut(&number)?;
        let old = block.entries[at].take()?;
        block.used -= 1;
        self.len -= 1;
        if block.used == 0 {
            self.blocks.remove(&number);
        }
        Some(old)
    }

    /// All entries with their pages, in any order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.blocks.iter().flat_map(|(number, block)| {
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
        assert!(pages.blocks.is_empty(), "empty blocks are given back");
    }
}
