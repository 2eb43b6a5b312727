//! What the reclaimer asks of whoever owns a page.
//!
//! Calls take all pages of one owner in one batch, in ascending order of their index, so that an owner can
//! unmap contiguous runs at once and take its lock once. An owner may refuse any page at any step; a refusal
//! costs time, never correctness.

use usgx_isa::EpcPage;

/// A page under consideration, as its owner knows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Victim {
    /// The EPC page.
    pub page: EpcPage,
    /// The owner's name for the page, given when it became reclaimable.
    pub index: u64,
}

/// What becomes of pages that were used since a pass last looked at them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Used {
    /// They are [`Age::Young`], and stay.
    Spared,
    /// They go like all others, and nobody needs to look.
    Taken,
}

/// What ageing found out about a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Age {
    /// Not used since the last call, and from here on *being reclaimed*: the owner lets nobody touch it.
    Old,
    /// Used since the last call.
    Young,
    /// Old, but it can not be evicted before other pages of its owner are.
    Needed,
    /// Old, but it can not be evicted now: there is no room for its contents.
    Refused,
}

/// What became of a victim that was to be written back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Written {
    /// The page's contents are elsewhere and the EPC page is invalid: it is free.
    Gone,
    /// The page's contents are elsewhere, and the owner had use for the EPC page: it has called
    /// [`Epc::take_written`](crate::Epc::take_written).
    Taken,
    /// The page could not be written back; it is where it was, and still belongs to its owner.
    Kept,
}

/// A weak reference to an owner of reclaimable pages: one for all its pages, which must not keep it alive.
pub trait PageOwner: Send + Sync + 'static {
    /// A reference that keeps the owner alive until it is dropped, which may destroy the owner.
    type Held: HeldOwner;

    /// Takes a reference, unless the owner is being destroyed. Takes no lock. Once or a few times in a pass.
    fn get(&self) -> Option<Self::Held>;
}

/// An owner that stays for the length of a reclaim pass. No lock of this crate is held in any call.
pub trait HeldOwner: Send {
    /// Tells the age of each page, and starts the reclaim of the old ones.
    fn age(&self, victims: &[Victim], used: Used, ages: &mut [Age]);

    /// Takes pages that are being reclaimed out of all address spaces, and blocks them.
    fn block(&self, victims: &[Victim]);

    /// Writes blocked pages back, and ends their *being reclaimed* whatever the outcome.
    fn write(&self, victims: &[Victim], written: &mut [Written]);
}
