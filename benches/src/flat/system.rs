//! What is around the driver while the cost of a page is measured: as little as there can be, and the same for every
//! page.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Result, anyhow};
use parking_lot::{Mutex, MutexGuard};
use usgx_cpu::{FuseKeys, LogicalProcessors, PageBytes, Processor, Profile};
use usgx_driver::{
    AddressSpaces, BackingStore, Behaviour, Config, Driver, Enclave, EnclaveId, Machine, MapFailed, PageKind,
    SectionConfig, StoreError,
};
use usgx_isa::layout::Pcmd;
use usgx_isa::{Encls, EpcPage, EvictedPage};
use usgx_testkit::{Call, Image, SimCaller, SimPlatform};

use crate::raw::PAGE_SIZE;

/// The driver's types, with a processor.
pub(super) struct Fixed<H>(PhantomData<H>);

impl<H: Encls + 'static> Machine for Fixed<H> {
    type Hw = H;
    type Platform = SimPlatform;
    type Spaces = NoSpaces;
    type Store = Store;
}

/// What of a system its user talks to.
pub(super) struct Parts {
    pub(super) platform: Arc<SimPlatform>,
    pub(super) store: Arc<Store>,
}

/// A system with an EPC of `pages` pages, and `evicted` that are not in it. Both are powers of two.
pub(super) fn build<H: Encls + 'static>(
    pages: u32,
    evicted: usize,
    processor: impl Fn(u32) -> H,
) -> (Driver<Fixed<H>>, Parts) {
    let (platform, store) = (Arc::new(SimPlatform::default()), Arc::new(Store::new(evicted)));
    let config = Config {
        sections: vec![SectionConfig { node: 0, first: EpcPage(0), pages }],
        sgx2: true,
        misc_reserved: 0,
        attributes_reserved: 0,
        xfrm_reserved: 0,
        behaviour: Behaviour::default(),
    };
    let hw = Arc::new(processor(pages));
    let driver = Driver::new(config, hw, Arc::clone(&platform), Arc::new(NoSpaces), Arc::clone(&store));
    driver.sanitize();
    (driver, Parts { platform, store })
}

/// Loads an enclave.
pub(super) fn load<H: Encls + 'static>(
    enclave: &Enclave<Fixed<H>>,
    image: &Image,
    sigstruct: &[u8],
) -> Result<()> {
    let caller = SimCaller::new();
    image
        .create(enclave, &caller)
        .and_then(|()| image.add_pages(enclave, &caller))
        .and_then(|()| Call { enclave, caller: &caller }.init(sigstruct))
        .map_err(|error| anyhow!("{error:?}"))
}

/// The place of an enclave among all, in the order in which they were opened: the driver counts from 1.
pub(super) fn number(enclave: EnclaveId) -> usize {
    enclave.0 as usize - 1
}

/// The software processor of such a system.
pub(super) type Software = Processor<Frames, Nobody>;

/// Makes it.
pub(super) fn software(pages: u32) -> Software {
    // Any keys do: nothing leaves this process.
    let mut random = |bytes: &mut [u8]| bytes.fill(0x5a);
    let fuses = FuseKeys::generate(&mut random);
    Processor::new(Profile::default(), fuses, pages, Frames::new(pages), Nobody, &mut random)
}

/// No thread is ever inside an enclave.
pub(super) struct Nobody;

impl LogicalProcessors for Nobody {
    fn oldest_entry(&self, _: u64) -> Option<u64> {
        None
    }

    fn set_epoch(&self, _: u64, _: u64) {}
}

/// Page tables that remember nothing.
pub(super) struct NoSpaces;

impl AddressSpaces for NoSpaces {
    fn created(&self, _: EnclaveId, _: u64, _: u64) {}

    fn map(&self, _: EnclaveId, _: u64, _: EpcPage, _: PageKind) -> Result<(), MapFailed> {
        Ok(())
    }

