//! A backing store in memory, with a capacity, faults on demand, and ways to tamper with what it holds.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use usgx_driver::{BackingStore, EnclaveId, StoreError};
use usgx_isa::EvictedPage;

/// What can be made to fail.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Operation {
    /// [`BackingStore::create`]
    Create,
    /// [`BackingStore::reserve`]
    Reserve,
    /// [`BackingStore::put`]
    Put,
    /// [`BackingStore::get`]
    Get,
}

#[derive(Debug)]
struct State {
    capacity: usize,
    enclaves: BTreeMap<EnclaveId, u64>,
    /// Room that was made; the page, if it was put.
    slots: BTreeMap<(EnclaveId, u64), Option<Box<EvictedPage>>>,
    /// Operations that fail: the numbers, counted from 1, of those to come.
    faults: BTreeMap<Operation, BTreeSet<u64>>,
    calls: BTreeMap<Operation, u64>,
}

/// A simulated backing store.
#[derive(Debug)]
pub struct SimStore(Mutex<State>);

impl Default for SimStore {
    fn default() -> Self {
        Self(Mutex::new(State {
            capacity: usize::MAX,
            enclaves: BTreeMap::new(),
            slots: BTreeMap::new(),
            faults: BTreeMap::new(),
            calls: BTreeMap::new(),
        }))
    }
}

impl SimStore {
    /// Limits the store to `pages` pages; those that are there stay.
    pub fn set_capacity(&self, pages: usize) {
        self.0.lock().capacity = pages;
    }

    /// Makes the `nth` call of `operation` from now on fail (1 is the next).
    pub fn fail(&self, operation: Operation, nth: u64) {
        let mut state = self.0.lock();
        let call = state.calls.get(&operation).copied().unwrap_or(0) + nth;
        state.faults.entry(operation).or_default().insert(call);
    }

    /// Changes a stored page; tells whether there is one.
    pub fn tamper(&self, enclave: EnclaveId, index: u64, change: impl FnOnce(&mut EvictedPage)) -> bool {
        match self.0.lock().slots.get_mut(&(enclave, index)) {
            Some(Some(page)) => {
                change(page);
                true
            }
            _ => false,
        }
    }

    /// A copy of a stored page.
    pub fn stored(&self, enclave: EnclaveId, index: u64) -> Option<EvictedPage> {
        self.0.lock().slots.get(&(enclave, index))?.as_deref().cloned()
    }

    /// Pages that room was made for, of all enclaves, stored or not.
    pub fn nr_reserved(&self) -> usize {
        self.0.lock().slots.len()
    }

    /// Pages stored, of all enclaves.
    pub fn nr_stored(&self) -> usize {
        self.0.lock().slots.values().flatten().count()
    }

    /// Stores there are.
    pub fn nr_enclaves(&self) -> usize {
        self.0.lock().enclaves.len()
    }
}

impl State {
    /// Counts a call; fails if it is one of those to fail.
    fn call(&mut self, operation: Operation) -> Result<(), StoreError> {
        let call = self.calls.entry(operation).or_default();
        *call += 1;
        let fails = self.faults.get_mut(&operation).is_some_and(|faults| faults.remove(call));
        if fails { Err(StoreError::Io) } else { Ok(()) }
    }

    fn check(&self, enclave: EnclaveId, index: u64) {
        let size = self.enclaves.get(&enclave).expect("the enclave's store was created");
        // The SECS and, in an enclave that has lost some, twice as many VA pages as it has need of.
        assert!(
            index <= size / 4096 + 2 + size / 4096 / 256,
            "index {index} is that of a page, the SECS or a VA page"
        );
    }
}

impl BackingStore for SimStore {
    fn create(&self, enclave: EnclaveId, size: u64) -> Result<(), StoreError> {
        let mut state = self.0.lock();
        state.call(Operation::Create)?;
        assert!(state.enclaves.insert(enclave, size).is_none(), "one store for each enclave");
        Ok(())
    }

    fn reserve(&self, enclave: EnclaveId, index: u64) -> Result<(), StoreError> {
        let mut state = self.0.lock();
        state.check(enclave, index);
        state.call(Operation::Reserve)?;
        let (used, capacity) = (state.slots.len(), state.capacity);
        match state.slots.entry((enclave, index)) {
            std::collections::btree_map::Entry::Occupied(_) => Ok(()),
            std::collections::btree_map::Entry::Vacant(_) if used >= capacity => Err(StoreError::Full),
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(None);
                Ok(())
            }
        }
    }

    fn put(&self, enclave: EnclaveId, index: u64, page: &EvictedPage) -> Result<(), StoreError> {
        let mut state = self.0.lock();
        state.check(enclave, index);
        state.call(Operation::Put)?;
        let slot = state.slots.get_mut(&(enclave, index)).expect("room was made before a page is put");
        assert!(slot.is_none(), "page {index} is in the store already");
        *slot = Some(Box::new(page.clone()));
        Ok(())
    }

    fn get(&self, enclave: EnclaveId, index: u64, out: &mut EvictedPage) -> Result<(), StoreError> {
        let mut state = self.0.lock();
        state.call(Operation::Get)?;
        let page = state.slots.get(&(enclave, index)).and_then(Option::as_deref);
        out.clone_from(page.expect("only what was put is asked for"));
        Ok(())
    }

    fn discard(&self, enclave: EnclaveId, index: u64) {
        self.0.lock().slots.remove(&(enclave, index));
    }

    fn destroy(&self, enclave: EnclaveId) {
        let mut state = self.0.lock();
        assert!(state.enclaves.remove(&enclave).is_some(), "a store is destroyed once");
        state.slots.retain(|(owner, _), _| *owner != enclave);
    }
}
