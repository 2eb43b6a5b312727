//! Counters of the EPC. They are statistics and watermarks, never locks: accesses are relaxed where no reason for
//! another order is given.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The live counters.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) free: AtomicUsize,
    pub(crate) used: AtomicUsize,
    /// Those of `used` that are given away whole.
    pub(crate) raw: AtomicUsize,
    pub(crate) peak_used: AtomicUsize,
    pub(crate) leaked: AtomicUsize,
    pub(crate) poisoned: AtomicUsize,
    pub(crate) sanitized: AtomicBool,
    pub(crate) passes: AtomicU64,
    /// Those of `passes` that have ended, with every page where it belongs.
    pub(crate) ended: AtomicU64,
    pub(crate) scanned: AtomicU64,
    pub(crate) young: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) needed: AtomicU64,
    pub(crate) kept: AtomicU64,
    pub(crate) reclaimed: AtomicU64,
    pub(crate) direct: AtomicU64,
    /// Pages that owners refused since a page was freed last.
    pub(crate) refused_in_vain: AtomicUsize,
}

impl Counters {
    pub(crate) fn note_allocated(&self) {
        self.free.fetch_sub(1, Relaxed);
        let used = self.used.fetch_add(1, Relaxed) + 1;
        self.peak_used.fetch_max(used, Relaxed);
    }

    pub(crate) fn note_freed(&self, count: usize) {
        self.refused_in_vain.store(0, Relaxed);
        self.used.fetch_sub(count, Relaxed);
        self.free.fetch_add(count, Relaxed);
    }

    /// Pages that were counted as freed are retired instead.
    pub(crate) fn note_retired(&self, count: usize) {
        if count != 0 {
            self.free.fetch_sub(count, Relaxed);
            self.poisoned.fetch_add(count, Relaxed);
        }
    }

    pub(crate) fn free(&self) -> usize {
        self.free.load(Relaxed)
    }
}

/// A reading of the counters; the fields are not read at one instant.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EpcStats {
    /// Pages in all sections.
    pub total: usize,
    /// Pages on free lists.
    pub free: usize,
    /// Pages that somebody has.
    pub used: usize,
    /// Pages of these that are a virtual EPC's, and so never reclaimed.
    pub raw: usize,
    /// The most pages that were in use at any time.
    pub peak_used: usize,
    /// Pages that EREMOVE refused and that are lost until the machine starts anew.
    pub leaked: usize,
    /// Pages that are broken and were nobody's any more.
    pub poisoned: usize,
    /// Pages on the list of reclaimable pages.
    pub active: usize,
    /// Reclaim passes.
    pub passes: u64,
    /// Pages that passes looked at.
    pub scanned: u64,
    /// Pages that passes looked at and that were used since the last look.
    pub young: u64,
    /// Old pages that their owners refused to give up.
    pub refused: u64,
    /// Old pages that can not go before others of their owner.
    pub needed: u64,
    /// Old pages that could not be written back.
    pub kept: u64,
    /// Pages that passes wrote back (without SECS pages, which owners write back and free).
    pub reclaimed: u64,
    /// Passes run by an allocation that found no free page.
    pub direct: u64,
}

impl Counters {
    pub(crate) fn read(&self, total: usize, active: usize) -> EpcStats {
        EpcStats {
            total,
            free: self.free(),
            used: self.used.load(Relaxed),
            raw: self.raw.load(Relaxed),
            peak_used: self.peak_used.load(Relaxed),
            leaked: self.leaked.load(Relaxed),
            poisoned: self.poisoned.load(Relaxed),
            active,
            passes: self.passes.load(Relaxed),
            scanned: self.scanned.load(Relaxed),
            young: self.young.load(Relaxed),
            refused: self.refused.load(Relaxed),
            needed: self.needed.load(Relaxed),
            kept: self.kept.load(Relaxed),
            reclaimed: self.reclaimed.load(Relaxed),
            direct: self.direct.load(Relaxed),
        }
    }
}

/// What one NUMA node has, and how often it was asked. Named after Linux's `numa_hit`, `numa_miss`, `numa_foreign`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NodeStats {
    /// The node's number.
    pub node: usize,
    /// Pages of its sections.
    pub total: usize,
    /// Pages on its free list.
    pub free: usize,
    /// Pages handed out to threads near it.
    pub hits: u64,
    /// Pages handed out to threads near another node, which had none.
    pub misses: u64,
    /// Pages that threads near it had to take elsewhere.
    pub foreign: u64,
    /// Pages given back to it.
    pub freed: u64,
}
