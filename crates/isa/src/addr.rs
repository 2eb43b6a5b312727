//! Addresses and page-sized memory, as types that cannot be mixed up.

use core::fmt;

/// Bytes in an EPC page.
pub const PAGE_SIZE: usize = 4096;
/// Binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// The number of a page in the EPC, counted over all sections from 0.
///
/// Stands for the page's physical address: whether a number lies in the EPC at all is the processor's to
/// check, as it is for an address.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EpcPage(pub u32);

impl EpcPage {
    /// The page's number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A linear address, as a program or an enclave uses it. Any value; not necessarily page-aligned.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LinAddr(pub u64);

impl LinAddr {
    /// The address of the page that holds this address.
    #[must_use]
    pub const fn page(self) -> Self {
        Self(self.0 & !(PAGE_SIZE as u64 - 1))
    }

    /// Whether the address is a multiple of [`PAGE_SIZE`].
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_SIZE as u64)
    }
}

impl fmt::LowerHex for LinAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// An eight-byte slot of a version array (VA) page.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct VaSlot {
    /// The VA page.
    pub page: EpcPage,
    /// Which slot, 0 to 511.
    pub index: u16,
}

/// The contents of one page, aligned as the leaves demand.
#[derive(Clone)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; PAGE_SIZE]);

impl Page {
    /// A page of zeros.
    pub const ZERO: Self = Self([0; PAGE_SIZE]);
}

impl Default for Page {
    fn default() -> Self {
        Self::ZERO
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page({:02x?}..)", &self.0[..16])
    }
}
