//! The driver as a whole: what all enclaves share, and what the machine's threads call.

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use usgx_epc::{Epc, NodeStats, NotEpc, OrderedMutex, Poisoned};
use usgx_isa::{Encls, EpcPage};

use crate::config::Config;
use crate::enclave::{Enclave, Inner};
use crate::errno::Errno;
use crate::event::Event;
use crate::owner::Owner;
use crate::roots::Roots;
use crate::seams::{EnclaveId, Machine};
use crate::stats::{EnclaveStats, Stats, Tally};
use crate::transit::Transits;
use crate::vepc::Zombies;

/// A mutex of a machine's platform.
pub(crate) type MutexOf<M, T> = OrderedMutex<<M as Machine>::Platform, T>;

/// The order of the driver's locks; the EPC manager's come after them.
pub(crate) mod rank {
    use usgx_epc::Rank;

    /// Nothing is held when it is taken.
    pub(crate) const REGISTRY: Rank = Rank::new(0, "registry");
    pub(crate) const STATE: Rank = Rank::new(10, "enclave.state");
    /// A virtual EPC's pages: never held together with an enclave's state.
    pub(crate) const VEPC: Rank = Rank::new(10, "vepc.pages");
    pub(crate) const ZOMBIES: Rank = Rank::new(80, "zombies");
    pub(crate) const ROOTS: Rank = Rank::new(90, "roots");
    pub(crate) const TRANSITS: Rank = Rank::new(95, "transits");
}

/// Times that `shrink` goes over all pages, at most.
const SHRINK_ROUNDS: usize = 16;

/// What all enclaves share.
pub(crate) struct Kernel<M: Machine> {
    pub(crate) hw: Arc<M::Hw>,
    pub(crate) platform: Arc<M::Platform>,
    pub(crate) spaces: Arc<M::Spaces>,
    pub(crate) store: Arc<M::Store>,
    pub(crate) epc: Epc<M::Platform, Owner<M>>,
    pub(crate) config: Config,
    pub(crate) tally: Tally,
    pub(crate) va_pages: AtomicU64,
    pub(crate) roots: MutexOf<M, Roots>,
    pub(crate) transits: Transits<M::Platform>,
    pub(crate) zombies: MutexOf<M, Zombies>,
    next_id: AtomicU64,
    /// Which enclaves there are. Weak: being listed keeps no enclave alive.
    registry: MutexOf<M, BTreeMap<EnclaveId, Weak<Inner<M>>>>,
}

impl<M: Machine> Kernel<M> {
    /// Makes `page`, which nobody else knows, invalid and free; loses it if the processor refuses.
    pub(crate) fn release(&self, page: EpcPage) {
        match self.hw.eremove(page) {
            Ok(()) => self.epc.free(page),
            Err(_) => self.epc.leak(page),
        }
    }

    /// As [`release`](Self::release), for a VA page.
    pub(crate) fn release_va(&self, page: EpcPage) {
        self.va_pages.fetch_sub(1, Relaxed);
        self.release(page);
    }

    pub(crate) fn forget(&self, id: EnclaveId) {
        self.registry.lock().remove(&id);
    }

    pub(crate) fn enclaves(&self) -> Vec<Arc<Inner<M>>> {
        // Collected, so that no enclave is destroyed (which takes this lock) while the lock is held.
        self.registry.lock().values().filter_map(Weak::upgrade).collect()
    }
}

/// The SGX driver. Cloning gives another reference to the same one.
pub struct Driver<M: Machine>(pub(crate) Arc<Kernel<M>>);

impl<M: Machine> Clone for Driver<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Machine> Driver<M> {
    /// A driver with no enclaves and no usable EPC: [`sanitize`](Self::sanitize) comes next.
    #[must_use]
    pub fn new(
        config: Config,
        hw: Arc<M::Hw>,
        platform: Arc<M::Platform>,
        spaces: Arc<M::Spaces>,
        store: Arc<M::Store>,
    ) -> Self {
        Self(Arc::new(Kernel {
            epc: Epc::new(&config.sections, config.behaviour.reclaim, Arc::clone(&platform)),
            hw,
            platform,
            spaces,
            store,
            config,
            tally: Tally::default(),
            va_pages: AtomicU64::new(0),
            roots: OrderedMutex::new(rank::ROOTS, Roots::default()),
            transits: Transits::default(),
            zombies: OrderedMutex::new(rank::ZOMBIES, Zombies::default()),
            next_id: AtomicU64::new(1),
            registry: OrderedMutex::new(rank::REGISTRY, BTreeMap::new()),
        }))
    }

