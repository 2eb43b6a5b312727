//! What is around the driver while the cost of a page is measured: as little as there can be, and the same for every
//! page.

use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Result, anyhow};
use parking_lot::Mutex;
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

/// Most frames that data pages share: 64 MiB, so that in the smallest EPC each has its own.
const NR_FRAMES: usize = 1 << 14;
/// The second word of every data page. No version in a VA page is odd, no address in an SECS.
const DATA: [u8; 8] = 0x5a5a_5a5a_5a5a_5a5b_u64.to_le_bytes();

type Bytes = [u8; PAGE_SIZE];

/// Boxes that lie in memory in no order, as after long use. Otherwise the pages of a single enclave, which come and go
/// in their order, would be neighbours, whose bytes and page table entries the computer fetches ahead; and how far
/// the pages of many are from that would count as their cost.
///
/// `count` is a power of two.
fn scattered<T: Clone>(count: usize, value: T) -> Vec<Box<T>> {
    /// An odd number, so that its multiples meet each remainder once.
    const STRIDE: usize = 40_503;
    assert!(count.is_power_of_two());
    let mut boxes: Vec<_> = (0..count).map(|_| Some(Box::new(value.clone()))).collect();
    (0..count).filter_map(|place| boxes[place * STRIDE % count].take()).collect()
}

/// Contents of EPC pages. Data pages share a fixed set of frames; pages that the processor uses itself have their own.
pub(super) struct Frames {
    shared: Vec<Mutex<Box<Bytes>>>,
    own: Vec<Mutex<Option<Box<Bytes>>>>,
    /// Frames for pages to come that have their own, as a page that shares its frame costs no allocation either.
    spare: Mutex<Vec<Box<Bytes>>>,
}

impl Frames {
    fn new(pages: u32) -> Self {
        let mut data = [0x5a; PAGE_SIZE];
        data[8..16].copy_from_slice(&DATA);
        Self {
            shared: scattered(NR_FRAMES.min(pages as usize), data).into_iter().map(Mutex::new).collect(),
            own: (0..pages).map(|_| Mutex::default()).collect(),
            spare: Mutex::default(),
        }
    }

    /// A frame for a page that has its own, with any contents.
    fn take(&self) -> Box<Bytes> {
        let spare = self.spare.lock().pop();
        spare.unwrap_or_else(|| Box::new([0; PAGE_SIZE]))
    }

    fn shared(&self, page: EpcPage) -> &Mutex<Box<Bytes>> {
        &self.shared[page.index() % self.shared.len()]
    }
}

impl PageBytes for Frames {
    fn read(&self, page: EpcPage, offset: usize, out: &mut [u8]) {
        let own = self.own[page.index()].lock();
        match own.as_ref() {
            Some(own) => out.copy_from_slice(&own[offset..offset + out.len()]),
            None if out.len() == PAGE_SIZE => out.copy_from_slice(&self.shared(page).lock()[..]),
            // A slot of a VA page that was never written to.
            None => out.fill(0),
        }
    }

    fn write(&self, page: EpcPage, offset: usize, bytes: &[u8]) {
        if bytes.len() == PAGE_SIZE && bytes[8..16] == DATA {
            self.shared(page).lock().copy_from_slice(bytes);
            return;
        }
        let mut own = self.own[page.index()].lock();
        let frame = own.get_or_insert_with(|| {
            let mut frame = self.take();
            if bytes.len() != PAGE_SIZE {
                frame.fill(0);
            }
            frame
        });
        frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn fill_zero(&self, page: EpcPage) {
        self.discard(page);
    }

    fn discard(&self, page: EpcPage) {
        let own = self.own[page.index()].lock().take();
        self.spare.lock().extend(own);
    }
}

/// A page in the store.
type Stored = (Bytes, Pcmd);

#[derive(Default)]
struct Shelf {
    pages: HashMap<(EnclaveId, u64), Option<Box<Stored>>>,
    /// Boxes for pages to come.
    spare: Vec<Box<Stored>>,
    /// Child pages in the order of their eviction.
    evicted: VecDeque<(EnclaveId, u64)>,
    /// Pages of each enclave's range.
    sizes: HashMap<EnclaveId, u64>,
}

/// A store in memory.
pub(super) struct Store {
    shelf: Mutex<Shelf>,
    moved: AtomicU64,
}

impl Store {
    /// With room for so many pages; for more it takes it when they come.
    fn new(pages: usize) -> Self {
        let spare = scattered(pages, ([0; PAGE_SIZE], Pcmd::default()));
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
        self.shelf.lock().sizes.insert(enclave, size / PAGE_SIZE as u64);
        Ok(())
    }

    fn reserve(&self, enclave: EnclaveId, index: u64) -> Result<(), StoreError> {
        self.shelf.lock().pages.entry((enclave, index)).or_default();
        Ok(())
    }

    fn put(&self, enclave: EnclaveId, index: u64, page: &EvictedPage) -> Result<(), StoreError> {
        let mut shelf = self.shelf.lock();
        let mut stored = shelf.spare.pop().unwrap_or_else(|| Box::new(([0; PAGE_SIZE], Pcmd::default())));
        stored.0.copy_from_slice(&page.contents.0);
        stored.1.clone_from(&page.pcmd);
        shelf.pages.insert((enclave, index), Some(stored));
        if shelf.sizes.get(&enclave).is_some_and(|pages| index < *pages) {
            shelf.evicted.push_back((enclave, index));
        }
        self.moved.fetch_add(1, Relaxed);
        Ok(())
    }

    fn get(&self, enclave: EnclaveId, index: u64, out: &mut EvictedPage) -> Result<(), StoreError> {
        let shelf = self.shelf.lock();
        let stored = shelf.pages.get(&(enclave, index)).and_then(Option::as_ref).ok_or(StoreError::Io)?;
        out.contents.0.copy_from_slice(&stored.0);
        out.pcmd.clone_from(&stored.1);
        self.moved.fetch_add(1, Relaxed);
        Ok(())
    }

    fn discard(&self, enclave: EnclaveId, index: u64) {
        let mut shelf = self.shelf.lock();
        let stored = shelf.pages.remove(&(enclave, index)).flatten();
        shelf.spare.extend(stored);
    }

    fn destroy(&self, enclave: EnclaveId) {
        let mut shelf = self.shelf.lock();
        shelf.sizes.remove(&enclave);
        shelf.pages.retain(|(owner, _), _| *owner != enclave);
    }
}
