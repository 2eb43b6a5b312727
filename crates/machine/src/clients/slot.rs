//! What the machine knows of a thread that has a slot.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;
use usgx_sys::socket;
use usgx_wire::slot::turn;

use crate::clients::Client;

/// Counts the pages that a thread has faulted in, so that its last ones can be told.
#[derive(Debug)]
pub(crate) struct FaultClock {
    id: u32,
    now: AtomicU32,
}

/// Numbers of clocks. That they come again after 4 thousand million threads does no harm.
static NEXT_CLOCK: AtomicU32 = AtomicU32::new(1);

impl Default for FaultClock {
    fn default() -> Self {
        Self { id: NEXT_CLOCK.fetch_add(1, Relaxed), now: AtomicU32::new(0) }
    }
}

impl FaultClock {
    /// A number by which to remember the clock.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The number of faults so far; it wraps.
    pub(crate) fn now(&self) -> u32 {
        self.now.load(Relaxed)
    }

    /// Counts a fault; returns its number.
    pub(crate) fn tick(&self) -> u32 {
        self.now.fetch_add(1, Relaxed).wrapping_add(1)
    }
}

/// A thread's slot, the machine's part.
#[derive(Debug)]
pub(crate) struct ThreadSlot {
    index: u32,
    tid: u32,
    kick: OwnedFd,
    clock: Arc<FaultClock>,
    ending: AtomicBool,
    left: Mutex<Left>,
}

/// What counts instead of what the thread has written.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    enclave: u64,
    /// The epoch up to which the thread counts as having left the enclave.
    epoch: u64,
    /// The epoch that the thread had written when it last failed to answer a kick.
    deaf_since: Option<u64>,
}

impl ThreadSlot {
    pub(crate) fn new(index: u32, tid: u32, kick: OwnedFd) -> Self {
        Self {
            index,
            tid,
            kick,
            clock: Arc::default(),
            ending: AtomicBool::new(false),
            left: Mutex::default(),
        }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn tid(&self) -> u32 {
        self.tid
    }

    pub(crate) fn clock(&self) -> &Arc<FaultClock> {
        &self.clock
    }

    /// Says that the thread will make no more calls.
    pub(crate) fn end(&self) {
        self.ending.store(true, SeqCst);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(SeqCst)
    }

    /// Sends the thread a signal, through the socket that it owns.
    pub(crate) fn kick(&self) {
        socket::send_byte(&self.kick);
    }

    /// If the thread is inside the enclave with this handle: the epoch in which it counts as having entered.
    pub(crate) fn inside(&self, client: &Client, handle: u64) -> Option<u64> {
        if client.is_closed() {
            return None;
        }
        let entered = self.written_epoch(client, handle)?;
        // A thread in a call executes nothing of the enclave; its reply will count as a new entry.
        if matches!(client.region().slot(self.index).load_turn(), turn::CALL | turn::UPCALL | turn::ANSWER) {
            return None;
        }
        let left = *self.left.lock();
        Some(if left.enclave == handle { entered.max(left.epoch) } else { entered })
    }

    /// Counts the thread as having left the enclave and come back in `epoch`.
    pub(crate) fn write_off(&self, handle: u64, epoch: u64) {
        *self.left.lock() = Left { enclave: handle, epoch, deaf_since: None };
    }

    /// The same for a thread that had `written` an epoch when it was sent a kick, and has not answered.
    pub(crate) fn write_off_deaf(&self, handle: u64, epoch: u64, written: u64) {
        *self.left.lock() = Left { enclave: handle, epoch, deaf_since: Some(written) };
    }

    /// The epoch that the thread has written, if it is inside the enclave. It writes a later one when it answers a kick.
    pub(crate) fn written_epoch(&self, client: &Client, handle: u64) -> Option<u64> {
        let (enclave, entered) = client.region().slot(self.index).inside()?;
        (enclave == handle).then_some(entered)
    }

    /// Whether a kick is still waiting for the thread, which has `written` an epoch, since it did not answer one in time.
    /// It has executed nothing meanwhile, as a signal comes before the next instruction: it is stopped, say.
    pub(crate) fn is_deaf(&self, handle: u64, written: u64) -> bool {
        let left = *self.left.lock();
        left.enclave == handle && left.deaf_since == Some(written)
    }
}
