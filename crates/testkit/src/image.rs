//! Test enclaves: a description, and building it through the driver's ioctls.

use usgx_driver::{Enclave, Errno, Machine};
use usgx_isa::Page;

use crate::caller::SimCaller;
use crate::calls::Call;
use crate::sign;

/// Where the sources of pages are in the caller's memory.
const SOURCES: u64 = 0x100_0000;
/// SECINFO.FLAGS of a REG page that is readable and writable.
const REG_RW: u64 = 0x203;
/// SECINFO.FLAGS of a TCS.
const TCS: u64 = 0x100;

/// A page of an image.
#[derive(Clone, Debug)]
pub struct ImagePage {
    /// Its place: offset / 4096.
    pub index: u64,
    /// SECINFO.FLAGS.
    pub secinfo: u64,
    /// What is in it.
    pub contents: Page,
    /// Whether its contents are measured.
    pub measure: bool,
}

/// An enclave to build.
#[derive(Clone, Debug)]
pub struct Image {
    /// First address.
    pub base: u64,
    /// Bytes of the range, a power of two.
    pub size: u64,
    /// ATTRIBUTES.
    pub attributes: u64,
    /// The pages, in the order in which they are added.
    pub pages: Vec<ImagePage>,
}

impl Image {
    /// A 64-bit debug enclave with no pages.
    #[must_use]
    pub fn new(base: u64, size: u64) -> Self {
        Self { base, size, attributes: 0x6, pages: Vec::new() }
    }

    /// A TCS at 0 and `pages` pages from index 1 on, readable and writable, each with its index in its first eight
    /// bytes. Room for twice as many pages.
    #[must_use]
    pub fn data(base: u64, pages: u64) -> Self {
        let mut image = Self::new(base, ((pages + 1) * 4096 * 2).next_power_of_two());
        let mut tcs = Page::ZERO;
        // OSSA, NSSA; limits.
        tcs.0[16..24].copy_from_slice(&4096u64.to_le_bytes());
        tcs.0[28..32].copy_from_slice(&1u32.to_le_bytes());
        tcs.0[64..72].fill(0xff);
        image.push(0, TCS, tcs, true);
        for index in 1..=pages {
            let mut contents = Page::ZERO;
            contents.0[..8].copy_from_slice(&index.to_le_bytes());
            image.push(index, REG_RW, contents, false);
        }
        image
    }

    /// Adds a page.
    pub fn push(&mut self, index: u64, secinfo: u64, contents: Page, measure: bool) {
        self.pages.push(ImagePage { index, secinfo, contents, measure });
    }

    /// The SECS.
    #[must_use]
    pub fn secs(&self) -> Page {
        let mut secs = Page::ZERO;
        secs.0[0..8].copy_from_slice(&self.size.to_le_bytes());
        secs.0[8..16].copy_from_slice(&self.base.to_le_bytes());
        secs.0[16..20].copy_from_slice(&1u32.to_le_bytes());
        secs.0[48..56].copy_from_slice(&self.attributes.to_le_bytes());
        secs.0[56..64].copy_from_slice(&3u64.to_le_bytes());
        secs
    }

    /// A SIGSTRUCT for this image.
    #[must_use]
    pub fn sigstruct(&self) -> Vec<u8> {
        sign::sign(self).as_ref().to_vec()
    }

    /// CREATE.
    ///
    /// # Errors
    /// The ioctl's.
    pub fn create<M: Machine>(&self, enclave: &Enclave<M>, caller: &SimCaller) -> Result<(), Errno> {
        Call { enclave, caller }.create(&self.secs().0)
    }

    /// ADD_PAGES for each page.
    ///
    /// # Errors
    /// The first that fails.
    pub fn add_pages<M: Machine>(&self, enclave: &Enclave<M>, caller: &SimCaller) -> Result<(), Errno> {
        for page in &self.pages {
            caller.set(SOURCES, &page.contents.0);
            let call = Call { enclave, caller };
            let (result, count) =
                call.add_pages(SOURCES, page.index * 4096, 4096, page.secinfo, page.measure);
            result?;
            assert_eq!(count, 4096, "a page was added");
        }
        Ok(())
    }

    /// CREATE, ADD_PAGES and INIT.
    ///
    /// # Errors
    /// The first that fails.
    pub fn build<M: Machine>(&self, enclave: &Enclave<M>, caller: &SimCaller) -> Result<(), Errno> {
        self.create(enclave, caller)?;
        self.add_pages(enclave, caller)?;
        Call { enclave, caller }.init(&self.sigstruct())
    }
}