    fn zap(&self, _: EnclaveId, _: &[(u64, EpcPage)]) {}

    fn test_and_clear_young(&self, _: EnclaveId, _: &[(u64, EpcPage)], young: &mut [bool]) {
        young.fill(false);
    }

    fn kick(&self, _: EnclaveId) {}

    fn destroyed(&self, _: EnclaveId) {}
}

/// As many frames as the smallest EPC has pages: 64 MiB. In larger ones data pages share them.
const NR_FRAMES: usize = 1 << 14;
/// The second word of every data page. No version in a VA page is odd, no address in an SECS.
const DATA: [u8; 8] = 0x5a5a_5a5a_5a5a_5a5b_u64.to_le_bytes();

type Bytes = [u8; PAGE_SIZE];

/// The place of number `number` among `count`, in no order, as things lie in memory after long use. Otherwise the pages
/// of a single enclave, which come and go in their order, would be neighbours, whose bytes and page table entries the
/// computer fetches ahead; and how far the pages of many are from that would count as their cost.
///
/// `count` is a power of two.
fn scattered(number: usize, count: usize) -> usize {
    /// An odd number, so that its multiples meet each remainder once.
    const STRIDE: usize = 40_503;
    debug_assert!(count.is_power_of_two());
    number * STRIDE % count
}

/// Contents of EPC pages.
pub(super) struct Frames {
    /// One for each page; or if there are more pages, those that data pages share.
    frames: Vec<Mutex<Bytes>>,
    /// In that case, those of pages that the processor uses itself.
    own: Vec<Mutex<Option<Box<Bytes>>>>,
    /// Frames for such pages to come, as a page that shares its frame costs no allocation either.
    spare: Mutex<Vec<Box<Bytes>>>,
}

impl Frames {
    fn new(pages: u32) -> Self {
        let pages = pages as usize;
        let mut data = [0x5a; PAGE_SIZE];
        data[8..16].copy_from_slice(&DATA);
        Self {
            frames: (0..NR_FRAMES.min(pages)).map(|_| Mutex::new(data)).collect(),
            own: (0..if pages > NR_FRAMES { pages } else { 0 }).map(|_| Mutex::default()).collect(),
            spare: Mutex::default(),
        }
    }

    /// The page's frame among those of all pages, or of data pages.
    fn frame(&self, page: EpcPage) -> MutexGuard<'_, Bytes> {
        self.frames[scattered(page.index(), self.frames.len())].lock()
    }

    /// The page's own frame, if frames are shared.
    fn own(&self, page: EpcPage) -> Option<MutexGuard<'_, Option<Box<Bytes>>>> {
        self.own.get(page.index()).map(Mutex::lock)
    }

    /// A frame for a page that has its own, with anything in it if the page is about to be written as a whole.
    fn take(&self, is_whole: bool) -> Box<Bytes> {
        let mut frame = self.spare.lock().pop().unwrap_or_else(|| Box::new([0; PAGE_SIZE]));
        if !is_whole {
            frame.fill(0);
        }
        frame
    }

    /// Takes away a page's own frame.
    fn put_back(&self, mut own: MutexGuard<'_, Option<Box<Bytes>>>) {
        self.spare.lock().extend(own.take());
    }
}

impl PageBytes for Frames {
    fn read(&self, page: EpcPage, offset: usize, out: &mut [u8]) {
        let bytes = offset..offset + out.len();
        match self.own(page).as_deref() {
            Some(Some(own)) => out.copy_from_slice(&own[bytes]),
            // A slot of a VA page that was never written to.
            Some(None) if out.len() < PAGE_SIZE => out.fill(0),
            _ => out.copy_from_slice(&self.frame(page)[bytes]),
        }
    }

