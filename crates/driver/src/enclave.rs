//! One open of `/dev/sgx_enclave`, from open to the last close.
//!
//! An enclave is *fresh*, then *created*, then *initialised*; there is no way back. References are the device's
//! open file (with all mappings), and a reclaim pass for as long as it holds pages of the enclave. The last
//! one to go destroys the enclave and frees all its EPC pages, in whatever thread that happens.
//! Source: Linux, arch/x86/kernel/cpu/sgx/encl.c and driver.c.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use usgx_epc::{OrderedGuard, OrderedMutex, OwnerId};
use usgx_isa::EpcPage;

use crate::driver::{Kernel, MutexOf, rank};
use crate::event::Event;
use crate::owner::Owner;
use crate::page::Place;
use crate::seams::{AddressSpaces, BackingStore, EnclaveId, Machine};
use crate::state::{DEBUG, State};
use crate::stats::{EnclaveStats, Tally};

/// How far an enclave has come.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub(crate) enum Phase {
    Fresh = 0,
    Created,
    Initialized,
}

pub(crate) type Guard<'a, M> = OrderedGuard<'a, <M as Machine>::Platform, State>;

/// What all references to an enclave share.
pub(crate) struct Inner<M: Machine> {
    pub(crate) id: EnclaveId,
    pub(crate) kernel: Arc<Kernel<M>>,
    /// What the EPC manager calls it.
    pub(crate) owner: OwnerId,
    /// An ioctl runs.
    pub(crate) in_ioctl: AtomicBool,
    phase: AtomicU8,
    base: AtomicU64,
    size: AtomicU64,
    state: MutexOf<M, State>,
    tally: Tally,
}

impl<M: Machine> Inner<M> {
    pub(crate) fn new(id: EnclaveId, kernel: Arc<Kernel<M>>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            id,
            owner: kernel.epc.add_owner(Owner(Weak::clone(this))),
            kernel,
            in_ioctl: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Fresh as u8),
            base: AtomicU64::new(0),
            size: AtomicU64::new(0),
            state: OrderedMutex::new(rank::STATE, State::default()),
            tally: Tally::default(),
        })
    }

    pub(crate) fn lock(&self) -> Guard<'_, M> {
        self.state.lock()
    }

    pub(crate) fn phase(&self) -> Phase {
        // Acquire: pairs with the Release in `advance`, so that whoever sees a phase sees what it promises.
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Fresh,
            1 => Phase::Created,
            _ => Phase::Initialized,
        }
    }

    /// Whether its SECS may leave the EPC when no child page is there.
    pub(crate) fn may_leave(&self) -> bool {
        match self.phase() {
            Phase::Fresh => false,
            Phase::Created => self.kernel.config.behaviour.evict_unfinished,
            Phase::Initialized => true,
        }
    }

    pub(crate) fn advance(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// Records the place of the enclave, before it becomes `Created`.
    pub(crate) fn set_place(&self, base: u64, size: u64) {
        // Relaxed: published by `advance`.
        self.base.store(base, Ordering::Relaxed);
        self.size.store(size, Ordering::Relaxed);
    }

    /// Base and size; both 0 before CREATE, which makes every range lie outside.
    pub(crate) fn place(&self) -> (u64, u64) {
        if self.phase() == Phase::Fresh {
            return (0, 0);
        }
        (self.base.load(Ordering::Relaxed), self.size.load(Ordering::Relaxed))
    }

    /// The linear address of the page with number `index`.
    pub(crate) fn addr(&self, index: u64) -> u64 {
        self.place().0 + index * 4096
    }

    /// The index of the page at `addr`, if that lies in the enclave's range.
    pub(crate) fn index(&self, addr: u64) -> Option<u64> {
        let (base, size) = self.place();
        let offset = addr.checked_sub(base)?;
        (offset < size).then_some(offset / 4096)
    }

    /// Counts an event, for the enclave and for the driver, and tells the machine.
    pub(crate) fn note(&self, event: Event<'_>) {
        self.tally.count(&event);
        self.kernel.tally.count(&event);
        M::observe(&self.kernel.platform, self.id, &event);
    }

    /// Reads the counters. Takes the enclave's lock.
    pub(crate) fn stats(&self) -> EnclaveStats {
        let state = self.lock();
        let place = self.place();
        EnclaveStats {
            place: (place.1 != 0).then_some(place),
            initialized: self.phase() == Phase::Initialized,
            pages: state.page_count,
            resident: state.resident,
            secs_resident: state.secs_page().is_some(),
            va_pages: state.va.len() as u64,
            va_resident: state.va.resident().count() as u64,
            counts: self.tally.read(),
        }
    }
}

