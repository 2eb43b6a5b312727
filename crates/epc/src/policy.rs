//! How much the reclaimer does, and when: marks and batch sizes.
//!
//! Linux' numbers are absolute. 32 free pages are half of the smallest EPC, and next to nothing of a large one, whose
//! reserve the first burst empties, after which every thread reclaims for itself. And with 16 pages in a batch, a
//! batch has about one page of each of many enclaves, so that each page pays for an ETRACK and a kick of its own.
//! Here both follow the size of the EPC, and a batch what is missing to the high mark.

use crate::reclaim::BATCH;

/// Linux' low mark.
const LOW_PAGES: usize = 32;
/// Linux' high mark.
const HIGH_PAGES: usize = 64;

/// The choices, which an operator may make.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// Most pages that one pass looks at; at least [`BATCH`].
    pub max_batch: usize,
    /// Whether the marks follow the size of the EPC.
    pub scaled_marks: bool,
    /// Whether allocations wait for pages that are yet to be sanitised. Otherwise they fail (`ENOMEM`).
    pub wait_for_sanitizing: bool,
}

impl Policy {
    /// Linux' choices: batches of 16, marks of 32 and 64 pages.
    #[must_use]
    pub const fn linux() -> Self {
        Self { max_batch: BATCH, scaled_marks: false, wait_for_sanitizing: false }
    }

    /// The marks of an EPC of `total` pages.
    pub(crate) fn marks(self, total: usize) -> Marks {
        if !self.scaled_marks {
            return Marks { low: LOW_PAGES, high: HIGH_PAGES };
        }
        let least = LOW_PAGES.min(total / 8);
        // 16 MiB of reserve are enough for any burst; the way up from there is a few batches.
        let low = (total / 256).clamp(least, 4096);
        Marks { low, high: low + (total / 16).clamp(least, 1024) }
    }

    /// How many pages a pass looks at, with `missing` free pages to the high mark and `active` reclaimable ones. In a
    /// small EPC a large batch would take what is in use along with what is not.
    pub(crate) fn batch(self, missing: usize, active: usize) -> usize {
        missing.min(active / 8).clamp(BATCH, self.max_batch.max(BATCH))
    }
}

impl Default for Policy {
    /// One ETRACK and one kick for up to 256 pages, and a reserve for bursts.
    fn default() -> Self {
        Self { max_batch: 256, scaled_marks: true, wait_for_sanitizing: true }
    }
}

/// Numbers of free pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Marks {
    /// Below this, `ksgxd` is woken.
    pub(crate) low: usize,
    /// At this, it goes back to sleep.
    pub(crate) high: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_follow_the_epc_and_linux_does_not() {
        let marks = |pages| {
            let marks = Policy::default().marks(pages);
            (marks.low, marks.high)
        };
        assert_eq!(marks(64), (8, 16));
        assert_eq!(marks(512), (32, 64), "where Linux' marks are right");
        assert_eq!(marks(32 << 10), (128, 1152));
        assert_eq!(marks(4 << 20), (4096, 5120));
        for pages in [0, 1, 7, 8, 64, 4 << 20] {
            let Marks { low, high } = Policy::default().marks(pages);
            assert!(low <= high && high <= pages);
            assert_eq!(Policy::linux().marks(pages), Marks { low: 32, high: 64 });
        }
    }

    #[test]
    fn batches_follow_demand_within_bounds() {
        let policy = Policy::default();
        assert_eq!(policy.batch(5, 10_000), 16);
        assert_eq!(policy.batch(100, 10_000), 100);
        assert_eq!(policy.batch(5000, 10_000), 256);
        assert_eq!(policy.batch(100, 400), 50, "not more than an eighth of what is there");
        assert_eq!(Policy::linux().batch(5000, 10_000), 16);
    }
}
