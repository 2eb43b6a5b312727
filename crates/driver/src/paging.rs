//! Loading: ELDU, the VA page with its version and the SECS before a child, never by reclaiming.
//!
//! What Linux does and we do not: Linux throws the evicted copy away whatever ELDU says. Here only a copy that
//! fails its integrity check is given up (it will never load); after a fault, which changed nothing, it stays
//! for the next try. Source: Linux,
//! arch/x86/kernel/cpu/sgx/encl.c; SDM volume 3D, "ELDB/ELDU/ELDBC/ELDUC".

use usgx_epc::AllocError;
use usgx_isa::{Encls, EpcPage, LeafError, LinAddr, SgxCode};

use crate::enclave::Inner;
use crate::errno::Errno;
use crate::event::Event;
use crate::page::{Place, Prot, SlotRef};
use crate::patience::{Obstacle, Supply};
use crate::seams::{BackingStore, Machine, StoreError};
use crate::state::State;

/// Why a page could not be brought into the EPC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum LoadError {
    /// Something is in the way that does not stay. Try again.
    Busy(Obstacle),
    /// The enclave has no such page.
    Missing,
    /// The mapping that asks for the page allows more than the page does.
    Denied,
    /// There is no EPC page, and none can be reclaimed.
    NoMemory,
    /// The backing store failed, or what it returned is not what was put.
    Failed,
}

impl From<AllocError> for LoadError {
    fn from(error: AllocError) -> Self {
        match error {
            AllocError::Exhausted => Self::NoMemory,
            AllocError::Busy | AllocError::Interrupted => Self::Busy(Obstacle::NoFreePage),
        }
    }
}

impl LoadError {
    /// What an ioctl that builds an enclave reports when its SECS does not come.
    pub(crate) fn before_init(self) -> Errno {
        match self {
            Self::Busy(_) => Errno::ERESTARTSYS,
            Self::NoMemory => Errno::ENOMEM,
            Self::Missing | Self::Denied | Self::Failed => Errno::EIO,
        }
    }
}

impl From<LoadError> for Errno {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Busy(_) => Self::EBUSY,
            LoadError::Missing | LoadError::Denied | LoadError::Failed => Self::EFAULT,
            LoadError::NoMemory => Self::ENOMEM,
        }
    }
}

/// What an evicted page loads as.
struct Source {
    /// Its name in the backing store.
    index: u64,
    slot: SlotRef,
    addr: LinAddr,
    /// The SECS, for a child page.
    secs: Option<EpcPage>,
}

/// How ELDU of a page failed.
enum Refusal {
    /// For now; the copy is still there.
    For(LoadError),
    /// For ever; the copy is gone.
    Lost,
}

impl<M: Machine> Inner<M> {
    /// The index of the SECS in the backing store: the one after the last page.
    pub(crate) fn secs_index(&self) -> u64 {
        self.place().1 / 4096
    }

    /// Makes the page with number `index` ready for use in the EPC. `mapping` is the protection of the mapping
    /// through which it will be used, if it is through one.
    pub(crate) fn load(
        &self,
        state: &mut State,
        index: u64,
        mapping: Prot,
        supply: &mut Supply<'_, M>,
    ) -> Result<EpcPage, LoadError> {
        let record = state.pages.get(index).ok_or(LoadError::Missing)?;
        if !record.max_prot.contains(mapping) {
            return Err(LoadError::Denied);
        }
        match record.place {
            Place::Resident(page) => Ok(page),
            Place::Reclaiming(_) => Err(LoadError::Busy(Obstacle::InReclaim)),
            Place::Blocked(page) => self.unblock(state, index, page),
            Place::Lost(_) => Err(LoadError::Failed),
            Place::Evicted(slot) => {
                let secs = self.load_secs(state, supply)?;
                let source = Source { index, slot, addr: LinAddr(self.addr(index)), secs: Some(secs) };
                match self.eldu(state, &source, supply) {
                    Ok(page) => {
                        state.set_place(index, Place::Resident(page));
                        state.resident += 1;
                        self.kernel.epc.mark_reclaimable(page, self.owner, index);
                        Ok(page)
                    }
                    Err(Refusal::For(error)) => Err(error),
                    Err(Refusal::Lost) => {
                        state.set_place(index, Place::Lost(slot));
                        Err(LoadError::Failed)
                    }
                }
            }
        }
    }

    /// Makes the SECS ready in the EPC. It stays there even if nothing else comes of it, as on Linux.
    pub(crate) fn load_secs(
        &self,
        state: &mut State,
        supply: &mut Supply<'_, M>,
    ) -> Result<EpcPage, LoadError> {
        let slot = match state.secs.ok_or(LoadError::Missing)? {
            Place::Resident(page) => return Ok(page),
            Place::Evicted(slot) => slot,
            Place::Lost(_) | Place::Reclaiming(_) | Place::Blocked(_) => return Err(LoadError::Failed),
        };
        let source = Source { index: self.secs_index(), slot, addr: LinAddr(0), secs: None };
        match self.eldu(state, &source, supply) {
            Ok(page) => {
                state.secs = Some(Place::Resident(page));
                Ok(page)
            }
            Err(Refusal::For(error)) => Err(error),
            Err(Refusal::Lost) => {
                state.secs = Some(Place::Lost(slot));
                Err(LoadError::Failed)
            }
        }
    }

    fn eldu(
        &self,
        state: &mut State,
        source: &Source,
        supply: &mut Supply<'_, M>,
    ) -> Result<EpcPage, Refusal> {
        let kernel = &self.kernel;
        self.load_va(state, source.slot.va(), supply).map_err(Refusal::For)?;
        let page = supply.take().map_err(|error| Refusal::For(error.into()))?;
        let slot = state.va.slot(source.slot);
        let loaded = kernel.transits.with(|transit| {
            kernel.store.get(self.id, source.index, transit)?;
            Ok::<_, StoreError>(kernel.hw.eldu(page, slot, source.addr, source.secs, transit))
        });
        let Ok(loaded) = loaded else {
            supply.put_back(page);
            return Err(Refusal::For(LoadError::Failed));
        };
        match loaded {
            Ok(()) => {
                kernel.store.discard(self.id, source.index);
                state.va.give_back(source.slot);
                self.note(Event::Load { addr: source.addr.0 });
                Ok(page)
            }
            Err(error) => {
                kernel.release(page);
                if error != LeafError::Code(SgxCode::MacCompareFail) {
                    return Err(Refusal::For(LoadError::Failed));
                }
                kernel.store.discard(self.id, source.index);
                self.note(Event::Lose { addr: source.addr.0 });
                Err(Refusal::Lost)
            }
        }
    }
}