impl<M: Machine> Drop for Inner<M> {
    /// Destroys the enclave. No other reference exists, so no lock is taken but those of the EPC manager.
    fn drop(&mut self) {
        let kernel = &self.kernel;
        kernel.forget(self.id);
        if *self.phase.get_mut() != Phase::Fresh as u8 {
            // First: the EPC pages may have another owner in a moment.
            kernel.spaces.destroyed(self.id);
        }
        let state = self.state.get_mut();
        for (_, page) in state.pages.iter() {
            if let Some(page) = page.place.epc_page() {
                kernel
                    .epc
                    .unmark_reclaimable(page)
                    .expect("a pass holds a reference to the owner of its pages");
                kernel.release(page);
            }
        }
        if let Some(secs) = state.secs.and_then(Place::epc_page) {
            kernel.release(secs);
        }
        kernel.release_va_pages(state.va.places());
        if state.secs.is_some() {
            kernel.store.destroy(self.id);
        }
        kernel.epc.remove_owner(self.owner);
        // Last: whoever is told so may add up what the others have.
        M::observe(&kernel.platform, self.id, &Event::Destroy { counts: &self.tally.read() });
    }
}

/// The SECS is not in the EPC, so no page of the enclave is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotResident;

/// What an enclave was created with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EnclaveAttributes {
    /// ATTRIBUTES, the low 64 bits.
    pub flags: u64,
    /// XFRM.
    pub xfrm: u64,
    /// MISCSELECT.
    pub miscselect: u32,
}

/// A reference to an enclave: a file descriptor, a mapping, or a copy of one. The last to be dropped destroys
/// the enclave.
pub struct Enclave<M: Machine>(pub(crate) Arc<Inner<M>>);

impl<M: Machine> Clone for Enclave<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Machine> Enclave<M> {
    /// The enclave's number.
    #[must_use]
    pub fn id(&self) -> EnclaveId {
        self.0.id
    }

    /// Base address and size in bytes, once CREATE has succeeded.
    #[must_use]
    pub fn base_size(&self) -> Option<(u64, u64)> {
        let place = self.0.place();
        (place.1 != 0).then_some(place)
    }

    /// Whether INIT has succeeded.
    #[must_use]
    pub fn is_initialized(&self) -> bool {
        self.0.phase() == Phase::Initialized
    }

    /// What the enclave was created with, once CREATE has succeeded. Takes the enclave's lock.
    #[must_use]
    pub fn attributes(&self) -> Option<EnclaveAttributes> {
        let state = self.0.lock();
        state.secs.map(|_| EnclaveAttributes {
            flags: state.attributes,
            xfrm: state.xfrm,
            miscselect: state.miscselect,
        })
    }

    /// Whether a debugger may look into the enclave. Takes the enclave's lock.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.0.lock().attributes & DEBUG != 0
    }

    /// Reads the counters. Takes the enclave's lock.
    #[must_use]
    pub fn stats(&self) -> EnclaveStats {
        self.0.stats()
    }

    /// Runs `f` with the enclave's lock held, the EPC page of the SECS, and a look-up from linear address to EPC
    /// page: for ENCLU leaves, which the reclaimer must not meet half way. The look-up gives `None` for pages
    /// that are not in the EPC or about to leave it; a fault brings them back. `f` must not wait for a program.
    ///
    /// # Errors
    /// The SECS is not in the EPC. A fault on any page brings it back.
    pub fn with_pages<R>(
        &self,
        f: impl FnOnce(EpcPage, &dyn Fn(u64) -> Option<EpcPage>) -> R,
    ) -> Result<R, NotResident> {
        let state = self.0.lock();
        let secs = state.secs_page().ok_or(NotResident)?;
        let look_up = |addr| match state.pages.get(self.0.index(addr)?)?.place {
            Place::Resident(page) => Some(page),
            _ => None,
        };
        Ok(f(secs, &look_up))
    }
}