    /// Opens `/dev/sgx_enclave`: a new enclave, of which nothing exists yet.
    ///
    /// # Errors
    /// None at present; opening is a system call and may fail in machines to come.
    pub fn open(&self) -> Result<Enclave<M>, Errno> {
        let id = EnclaveId(self.0.next_id.fetch_add(1, Relaxed));
        let inner = Inner::new(id, Arc::clone(&self.0));
        self.0.registry.lock().insert(id, Arc::downgrade(&inner));
        inner.note(Event::Open);
        Ok(Enclave(inner))
    }

    /// Makes the EPC usable; returns the number of pages that stay unusable. Once, at start; any thread.
    pub fn sanitize(&self) -> usize {
        self.0.epc.sanitize(&*self.0.hw)
    }

    /// Whether no page is left that nobody has sanitised.
    #[must_use]
    pub fn is_sanitized(&self) -> bool {
        self.0.epc.is_sanitized()
    }

    /// Takes note that an EPC page is broken, from whoever handles machine checks. It will not be handed out again; an
    /// enclave that has it keeps it to its end.
    ///
    /// # Errors
    /// `ENXIO`: the page is not in the EPC.
    pub fn memory_failure(&self, page: EpcPage) -> Result<Poisoned, Errno> {
        self.0.epc.memory_failure(page).map_err(|NotEpc| Errno::ENXIO)
    }

    /// Whether `ksgxd` should run a pass now rather than sleep.
    pub fn ksgxd_should_run(&self) -> bool {
        self.0.epc.should_reclaim()
    }

    /// One reclaim pass, for the thread that is `ksgxd`; returns how many pages it freed. The thread sleeps until
    /// it is woken, sanitising done, then runs passes while [`ksgxd_should_run`](Self::ksgxd_should_run).
    pub fn ksgxd_pass(&self) -> usize {
        self.0.epc.reclaim_pass()
    }

    /// Evicts all that can be evicted, also what was used just now, and returns how many pages became free. Enclaves in
    /// use bring their pages back meanwhile, so it ends after a number of rounds in any case.
    pub fn shrink(&self) -> usize {
        let before = self.free_pages();
        // An enclave's VA pages go in the rounds after that of its last page.
        let mut vain = 0;
        for _ in 0..SHRINK_ROUNDS {
            vain = if self.0.epc.reclaim_round() == 0 { vain + 1 } else { 0 };
            if vain == 3 {
                break;
            }
        }
        self.free_pages().saturating_sub(before)
    }

    /// EPC pages in all sections.
    pub fn epc_pages(&self) -> usize {
        self.0.epc.total_pages()
    }

    /// EPC pages that are free.
    pub fn free_pages(&self) -> usize {
        self.0.epc.free_pages()
    }

    /// Reads the counters.
    pub fn stats(&self) -> Stats {
        let epc = self.0.epc.stats();
        Stats {
            counts: self.0.tally.read(),
            enclaves: self.0.registry.lock().len() as u64,
            va_pages: self.0.va_pages.load(Relaxed),
            total_pages: epc.total as u64,
            free_pages: epc.free as u64,
            raw_pages: epc.raw as u64,
            peak_pages: epc.peak_used as u64,
            leaked_pages: epc.leaked as u64,
            poisoned_pages: epc.poisoned as u64,
            reclaim_scans: epc.passes,
            direct_reclaims: epc.direct,
            pages_scanned: epc.scanned,
            pages_young: epc.young,
            pages_refused: epc.refused,
            pages_needed: epc.needed,
            pages_kept: epc.kept,
            pages_reclaimed: epc.reclaimed,
        }
    }

    /// Reads the counters of each NUMA node that has EPC, ascending by number.
    pub fn node_stats(&self) -> Vec<NodeStats> {
        self.0.epc.node_stats()
    }

    /// Reads the counters of every enclave; takes their locks, one after the other.
    pub fn enclave_stats(&self) -> Vec<(EnclaveId, EnclaveStats)> {
        self.0.enclaves().iter().map(|enclave| (enclave.id, enclave.stats())).collect()
    }
}
