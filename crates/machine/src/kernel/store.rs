//! The backing store: evicted pages in memory, or in a swap file.
//!
//! Pages are ciphertext by then. The store's lock, which is innermost, protects the books: which page has which slot. It
//! is not held while pages are copied, read or written, as a slot belongs to its page until that is discarded, and the
//! driver does one thing at a time with a page. (Disk space for a swap file is reserved with the lock held.)

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::Path;

use parking_lot::Mutex;
use usgx_driver::{BackingStore, EnclaveId, StoreError};
use usgx_isa::layout::Pcmd;
use usgx_isa::{EvictedPage, PAGE_SIZE};
use usgx_sys::Errno;

use crate::kernel::slab::{SLOT_SIZE, Slab, Slot};
use crate::kernel::swap_file::{FileSlot, SwapFile};
use crate::page_map::PageMap;

/// The largest enclave that the machine takes: its window alone has a word for each page.
const MAX_SIZE: u64 = 1 << 40;

#[derive(Debug)]
enum Medium {
    Memory(Slab),
    File(SwapFile),
}

/// A slot in use, wherever it is.
enum MediumSlot {
    Memory(Slot),
    File(FileSlot),
}

impl Medium {
    fn slot(&self, slot: u64) -> MediumSlot {
        match self {
            Self::Memory(slab) => MediumSlot::Memory(slab.slot(slot)),
            Self::File(file) => MediumSlot::File(file.slot(slot)),
        }
    }
}

#[derive(Debug)]
struct Inner {
    medium: Medium,
    /// For each enclave, the slot of each page, counted from 1.
    enclaves: HashMap<EnclaveId, PageMap<NonZeroU32>>,
}

/// The backing store of all enclaves.
#[derive(Debug)]
pub(crate) struct Store(Mutex<Inner>);

impl Store {
    /// A store in memory, or in a file in `directory`.
    pub(crate) fn new(directory: Option<&Path>) -> std::io::Result<Self> {
        let medium = match directory {
            None => Medium::Memory(Slab::default()),
            Some(directory) => Medium::File(SwapFile::create(directory)?),
        };
        Ok(Self(Mutex::new(Inner { medium, enclaves: HashMap::new() })))
    }

    /// Pages that it holds, or has a place reserved for.
    pub(crate) fn nr_pages(&self) -> u64 {
        self.0.lock().enclaves.values().map(|slots| slots.len() as u64).sum()
    }

    /// Gives back memory that is kept for a burst that is over.
    pub(crate) fn cool(&self) {
        if let Medium::Memory(slab) = &mut self.0.lock().medium {
            slab.cool();
        }
    }

    /// Bytes of memory or disk space in use.
    pub(crate) fn size(&self) -> u64 {
        match &self.0.lock().medium {
            Medium::Memory(slab) => slab.memory(),
            Medium::File(file) => file.size(),
        }
    }
}

impl Inner {
    fn slot(&self, enclave: EnclaveId, index: u64) -> Result<u64, StoreError> {
        let slot = self.enclaves.get(&enclave).and_then(|slots| slots.get(index));
        slot.map(|slot| number(*slot)).ok_or(StoreError::Io)
    }

    fn reserve(&mut self, enclave: EnclaveId, index: u64) -> Result<u64, StoreError> {
        let slots = self.enclaves.get_mut(&enclave).ok_or(StoreError::Io)?;
        if let Some(slot) = slots.get(index) {
            return Ok(number(*slot));
        }
        let slot = match &mut self.medium {
            Medium::Memory(slab) => slab.take(),
            Medium::File(file) => file.take().map_err(|error| match error {
                Errno::NOSPC | Errno::DQUOT | Errno::FBIG => StoreError::Full,
                _ => StoreError::Io,
            })?,
        };
        let Some(counted) = u32::try_from(slot + 1).ok().and_then(NonZeroU32::new) else {
            // 16 TiB of evicted pages.
            self.free(slot);
            return Err(StoreError::Full);
        };
        slots.insert(index, counted);
        Ok(slot)
    }

    fn free(&mut self, slot: u64) {
        match &mut self.medium {
            Medium::Memory(slab) => slab.free(slot),
            Medium::File(file) => file.free(slot),
        }
    }
}

impl BackingStore for Store {
    fn create(&self, enclave: EnclaveId, size: u64) -> Result<(), StoreError> {
        if size > MAX_SIZE {
            return Err(StoreError::TooLarge);
        }
        self.0.lock().enclaves.insert(enclave, PageMap::default());
        Ok(())
    }

