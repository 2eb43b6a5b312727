//! A page of an enclave, as the driver records it: twelve bytes.

use usgx_isa::EpcPage;

bitflags::bitflags! {
    /// Protection, with the values of `PROT_*` and of SECINFO's R, W and X.
    #[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
    pub struct Prot: u8 {
        /// Readable.
        const R = 1;
        /// Writable.
        const W = 2;
        /// Executable.
        const X = 4;
    }
}

/// The type that the driver recorded for a page.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum PageKind {
    /// `PT_TCS`
    Tcs = 1,
    /// `PT_REG`
    Reg = 2,
    /// `PT_TRIM`
    Trim = 4,
}

/// A slot in one of the enclave's version array pages: the number of the VA page, in the order in which the
/// enclave got them, times 512, plus the number of the slot. 32 bits are enough for 16 TiB of enclave.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct SlotRef(u32);

impl SlotRef {
    pub(crate) fn new(va: u32, slot: u16) -> Self {
        debug_assert!(slot < 512 && va < 1 << 23, "slot {slot} of VA page {va}");
        Self(va << 9 | u32::from(slot))
    }

    /// Which VA page.
    pub(crate) fn va(self) -> u32 {
        self.0 >> 9
    }

    /// Which slot of it.
    pub(crate) fn slot(self) -> u16 {
        (self.0 & 511) as u16
    }
}

/// Where the contents of a page are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// In the EPC.
    Resident(EpcPage),
    /// In the EPC, and a reclaim pass is about to write it back: nobody may map or change it.
    Reclaiming(EpcPage),
    /// In the EPC and blocked, after a write-back that failed: it must be written and loaded before use.
    Blocked(EpcPage),
    /// In the backing store, its version in the slot.
    Evicted(SlotRef),
    /// Nowhere: what the backing store returned was not what was put. The slot keeps the version for ever.
    Lost(SlotRef),
}

impl Place {
    /// The EPC page that holds the contents.
    pub(crate) fn epc_page(self) -> Option<EpcPage> {
        match self {
            Self::Resident(page) | Self::Reclaiming(page) | Self::Blocked(page) => Some(page),
            Self::Evicted(_) | Self::Lost(_) => None,
        }
    }

    /// The version array slot in use.
    pub(crate) fn slot(self) -> Option<SlotRef> {
        match self {
            Self::Resident(_) | Self::Reclaiming(_) | Self::Blocked(_) => None,
            Self::Evicted(slot) | Self::Lost(slot) => Some(slot),
        }
    }
}

/// The record of a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct EnclPage {
    pub(crate) place: Place,
    /// The most that a mapping of it may allow.
    pub(crate) max_prot: Prot,
    pub(crate) kind: PageKind,
}

// The budget: what an enclave of 64 thousand pages, a usual one, pays in the driver.
const _: () = assert!(size_of::<Option<EnclPage>>() <= 12);
