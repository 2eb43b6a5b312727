//! The states of an EPC page, and who may change them.

use core::sync::atomic::{AtomicU8, Ordering};

/// The state of one EPC page. Every page has exactly one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum PageState {
    /// Belongs to no section.
    Outside = 0,
    /// May still hold an enclave of an earlier life of the machine. Left by sanitising.
    Dirty,
    /// On the free list of its node.
    Free,
    /// Somebody's, and not to be reclaimed (SECS, VA, or not yet complete).
    Owned,
    /// Somebody's, and on the list of reclaimable pages.
    Active,
    /// Taken off that list by a reclaim pass, which alone decides where it goes next.
    Reclaiming,
    /// Given away whole (a virtual EPC's): whoever has it runs leaves on it by itself, and it is never reclaimed.
    Raw,
    /// EREMOVE refused it; never used again.
    Leaked,
    /// Broken, and nobody's; never used again.
    Poisoned,
}

impl PageState {
    fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Dirty,
            2 => Self::Free,
            3 => Self::Owned,
            4 => Self::Active,
            5 => Self::Reclaiming,
            6 => Self::Raw,
            7 => Self::Leaked,
            8 => Self::Poisoned,
            _ => Self::Outside,
        }
    }
}

/// A [`PageState`] that threads share.
///
/// Writers are excluded by the lock of the list that the page leaves or enters (`node.free` or `lru`), or by
/// the page being theirs alone; readers without that lock get a hint.
pub(crate) struct StateCell(AtomicU8);

impl StateCell {
    pub(crate) const fn new(state: PageState) -> Self {
        Self(AtomicU8::new(state as u8))
    }

    pub(crate) fn get(&self) -> PageState {
        // Relaxed: whoever acts on the answer holds the lock that orders it.
        PageState::from_u8(self.0.load(Ordering::Relaxed))
    }

    /// Moves from `from` to `to`. A page that is not in `from` means that our books are broken.
    pub(crate) fn change(&self, from: PageState, to: PageState) {
        assert_eq!(self.get(), from, "an EPC page that becomes {to:?}");
        // Relaxed: the lists' locks order the pages' contents and owners. Not one operation with the look before it, as
        // there is no other writer; and a page changes its state six times on its way out and back.
        self.0.store(to as u8, Ordering::Relaxed);
    }
}
