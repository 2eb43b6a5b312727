//! What the driver is instantiated with here, and what everything in the machine shares.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Sender;

use parking_lot::Mutex;
use usgx_cpu::Processor;
use usgx_driver::{Driver, Enclave, EnclaveId, Event};
use usgx_sys::pace::Crowd;

use crate::clients::Client;
use crate::clients::register::Register;
use crate::clients::tickets::Tickets;
use crate::doors::activity::Activity;
use crate::hardware::frames::{FrameBytes, Frames};
use crate::hardware::spaces::{Spaces, Views};
use crate::hardware::threads::Threads;
use crate::hardware::view::View;
use crate::kernel::platform::HostPlatform;
use crate::kernel::store::Store;
use crate::sight::Sight;
use crate::sight::owners::Record;

/// The processor.
pub(crate) type Hw = Processor<FrameBytes, Threads>;

/// The bundle of types that the driver runs with.
#[derive(Debug)]
pub(crate) struct System;

impl usgx_driver::Machine for System {
    type Hw = Hw;
    type Platform = HostPlatform;
    type Spaces = Spaces;
    type Store = Store;

    fn observe(platform: &HostPlatform, enclave: EnclaveId, event: &Event<'_>) {
        platform.sight().enclave_event(enclave, event);
    }
}

/// An enclave that a device descriptor or a mapping keeps alive.
pub(crate) struct OpenEnclave {
    pub(crate) enclave: Enclave<System>,
    pub(crate) view: Arc<View>,
    /// Whose it is, and its times.
    pub(crate) record: Arc<Record>,
    views: Arc<Views>,
}

impl OpenEnclave {
    pub(crate) fn new(
        enclave: Enclave<System>,
        view: Arc<View>,
        record: Arc<Record>,
        views: Arc<Views>,
    ) -> Self {
        Self { enclave, view, record, views }
    }

    /// The number by which clients name it, never 0: the driver's own.
    pub(crate) fn handle(&self) -> u64 {
        self.enclave.id().0
    }
}

impl Drop for OpenEnclave {
    fn drop(&mut self) {
        // The driver says when a created enclave is gone (a reclaim pass may still hold it); of one that was
        // never created it says nothing.
        if self.enclave.base_size().is_none() {
            self.views.forget(self.enclave.id());
        }
    }
}

impl std::fmt::Debug for OpenEnclave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenEnclave").field("id", &self.enclave.id()).finish_non_exhaustive()
    }
}

/// Something whose end can take a while: an enclave with many pages. Dropped by a thread of its own, so that the
/// event loop does not wait.
#[derive(Debug)]
pub(crate) enum Garbage {
    /// A client whose channel has hung up.
    Client(Arc<Client>),
    /// An enclave whose device was closed.
    Enclave(Arc<OpenEnclave>),
}

/// What everything in the machine shares.
pub(crate) struct Host {
    pub(crate) driver: Driver<System>,
    pub(crate) hw: Arc<Hw>,
    pub(crate) frames: Arc<Frames>,
    pub(crate) views: Arc<Views>,
    pub(crate) platform: Arc<HostPlatform>,
    pub(crate) store: Arc<Store>,
    pub(crate) clients: Register,
    pub(crate) tickets: Tickets,
    pub(crate) activity: Arc<Activity>,
    /// The workers, as far as they share processors.
    pub(crate) crowd: Arc<Crowd>,
    /// Inode numbers of `/dev/sgx_provision` descriptors that are open.
    pub(crate) provision: Mutex<HashSet<u64>>,
    pub(crate) garbage: Mutex<Sender<Garbage>>,
    /// The first page of every client's region.
    pub(crate) region_header: Vec<u8>,
    pub(crate) sight: Arc<Sight>,
    pub(crate) next_client: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) upcalls: AtomicU64,
}

impl Host {
    /// Has somebody else drop something; drops it here if that somebody is gone.
    pub(crate) fn discard(&self, garbage: Garbage) {
        let sender = self.garbage.lock().clone();
        let _ = sender.send(garbage);
    }

    pub(crate) fn new_client_id(&self) -> u64 {
        self.next_client.fetch_add(1, Relaxed)
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("hw", &self.hw).finish_non_exhaustive()
    }
}
