//! Virtual EPC: EPC pages given away whole, to a guest that runs the supervisor leaves on them by itself.
//!
//! A [`VirtualEpc`] is one open of `/dev/sgx_vepc`. It owns which EPC page is at which page of the mapping, and gives
//! each a last EREMOVE; what the pages are used for is the guest's affair, and how its mapping is filled its host's (the
//! `map` of [`VirtualEpc::fault`]). A page comes invalid, by the first fault on it, and stays until the last reference
//! goes, in whatever thread that happens: nobody but the guest could write it back, so it is never reclaimed
//! ([`usgx_epc::PageState::Raw`]).
//!
//! An SECS cannot be removed before its children, and these may be in another virtual EPC of the same guest. What such an
//! SECS leaves behind is a *zombie*: the driver's, and tried again at the end of each virtual EPC.
//! Source: Linux, arch/x86/kernel/cpu/sgx/virt.c.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use usgx_epc::{AllocError, OrderedMutex, Reclaim};
use usgx_isa::{Encls, EpcPage, LeafError, SgxCode};

use crate::driver::{Driver, Kernel, MutexOf, rank};
use crate::errno::Errno;
use crate::fault::FaultOutcome;
use crate::ioctl::command;
use crate::seams::{Machine, MapFailed};

/// Raw pages of virtual EPCs that have ended, which the processor has not let go of.
#[derive(Default)]
pub(crate) struct Zombies(Vec<EpcPage>);

impl Zombies {
    pub(crate) fn pages(&self) -> impl Iterator<Item = EpcPage> {
        self.0.iter().copied()
    }
}

impl<M: Machine> Kernel<M> {
    /// Frees the raw pages that EREMOVE agrees to, in this order, and leaves the others in `pages`.
    fn free_raw_pages(&self, pages: &mut Vec<EpcPage>) {
        pages.retain(|page| {
            let removed = self.hw.eremove(*page).is_ok();
            if removed {
                self.epc.free_raw(*page);
            }
            !removed
        });
    }

    /// Takes over what a virtual EPC could not free, and tries all zombies until nothing more goes.
    ///
    /// The newcomers too: their last children may have gone since they were tried, with a virtual EPC that ended at the
    /// same time and found no zombie. (On Linux they stay then until yet another ends.) And more than once, as a child
    /// that was refused for reasons of its own may be behind its SECS.
    fn bury(&self, left: Vec<EpcPage>) {
        let mut zombies = self.zombies.lock();
        zombies.0.extend(left);
        let mut before = usize::MAX;
        while zombies.0.len() < before {
            before = zombies.0.len();
            self.free_raw_pages(&mut zombies.0);
        }
    }
}

impl<M: Machine> Driver<M> {
    /// Opens `/dev/sgx_vepc`: a virtual EPC that has no page yet.
    #[must_use]
    pub fn open_virtual_epc(&self) -> VirtualEpc<M> {
        let kernel = Arc::clone(&self.0);
        VirtualEpc(Arc::new(Inner { kernel, pages: OrderedMutex::new(rank::VEPC, BTreeMap::new()) }))
    }
}

/// What all references to a virtual EPC share.
struct Inner<M: Machine> {
    kernel: Arc<Kernel<M>>,
    /// By number of the page in the device's file.
    pages: MutexOf<M, BTreeMap<u64, EpcPage>>,
}

impl<M: Machine> Inner<M> {
    fn fault(&self, index: u64, map: impl FnOnce(EpcPage) -> Result<(), MapFailed>) -> FaultOutcome {
        let epc = &self.kernel.epc;
        let mut pages = self.pages.lock();
        if let Some(page) = pages.get(&index) {
            return map(*page).map_or(FaultOutcome::Sigbus, |()| FaultOutcome::Mapped);
        }
        let page = match epc.alloc(Reclaim::Forbidden) {
            Ok(page) => page,
            Err(AllocError::Busy) => return FaultOutcome::Retry,
            Err(AllocError::Exhausted | AllocError::Interrupted) => return FaultOutcome::Sigbus,
        };
        if map(page).is_err() {
            self.kernel.release(page);
            return FaultOutcome::Sigbus;
        }
        epc.mark_raw(page);
        pages.insert(index, page);
        FaultOutcome::Mapped
    }

    fn remove_all(&self) -> Result<u64, Errno> {
        // A copy, so that faults need not wait for the leaves. The pages stay: they go with the last reference only.
        let pages: Vec<EpcPage> = self.pages.lock().values().copied().collect();
        let mut with_children = 0;
        for page in pages {
            match self.kernel.hw.eremove(page) {
                Ok(()) => {}
                Err(LeafError::Code(SgxCode::ChildPresent)) => with_children += 1,
                // The guest is still at work in an enclave, or on this very page.
                Err(_) => return Err(Errno::EBUSY),
            }
        }
        Ok(with_children)
    }
}

impl<M: Machine> Drop for Inner<M> {
    /// Frees the pages. No other reference exists, so nobody maps or uses them.
    fn drop(&mut self) {
        let mut left: Vec<EpcPage> = self.pages.get_mut().values().copied().collect();
        // What stays is an SECS whose children come after it, or are elsewhere.
        self.kernel.free_raw_pages(&mut left);
        self.kernel.bury(left);
    }
}

/// A reference to a virtual EPC: a file descriptor, a mapping, or a copy of one. The last to be dropped gives its pages
/// back.
pub struct VirtualEpc<M: Machine>(Arc<Inner<M>>);

impl<M: Machine> Clone for VirtualEpc<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Machine> VirtualEpc<M> {
    /// Handles a fault on page `index` of the device's file. `map` makes the EPC page accessible where the fault was; it
    /// is called with a lock held, at most once, and must neither wait for a program nor call the driver.
    ///
    /// A page that is there already is mapped once more: the fault came from another mapping of it. (On Linux such a
    /// fault comes again and again.) The fault reclaims nothing itself; [`FaultOutcome::Retry`] says that `ksgxd` will
    /// make room.
    pub fn fault(&self, index: u64, map: impl FnOnce(EpcPage) -> Result<(), MapFailed>) -> FaultOutcome {
        self.0.fault(index, map)
    }

    /// Carries out an ioctl. The one that there is, [`command::VEPC_REMOVE_ALL`], makes all pages invalid, as for a guest
    /// that starts anew, and returns how many SECS pages have children left, in another virtual EPC: whoever empties
    /// all virtual EPCs of a guest does it twice where that is not 0.
    ///
    /// # Errors
    /// `ENOTTY`: another command. `EINVAL`: an argument other than 0. `EBUSY`: the guest still uses a page; those
    /// before it are removed.
    pub fn ioctl(&self, cmd: u32, arg: u64) -> Result<u64, Errno> {
        match (cmd, arg) {
            (command::VEPC_REMOVE_ALL, 0) => self.0.remove_all(),
            (command::VEPC_REMOVE_ALL, _) => Err(Errno::EINVAL),
            _ => Err(Errno::ENOTTY),
        }
    }

    /// EPC pages that it has now.
    #[must_use]
    pub fn nr_pages(&self) -> usize {
        self.0.pages.lock().len()
    }
}