    fn write(&self, page: EpcPage, offset: usize, bytes: &[u8]) {
        let is_whole = bytes.len() == PAGE_SIZE;
        let is_data = is_whole && bytes[8..16] == DATA;
        match self.own(page) {
            Some(mut own) if !is_data => {
                let frame = own.get_or_insert_with(|| self.take(is_whole));
                frame[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            _ => self.frame(page)[offset..offset + bytes.len()].copy_from_slice(bytes),
        }
    }

    fn fill_zero(&self, page: EpcPage) {
        match self.own(page) {
            Some(own) => self.put_back(own),
            None => self.frame(page).fill(0),
        }
    }

    fn discard(&self, page: EpcPage) {
        if let Some(own) = self.own(page) {
            self.put_back(own);
        }
    }
}

/// A page in the store.
type Stored = (Bytes, Pcmd);

#[derive(Default)]
struct Shelf {
    /// The pages of all enclaves, one enclave after the other.
    pages: Vec<Option<Box<Stored>>>,
    /// Pages of an enclave's range: those are child pages.
    size: u64,
    /// Boxes for pages to come.
    spare: Vec<Box<Stored>>,
    /// Child pages in the order of their eviction.
    evicted: VecDeque<(EnclaveId, u64)>,
}

impl Shelf {
    /// Where the pages of an enclave begin, or end those of the one before: child pages, SECS, and VA pages.
    fn start(&self, number: usize) -> usize {
        let range = self.size as usize;
        number * (range + 1 + range.div_ceil(512) + 1)
    }

    fn place(&mut self, enclave: EnclaveId, index: u64) -> &mut Option<Box<Stored>> {
        let start = self.start(number(enclave));
        &mut self.pages[start + index as usize]
    }
}

/// A store in memory, for enclaves of one size.
pub(super) struct Store {
    shelf: Mutex<Shelf>,
    moved: AtomicU64,
}

impl Store {
    /// With boxes for so many pages; more are made when they are needed.
    fn new(pages: usize) -> Self {
        let stored = || Some(Box::new(([0; PAGE_SIZE], Pcmd::default())));
        let mut boxes: Vec<_> = std::iter::repeat_with(stored).take(pages).collect();
        let spare = (0..pages).filter_map(|number| boxes[scattered(number, pages)].take()).collect();
        Self { shelf: Mutex::new(Shelf { spare, ..Shelf::default() }), moved: AtomicU64::new(0) }
    }

    /// How many pages were put and got.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// The child page that was put first of those that are there.
    pub(super) fn oldest(&self) -> Option<(EnclaveId, u64)> {
        self.shelf.lock().evicted.pop_front()
    }
}

impl BackingStore for Store {
    fn create(&self, enclave: EnclaveId, size: u64) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        shelf.size = size / PAGE_SIZE as u64;
        let end = shelf.start(number(enclave) + 1);
        shelf.pages.resize_with(end, || None);
        Ok(())
    }

    fn reserve(&self, _: EnclaveId, _: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn put(&self, enclave: EnclaveId, index: u64, page: &EvictedPage) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        let mut stored = shelf.spare.pop().unwrap_or_else(|| Box::new(([0; PAGE_SIZE], Pcmd::default())));
        stored.0.copy_from_slice(&page.contents.0);
        stored.1.clone_from(&page.pcmd);
        *shelf.place(enclave, index) = Some(stored);
        if index < shelf.size {
            shelf.evicted.push_back((enclave, index));
        }
        self.moved.fetch_add(1, Relaxed);
        Ok(())
    }

    fn get(&self, enclave: EnclaveId, index: u64, out: &mut EvictedPage) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        let stored = shelf.place(enclave, index).as_ref().ok_or(StoreError::Io)?;
        out.contents.0.copy_from_slice(&stored.0);
        out.pcmd.clone_from(&stored.1);
        self.moved.fetch_add(1, Relaxed);
        Ok(())
    }

    fn discard(&self, enclave: EnclaveId, index: u64) {
        let mut shelf = self.shelf.lock();
        let stored = shelf.place(enclave, index).take();
        shelf.spare.extend(stored);
    }

    fn destroy(&self, _: EnclaveId) {}
}
