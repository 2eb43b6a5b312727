//! The pages of an enclave, by index.
//!
//! Records live in blocks of 32 in an ordered map: dense enough that a full enclave pays little more than the
//! records, and small enough that a program which spreads its pages thinly pays 400 bytes for each at most.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use crate::page::EnclPage;

/// Records in a block.
const BLOCK: usize = 32;

type Block = Box<[Option<EnclPage>; BLOCK]>;

/// A map from page index to record.
#[derive(Default)]
pub(crate) struct PageTable {
    blocks: BTreeMap<u64, Block>,
}

const fn split(index: u64) -> (u64, usize) {
    (index / BLOCK as u64, (index % BLOCK as u64) as usize)
}

impl PageTable {
    pub(crate) fn get(&self, index: u64) -> Option<&EnclPage> {
        let (block, at) = split(index);
        self.blocks.get(&block)?[at].as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: u64) -> Option<&mut EnclPage> {
        let (block, at) = split(index);
        self.blocks.get_mut(&block)?[at].as_mut()
    }

    /// Adds a record where there is none.
    pub(crate) fn insert(&mut self, index: u64, page: EnclPage) {
        let (block, at) = split(index);
        let old = self.blocks.entry(block).or_insert_with(|| Box::new([None; BLOCK]))[at].replace(page);
        debug_assert!(old.is_none(), "two pages with index {index}");
    }

    pub(crate) fn remove(&mut self, index: u64) {
        let (block, at) = split(index);
        if let Some(records) = self.blocks.get_mut(&block) {
            records[at] = None;
            if records.iter().all(Option::is_none) {
                self.blocks.remove(&block);
            }
        }
    }

    /// The records with indices from `first` to `last`, both included, ascending.
    pub(crate) fn range(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, &EnclPage)> {
        let blocks = self.blocks.range(split(first).0..=split(last).0);
        blocks
            .flat_map(|(block, records)| {
                (0u64..)
                    .zip(records.iter())
                    .filter_map(move |(at, page)| page.as_ref().map(|page| (block * BLOCK as u64 + at, page)))
            })
            .skip_while(move |(index, _)| *index < first)
            .take_while(move |(index, _)| *index <= last)
    }

    /// All records, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &EnclPage)> {
        self.range(0, u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use usgx_isa::EpcPage;

    use super::*;
    use crate::page::{PageKind, Place, Prot};

    fn page(number: u32) -> EnclPage {
        EnclPage { place: Place::Resident(EpcPage(number)), max_prot: Prot::R, kind: PageKind::Reg }
    }

    #[test]
    fn ranges_are_in_order_and_end_where_they_should() {
        let mut table = PageTable::default();
        let indices = [0, 31, 32, 33, 95, 1 << 40];
        for (number, index) in (0..).zip(indices) {
            table.insert(index, page(number));
        }
        let found =
            |first, last| table.range(first, last).map(|(index, _)| index).collect::<alloc::vec::Vec<_>>();
        assert_eq!(found(0, u64::MAX), indices);
        assert_eq!(found(31, 33), [31, 32, 33]);
        assert_eq!(found(34, 94), []);
        assert_eq!(found(33, 95), [33, 95]);
        assert_eq!(table.get(95), Some(&page(4)));
        table.remove(95);
        table.remove(95);
        assert_eq!((table.get(95), table.blocks.len()), (None, 3), "an empty block is given back");
    }
}
