//! A set of address ranges: where one process has mapped one enclave.
//!
//! Ranges that touch are one range, so a process that registers piece by piece costs no more than one that
//! registers at once, and a page is never listed twice.

use std::collections::BTreeMap;

/// Disjoint, non-adjacent ranges of addresses.
#[derive(Debug, Default)]
pub(crate) struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// Adds the range from `start` to `end`, exclusive.
    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        let (mut start, mut end) = (start, end);
        // From the right: every range that begins at or before our end and reaches our start.
        while let Some((&first, &last)) = self.0.range(..=end).next_back() {
            if last < start {
                break;
            }
            self.0.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.0.insert(start, end);
    }

    /// Removes the range from `start` to `end`, exclusive.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        while let Some((&first, &last)) = self.0.range(..end).next_back() {
            if last <= start {
                break;
            }
            self.0.remove(&first);
            if last > end {
                self.0.insert(end, last);
            }
            if first < start {
                self.0.insert(first, start);
                break;
            }
        }
    }

    /// The parts of the range from `start` to `end`, exclusive, that are in the set; ascending.
    pub(crate) fn intersect(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let from = self.0.range(..=start).next_back().map_or(start, |(&first, _)| first);
        self.0
            .range(from..end.max(from))
            .map(move |(&first, &last)| (first.max(start), last.min(end)))
            .filter(|(first, last)| first < last)
    }

    /// Whether the page at `addr` is in the set.
    pub(crate) fn has_page(&self, addr: u64) -> bool {
        self.0.range(..=addr).next_back().is_some_and(|(_, &last)| last > addr)
    }

    /// The first address from `addr` on that is in the set.
    pub(crate) fn next(&self, addr: u64) -> Option<u64> {
        if self.has_page(addr) { Some(addr) } else { self.0.range(addr..).next().map(|(&first, _)| first) }
    }

    /// Whether the set is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of ranges.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with one flag for each address, over many random operations.
    #[test]
    fn agrees_with_a_bitmap() {
        let mut seed = 1_u64;
        let mut next = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed >> 33
        };
        let (mut set, mut bits) = (RangeSet::default(), [false; 64]);
        for _ in 0..20_000 {
            let start = next() % 64;
            let end = start + 1 + next() % (64 - start);
            let add = next() % 2 == 0;
            if add {
                set.insert(start, end)
            } else {
                set.remove(start, end)
            }
            bits[start as usize..end as usize].fill(add);
            for (addr, bit) in (0..).zip(bits) {
                assert_eq!(set.has_page(addr), bit);
                let next = (addr..64).find(|&at| bits[at as usize]);
                assert_eq!(set.next(addr), next);
            }
            let (from, to) = (next() % 32, 32 + next() % 32);
            let count: u64 = set.intersect(from, to).map(|(first, last)| last - first).sum();
            assert_eq!(count, bits[from as usize..to as usize].iter().filter(|bit| **bit).count() as u64);
            let runs = (0..64).filter(|&i| bits[i] && (i == 0 || !bits[i - 1])).count();
            assert_eq!(set.len(), runs);
        }
    }
}
