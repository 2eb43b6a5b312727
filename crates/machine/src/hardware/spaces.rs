//! All views, by the driver's number and by the processor's, and the driver's way to them.
//!
//! [`Spaces`] is what the driver calls, with the enclave's lock held; it finds the view and leaves the work to it.
//! Lock order: the tables' locks are held for a look-up only.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use usgx_cpu::EnclaveState;
use usgx_driver::{AddressSpaces, EnclaveId, MapFailed, PageKind};
use usgx_isa::EpcPage;
use usgx_sys::Errno;
use usgx_wire::window::entry;

use crate::clients::worker;
use crate::hardware::books::Faulter;
use crate::hardware::frames::Frames;
use crate::hardware::threads;
use crate::hardware::view::View;
use crate::sight::{Sight, timed};
use crate::system::Hw;

/// The views of all enclaves.
#[derive(Debug, Default)]
pub(crate) struct Views {
    by_id: RwLock<HashMap<EnclaveId, Arc<View>>>,
    /// By the processor's number, from ECREATE on.
    by_eid: RwLock<HashMap<u64, Arc<View>>>,
}

impl Views {
    /// Makes the view of a new enclave.
    pub(crate) fn open(&self, id: EnclaveId) -> Result<Arc<View>, Errno> {
        let view = Arc::new(View::new(id)?);
        self.by_id.write().insert(id, Arc::clone(&view));
        Ok(view)
    }

    pub(crate) fn get(&self, id: EnclaveId) -> Option<Arc<View>> {
        self.by_id.read().get(&id).cloned()
    }

    pub(crate) fn by_eid(&self, eid: u64) -> Option<Arc<View>> {
        self.by_eid.read().get(&eid).cloned()
    }

    /// Learns the processor's number of an enclave that was just created, and describes it to its processes.
    pub(crate) fn bind(&self, view: &Arc<View>, state: &EnclaveState) {
        self.by_eid.write().insert(state.eid, Arc::clone(view));
        view.set_epoch(state.epoch);
        view.describe(state);
    }

    /// Forgets an enclave; idempotent.
    pub(crate) fn forget(&self, id: EnclaveId) {
        let view = self.by_id.write().remove(&id);
        self.by_eid.write().retain(|_, view| view.id() != id);
        if let Some(view) = view {
            view.close();
        }
    }

    /// Pages in all views.
    pub(crate) fn nr_mapped(&self) -> usize {
        self.by_id.read().values().map(|view| view.nr_mapped()).sum()
    }
}

/// The address spaces of all clients, as the driver sees them.
#[derive(Debug)]
pub(crate) struct Spaces {
    views: Arc<Views>,
    frames: Arc<Frames>,
    hw: Arc<Hw>,
    sight: Arc<Sight>,
}

impl Spaces {
    pub(crate) fn new(views: Arc<Views>, frames: Arc<Frames>, hw: Arc<Hw>, sight: Arc<Sight>) -> Self {
        Self { views, frames, hw, sight }
    }
}

impl AddressSpaces for Spaces {
    fn created(&self, enclave: EnclaveId, base: u64, size: u64) {
        let Some(view) = self.views.get(enclave) else { return };
        if let Err(error) = view.set_place(base, size) {
            tracing::warn!(%error, enclave = enclave.0, "an enclave has no usable view");
        }
    }

    fn map(&self, enclave: EnclaveId, addr: u64, page: EpcPage, _: PageKind) -> Result<(), MapFailed> {
        let view = self.views.get(enclave).ok_or(MapFailed)?;
        worker::with_current(|link| {
            let faulter = link.map(|link| Faulter { client: link.client.id(), clock: link.slot.clock() });
            view.map(&self.hw, &self.frames, addr, page, faulter.as_ref())
        })
    }

    fn zap(&self, enclave: EnclaveId, pages: &[(u64, EpcPage)]) {
        if let Some(view) = self.views.get(enclave) {
            view.unmap(&self.hw, &self.frames, pages, 0);
        }
    }

    fn hide(&self, enclave: EnclaveId, pages: &[(u64, EpcPage)]) {
        if let Some(view) = self.views.get(enclave) {
            view.unmap(&self.hw, &self.frames, pages, entry::PRESENT);
        }
    }

    fn test_and_clear_young(&self, enclave: EnclaveId, pages: &[(u64, EpcPage)], young: &mut [bool]) {
        match self.views.get(enclave) {
            Some(view) => view.age(&self.hw, &self.frames, pages, young),
            None => young.fill(false),
        }
    }

    fn kick(&self, enclave: EnclaveId) {
        if let Some(view) = self.views.get(enclave) {
            timed(&self.sight.latencies.kick, || threads::kick(&view));
        }
    }

    fn destroyed(&self, enclave: EnclaveId) {
        self.views.forget(enclave);
    }
}
