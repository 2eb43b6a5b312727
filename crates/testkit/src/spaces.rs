//! The address spaces of a simulated system: one for each enclave, shared by all its programs.
//!
//! No bytes move; what is simulated is who can reach which EPC page. Like a machine in user space it has no
//! accessed bit: what is mapped is young, and unmapping it is the clearing of the bit.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use usgx_driver::{AddressSpaces, EnclaveId, MapFailed, PageKind};
use usgx_isa::EpcPage;

use crate::threads::SimThreads;

#[derive(Debug, Default)]
struct Space {
    base: u64,
    size: u64,
    mapped: BTreeMap<u64, (EpcPage, PageKind)>,
}

#[derive(Debug, Default)]
struct State {
    spaces: BTreeMap<EnclaveId, Space>,
    /// Where each mapped EPC page is mapped. Never at two places.
    frames: BTreeMap<EpcPage, (EnclaveId, u64)>,
    fail_maps: usize,
}

/// What a test does in the middle of something.
type Hook = Box<dyn FnOnce() + Send>;

/// Simulated address spaces.
pub struct SimSpaces {
    state: Mutex<State>,
    threads: SimThreads,
    on_look: Mutex<Option<Hook>>,
    on_zap: Mutex<Option<Hook>>,
    on_kick: Mutex<Option<Hook>>,
}

impl SimSpaces {
    /// No address spaces yet; kicks reach `threads`.
    #[must_use]
    pub fn new(threads: SimThreads) -> Self {
        Self {
            state: Mutex::default(),
            threads,
            on_look: Mutex::default(),
            on_zap: Mutex::default(),
            on_kick: Mutex::default(),
        }
    }

    /// Makes the next `count` mappings fail.
    pub fn fail_maps(&self, count: usize) {
        self.state.lock().fail_maps = count;
    }

    /// Runs `hook` when a pass next asks which pages are young, with no lock held.
    pub fn on_next_look(&self, hook: impl FnOnce() + Send + 'static) {
        *self.on_look.lock() = Some(Box::new(hook));
    }

    /// Runs `hook` in the middle of the next zap, with the enclave's lock held.
    pub fn on_next_zap(&self, hook: impl FnOnce() + Send + 'static) {
        *self.on_zap.lock() = Some(Box::new(hook));
    }

    /// Runs `hook` in the middle of the next kick, with no lock held.
    pub fn on_next_kick(&self, hook: impl FnOnce() + Send + 'static) {
        *self.on_kick.lock() = Some(Box::new(hook));
    }

    /// The EPC page that is mapped at `addr`.
    pub fn mapped(&self, enclave: EnclaveId, addr: u64) -> Option<EpcPage> {
        Some(self.state.lock().spaces.get(&enclave)?.mapped.get(&addr)?.0)
    }

    /// The type that the driver said the page mapped at `addr` has.
    pub fn kind(&self, enclave: EnclaveId, addr: u64) -> Option<PageKind> {
        Some(self.state.lock().spaces.get(&enclave)?.mapped.get(&addr)?.1)
    }

    /// All pages that are mapped: whose, where, and which.
    pub fn all_mapped(&self) -> Vec<(EnclaveId, u64, EpcPage)> {
        self.state.lock().frames.iter().map(|(page, (enclave, addr))| (*enclave, *addr, *page)).collect()
    }

    /// The number of pages mapped, of all enclaves.
    pub fn nr_mapped(&self) -> usize {
        self.state.lock().frames.len()
    }

    /// The number of enclaves that were created and not destroyed.
    pub fn nr_spaces(&self) -> usize {
        self.state.lock().spaces.len()
    }
}

impl State {
    fn unmap(&mut self, enclave: EnclaveId, addr: u64, page: EpcPage) -> bool {
        let space = self.spaces.get_mut(&enclave).expect("the enclave was created");
        match space.mapped.remove(&addr) {
            Some((mapped, _)) => {
                assert_eq!(mapped, page, "the page at {addr:#x}");
                self.frames.remove(&page);
                true
            }
            None => false,
        }
    }
}

fn run(hook: &Mutex<Option<Hook>>) {
    let hook = hook.lock().take();
    if let Some(hook) = hook {
        hook();
    }
}

fn assert_ascending(pages: &[(u64, EpcPage)]) {
    assert!(pages.windows(2).all(|pair| pair[0].0 < pair[1].0), "addresses ascend");
}

impl AddressSpaces for SimSpaces {
    fn created(&self, enclave: EnclaveId, base: u64, size: u64) {
        let space = Space { base, size, ..Space::default() };
        assert!(self.state.lock().spaces.insert(enclave, space).is_none(), "{enclave:?} is created twice");
    }

    fn map(&self, enclave: EnclaveId, addr: u64, page: EpcPage, kind: PageKind) -> Result<(), MapFailed> {
        let mut state = self.state.lock();
        if state.fail_maps > 0 {
            state.fail_maps -= 1;
            return Err(MapFailed);
        }
        let space = state.spaces.get_mut(&enclave).expect("the enclave was created");
        assert!(
            addr.is_multiple_of(4096) && addr.wrapping_sub(space.base) < space.size,
            "{addr:#x} is outside"
        );
        let old = space.mapped.insert(addr, (page, kind));
        assert!(old.is_none_or(|(old, _)| old == page), "another page is mapped at {addr:#x}");
        let old = state.frames.insert(page, (enclave, addr));
        assert!(old.is_none_or(|old| old == (enclave, addr)), "{page:?} is mapped at {old:x?} too");
        Ok(())
    }

    fn zap(&self, enclave: EnclaveId, pages: &[(u64, EpcPage)]) {
        assert_ascending(pages);
        run(&self.on_zap);
        let mut state = self.state.lock();
        for (addr, page) in pages {
            state.unmap(enclave, *addr, *page);
        }
    }

    fn test_and_clear_young(&self, enclave: EnclaveId, pages: &[(u64, EpcPage)], young: &mut [bool]) {
        assert_ascending(pages);
        run(&self.on_look);
        let mut state = self.state.lock();
        for ((addr, page), young) in pages.iter().zip(young) {
            *young = state.unmap(enclave, *addr, *page);
        }
    }

    fn kick(&self, _enclave: EnclaveId) {
        run(&self.on_kick);
        self.threads.kick();
    }

    fn destroyed(&self, enclave: EnclaveId) {
        let mut state = self.state.lock();
        assert!(state.spaces.remove(&enclave).is_some(), "{enclave:?} is destroyed once");
        state.frames.retain(|_, (owner, _)| *owner != enclave);
        // Which enclave the processor calls by which number is not known here; leaving is always possible.
        self.threads.leave_all();
    }
}