    fn reserve(&self, enclave: EnclaveId, index: u64) -> Result<(), StoreError> {
        self.0.lock().reserve(enclave, index).map(drop)
    }

    fn put(&self, enclave: EnclaveId, index: u64, page: &EvictedPage) -> Result<(), StoreError> {
        let slot = {
            let mut inner = self.0.lock();
            let slot = inner.reserve(enclave, index)?;
            inner.medium.slot(slot)
        };
        let fill = |bytes: &mut [u8; SLOT_SIZE]| {
            bytes[..PAGE_SIZE].copy_from_slice(&page.contents.0);
            bytes[PAGE_SIZE..].copy_from_slice(page.pcmd.as_ref());
        };
        match slot {
            MediumSlot::Memory(slot) => fill(&mut slot.bytes().lock().0),
            MediumSlot::File(slot) => {
                let mut bytes = [0; SLOT_SIZE];
                fill(&mut bytes);
                slot.write(&bytes).map_err(|error| report(&error))?;
            }
        }
        Ok(())
    }

    fn get(&self, enclave: EnclaveId, index: u64, out: &mut EvictedPage) -> Result<(), StoreError> {
        let slot = {
            let inner = self.0.lock();
            inner.medium.slot(inner.slot(enclave, index)?)
        };
        let mut read = |bytes: &[u8; SLOT_SIZE]| {
            out.contents.0.copy_from_slice(&bytes[..PAGE_SIZE]);
            out.pcmd = Pcmd::try_copy_from(&bytes[PAGE_SIZE..]).ok_or(StoreError::Io)?;
            Ok(())
        };
        match slot {
            MediumSlot::Memory(slot) => read(&slot.bytes().lock().0),
            MediumSlot::File(slot) => {
                let mut bytes = [0; SLOT_SIZE];
                slot.read(&mut bytes).map_err(|error| report(&error))?;
                read(&bytes)
            }
        }
    }

    fn discard(&self, enclave: EnclaveId, index: u64) {
        let mut inner = self.0.lock();
        let slot = inner.enclaves.get_mut(&enclave).and_then(|slots| slots.remove(index));
        if let Some(slot) = slot {
            inner.free(number(slot));
        }
    }

    fn destroy(&self, enclave: EnclaveId) {
        let mut inner = self.0.lock();
        let slots = inner.enclaves.remove(&enclave).unwrap_or_default();
        for (_, slot) in slots.iter() {
            inner.free(number(*slot));
        }
    }
}

/// The medium's number of a slot.
fn number(slot: NonZeroU32) -> u64 {
    u64::from(slot.get()) - 1
}

fn report(error: &std::io::Error) -> StoreError {
    tracing::warn!(%error, "the swap file cannot be used");
    if error.kind() == std::io::ErrorKind::StorageFull { StoreError::Full } else { StoreError::Io }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(value: u8) -> EvictedPage {
        let mut page = EvictedPage::default();
        page.contents.0.fill(value);
        page.pcmd.mac = [value; 16];
        page
    }

    fn check(store: &Store) {
        let (one, two) = (EnclaveId(1), EnclaveId(2));
        assert_eq!(store.create(one, MAX_SIZE * 2), Err(StoreError::TooLarge));
        for id in [one, two] {
            store.create(id, 1 << 20).expect("room");
            for index in 0..100 {
                store.reserve(id, index).expect("room");
                store.put(id, index, &page(index as u8 ^ id.0 as u8)).expect("room");
            }
        }
        let mut out = EvictedPage::default();
        for index in 0..100 {
            store.get(two, index, &mut out).expect("was put");
            assert_eq!((out.contents.0[9], out.pcmd.mac[3]), (index as u8 ^ 2, index as u8 ^ 2));
            store.discard(two, index);
            assert_eq!(store.get(two, index, &mut out), Err(StoreError::Io));
        }
        store.get(one, 99, &mut out).expect("still there");
        assert_eq!(store.nr_pages(), 100);
        store.destroy(one);
        store.destroy(two);
        assert_eq!((store.nr_pages(), store.size()), (0, 0));
    }

    #[test]
    fn memory_keeps_pages_and_gives_room_back() {
        check(&Store::new(None).expect("memory"));
    }

    #[test]
    fn a_swap_file_keeps_pages_and_gives_room_back() {
        check(&Store::new(Some(&std::env::temp_dir())).expect("a swap file"));
    }
}
