//! Where the bytes of EPC pages live, and an arena for tests.
//!
//! The processor decides *whether* a page may be read or written and holds the page's lock while it does;
//! [`PageBytes`] only moves bytes. The machine implements it over EPC frames and enclave views.

use parking_lot::Mutex;
use usgx_isa::{EpcPage, PAGE_SIZE, Page};

/// The bytes of the pages of the EPC, wherever they are.
///
/// Every page named is below the processor's `nr_pages`, and `offset` plus the length stays within the page.
/// Calls for one page can come from several threads at once; each call is then as atomic as memory is.
///
/// An implementation may take locks, but none that a caller of the processor holds: a leaf that takes a page
/// exclusively waits for accesses that are in these methods.
pub trait PageBytes: Send + Sync {
    /// Reads `out.len()` bytes of `page` from `offset` on.
    fn read(&self, page: EpcPage, offset: usize, out: &mut [u8]);

    /// Writes `bytes` into `page` from `offset` on.
    fn write(&self, page: EpcPage, offset: usize, bytes: &[u8]);

    /// Makes all of `page` zero.
    fn fill_zero(&self, page: EpcPage);

    /// Says that the page has become invalid: its storage may be reused. Its contents are never read again
    /// before a write of all of it.
    fn discard(&self, page: EpcPage);
}

/// EPC pages on the heap, allocated at their first whole write and freed when discarded.
///
/// For tests and simulations. A page that is read before it was written is a broken promise of the processor,
/// and a panic here.
#[derive(Debug)]
pub struct ArenaBytes {
    pages: Vec<Mutex<Option<Box<Page>>>>,
}

impl ArenaBytes {
    /// Makes an arena of `nr_pages` pages.
    #[must_use]
    pub fn new(nr_pages: u32) -> Self {
        Self { pages: (0..nr_pages).map(|_| Mutex::new(None)).collect() }
    }
}

impl PageBytes for ArenaBytes {
    fn read(&self, page: EpcPage, offset: usize, out: &mut [u8]) {
        let slot = self.pages[page.index()].lock();
        let contents = slot.as_ref().expect("a valid EPC page was written as a whole");
        out.copy_from_slice(&contents.0[offset..offset + out.len()]);
    }

    fn write(&self, page: EpcPage, offset: usize, bytes: &[u8]) {
        let mut slot = self.pages[page.index()].lock();
        assert!(slot.is_some() || bytes.len() == PAGE_SIZE, "the first write of an EPC page is of all of it");
        slot.get_or_insert_default().0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn fill_zero(&self, page: EpcPage) {
        let mut slot = self.pages[page.index()].lock();
        slot.get_or_insert_default().0.fill(0);
    }

    fn discard(&self, page: EpcPage) {
        *self.pages[page.index()].lock() = None;
    }
}
