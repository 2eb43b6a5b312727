//! A client: one process image, from its Hello to its hang-up.
//!
//! The event loop and the client's workers hold references; the last one to go gives everything back that the
//! process had, in whatever order things end. Lock order: each of the locks here is held for a look-up or a
//! change only; no enclave is dropped and no other lock taken while one is held.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};

use usgx_sys::Errno;
use usgx_sys::socket::Credentials;
use usgx_sys::uffd::Userfaultfd;
use usgx_wire::process::MAX_SLOTS;

use crate::clients::slot::ThreadSlot;
use crate::doors::activity::Activity;
use crate::hardware::region::Region;
use crate::order::{self, Ordered};
use crate::sight::owners::Owner;
use crate::system::OpenEnclave;

/// A process image.
#[derive(Debug)]
pub(crate) struct Client {
    id: u64,
    credentials: Credentials,
    owner: Arc<Owner>,
    region: Region,
    uffd: OnceLock<Arc<Userfaultfd>>,
    /// Enclaves that the process may name. Not kept alive by that.
    handles: Ordered<HashMap<u64, Weak<OpenEnclave>>>,
    /// Enclaves of which the process has registered a range, kept alive by it.
    registered: Ordered<HashMap<u64, Arc<OpenEnclave>>>,
    slots: Ordered<BTreeMap<u32, Arc<ThreadSlot>>>,
    closed: AtomicBool,
    /// Devices that the process has opened and nobody has closed.
    pub(crate) open_devices: AtomicUsize,
    activity: Arc<Activity>,
}

impl Client {
    pub(crate) fn new(id: u64, credentials: Credentials, region: Region, activity: Arc<Activity>) -> Self {
        activity.client_came();
        Self {
            id,
            credentials,
            owner: Arc::new(Owner::new(credentials)),
            region,
            uffd: OnceLock::new(),
            handles: Ordered::new(order::LISTS, HashMap::new()),
            registered: Ordered::new(order::REGISTERED, HashMap::new()),
            slots: Ordered::new(order::LISTS, BTreeMap::new()),
            closed: AtomicBool::new(false),
            open_devices: AtomicUsize::new(0),
            activity,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials
    }

    /// What stands for the process where its enclaves are counted.
    pub(crate) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Whether the process is gone or has been given up.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Gives the process up: its workers end as soon as they see it. To be called again until they have, because
    /// a process that still lives can play with the words that they sleep on.
    pub(crate) fn close(&self) {
        self.closed.store(true, SeqCst);
        for slot in self.slots() {
            self.region.slot(slot.index()).close();
        }
    }

    /// Takes the process's userfaultfd, once.
    pub(crate) fn set_uffd(&self, uffd: Userfaultfd) -> Result<(), Errno> {
        self.uffd.set(Arc::new(uffd)).map_err(|_| Errno::BUSY)
    }

    /// Lets the process name an enclave.
    pub(crate) fn add_handle(&self, enclave: &Arc<OpenEnclave>) {
        let mut handles = self.handles.lock();
        handles.retain(|_, enclave| enclave.strong_count() > 0);
        handles.insert(enclave.handle(), Arc::downgrade(enclave));
    }

    /// The enclave with a handle that the process was given, if it still exists.
    pub(crate) fn enclave(&self, handle: u64) -> Option<Arc<OpenEnclave>> {
        self.handles.lock().get(&handle)?.upgrade()
    }

    /// All enclaves that the process may name.
    pub(crate) fn enclaves(&self) -> Vec<Arc<OpenEnclave>> {
        self.handles.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Registers a range of an enclave, and keeps the enclave alive.
    pub(crate) fn register(&self, enclave: &Arc<OpenEnclave>, start: u64, end: u64) -> Result<(), Errno> {
        let uffd = self.uffd.get().ok_or(Errno::INVAL)?;
        // The map's lock is held across both, so that a range without its enclave is never seen.
        let mut registered = self.registered.lock();
        enclave.view.register(self.id, uffd, start, end)?;
        registered.insert(enclave.handle(), Arc::clone(enclave));
        Ok(())
    }

    /// Undoes [`register`](Self::register) for a range; the enclave may end with it.
    pub(crate) fn unregister(&self, enclave: &Arc<OpenEnclave>, start: u64, end: u64) {
        let mut registered = self.registered.lock();
        if !enclave.view.unregister(self.id, start, end) {
            registered.remove(&enclave.handle());
        }
    }

    /// The enclave that the process has mapped at `addr` or next behind it, and where that mapping begins or
    /// `addr` if it is inside.
    pub(crate) fn next_mapped(&self, addr: u64) -> Option<(u64, Arc<OpenEnclave>)> {
        let registered = self.registered.lock();
        let mappings = registered
            .values()
            .filter_map(|enclave| Some((enclave.view.next_mapped(self.id, addr)?, enclave)));
        mappings.min_by_key(|(start, _)| *start).map(|(start, enclave)| (start, Arc::clone(enclave)))
    }

    /// Takes a free slot for a thread.
    pub(crate) fn add_slot(&self, make: impl FnOnce(u32) -> ThreadSlot) -> Option<Arc<ThreadSlot>> {
        let mut slots = self.slots.lock();
        // The first gap: keys ascend, so the first one that is not its own rank ends the run.
        let rank = slots.keys().zip(0..).take_while(|(index, rank)| *index == rank).count();
        let index = u32::try_from(rank).ok().filter(|index| (*index as usize) < MAX_SLOTS)?;
        let slot = Arc::new(make(index));
        slots.insert(index, Arc::clone(&slot));
        Some(slot)
    }

    /// The slot with number `index`, if it is in use.
    pub(crate) fn slot(&self, index: u64) -> Option<Arc<ThreadSlot>> {
        self.slots.lock().get(&u32::try_from(index).ok()?).cloned()
    }

    /// Frees a slot.
    pub(crate) fn remove_slot(&self, index: u32) {
        self.slots.lock().remove(&index);
    }

    /// Calls `f` for each slot in use, with their lock held.
    pub(crate) fn for_each_slot(&self, f: impl FnMut(&Arc<ThreadSlot>)) {
        self.slots.lock().values().for_each(f);
    }

    /// The slots in use.
    pub(crate) fn slots(&self) -> Vec<Arc<ThreadSlot>> {
        self.slots.lock().values().cloned().collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        for (_, enclave) in self.registered.get_mut().drain() {
            enclave.view.unregister(self.id, 0, u64::MAX);
        }
        self.activity.client_went();
    }
}
