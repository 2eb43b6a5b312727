//! Page faults on an enclave's mapping, and the page that a fault adds (EAUG).
//!
//! Source: Linux, arch/x86/kernel/cpu/sgx/encl.c. Two threads that fault on one missing page: on Linux the
//! second gets SIGBUS, since the look-up and the insertion are apart there. Here both are under the lock, so
//! the second simply finds the page.

use usgx_epc::Platform;
use usgx_isa::{Encls, EpcPage, LinAddr};

use crate::enclave::{Enclave, Inner, Phase};
use crate::event::{Event, FaultEnd};
use crate::page::{PageKind, Place, Prot};
use crate::paging::LoadError;
use crate::patience::Supply;
use crate::seams::{AddressSpaces, Machine, MapFailed};
use crate::state::State;

/// What the thread that faulted shall do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FaultOutcome {
    /// Repeat the access: the page is mapped.
    Mapped,
    /// Repeat the access, after a moment: the page is on its way out, or EPC is short.
    Retry,
    /// SIGBUS, or the exception that stands for it inside an enclave.
    Sigbus,
    /// Repeat the access when the system has memory again. For kernels, whose page records can run out of
    /// memory; where running out ends the process, as it does with this crate's allocations, it never comes.
    OutOfMemory,
}

impl<M: Machine> Enclave<M> {
    /// Handles a fault at `addr` in a mapping with protection `vma`. What kind of access it was does not matter.
    pub fn fault(&self, addr: u64, vma: Prot) -> FaultOutcome {
        self.0.fault(addr, vma)
    }
}

impl<M: Machine> Inner<M> {
    fn fault(&self, addr: u64, vma: Prot) -> FaultOutcome {
        let end = self.handle_fault(addr, vma);
        self.note(Event::Fault { addr: addr & !0xfff, end });
        match end {
            FaultEnd::Remapped | FaultEnd::Loaded | FaultEnd::Augmented => FaultOutcome::Mapped,
            FaultEnd::Retry => FaultOutcome::Retry,
            FaultEnd::Failed => FaultOutcome::Sigbus,
        }
    }

    fn handle_fault(&self, addr: u64, vma: Prot) -> FaultEnd {
        // Outside the range there is no page, and EAUG would refuse to add one.
        let Some(index) = self.index(addr) else { return FaultEnd::Failed };
        let kernel = &self.kernel;
        let interrupted = || kernel.platform.signal_pending();
        let result = self.persist(kernel.config.behaviour.faults_wait, interrupted, |state, supply| {
            let end = self.bring(state, index, vma, supply)?;
            Ok(self.map(state, index).map_or(FaultEnd::Failed, |()| end))
        });
        match result {
            Ok(end) => end,
            Err(LoadError::Busy(_)) => FaultEnd::Retry,
            Err(_) => FaultEnd::Failed,
        }
    }

    /// Brings the page into the EPC: from the backing store, or as a new one. Says which.
    fn bring(
        &self,
        state: &mut State,
        index: u64,
        vma: Prot,
        supply: &mut Supply<'_, M>,
    ) -> Result<FaultEnd, LoadError> {
        let Some(record) = state.pages.get(index) else {
            self.augment(state, index, supply)?;
            return Ok(FaultEnd::Augmented);
        };
        let was_resident = matches!(record.place, Place::Resident(_));
        self.load(state, index, vma, supply)?;
        Ok(if was_resident { FaultEnd::Remapped } else { FaultEnd::Loaded })
    }

    /// If that fails, the page stays in the enclave, an added one too, as on Linux.
    fn map(&self, state: &State, index: u64) -> Result<(), MapFailed> {
        let record = state.pages.get(index).expect("the page was just loaded");
        let page = record.place.epc_page().expect("the page was just loaded");
        self.kernel.spaces.map(self.id, self.addr(index), page, record.kind)
    }

    /// Adds a zeroed, pending page where there is none, and some after it, if the switch for that says so.
    fn augment(&self, state: &mut State, index: u64, supply: &mut Supply<'_, M>) -> Result<(), LoadError> {
        let kernel = &self.kernel;
        if !kernel.config.sgx2 || self.phase() != Phase::Initialized {
            return Err(LoadError::Missing);
        }
        let secs = self.load_secs(state, supply)?;
        self.augment_one(state, secs, index, supply)?;
        let around = u64::from(kernel.config.behaviour.fault_around);
        for index in index + 1..=(index + around).min(self.secs_index() - 1) {
            let is_free = state.pages.get(index).is_none() && !kernel.epc.should_reclaim();
            if !is_free || self.augment_one(state, secs, index, supply).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Adds one page. Preconditions: the SECS is in the EPC, and there is no page.
    fn augment_one(
        &self,
        state: &mut State,
        secs: EpcPage,
        index: u64,
        supply: &mut Supply<'_, M>,
    ) -> Result<(), LoadError> {
        let kernel = &self.kernel;
        let page = supply.take()?;
        let grown = match self.make_room(state, supply) {
            Ok(grown) => grown,
            Err(error) => {
                supply.put_back(page);
                return Err(error);
            }
        };
        if kernel.hw.eaug(page, secs, LinAddr(self.addr(index))).is_err() {
            kernel.release(page);
            if grown {
                self.shrink(state);
            }
            return Err(LoadError::Failed);
        }
        state.add(index, page, Prot::all(), PageKind::Reg);
        self.list_va_pages(state);
        kernel.epc.mark_reclaimable(page, self.owner, index);
        self.note(Event::Augment { addr: self.addr(index) });
        Ok(())
    }
}
