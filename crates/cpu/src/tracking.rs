//! Tracking: proving that no thread can still use an old translation of a page.
//!
//! An enclave has an epoch, and a thread remembers the epoch in which it entered. EBLOCK, EMODPR and EMODT stamp
//! the page with the enclave's epoch; ETRACK moves the epoch on, once every thread that entered before the
//! current one has left. A page is *tracked* when its stamp is behind the epoch and every thread inside entered
//! after the stamp. The threads and their epochs are the machine's ([`LogicalProcessors`]); the enclave's epoch
//! is here. Called by the evict and SGX2 leaves and by EACCEPT. Source: SDM volume 3D, "EPC Page Eviction"; the
//! arithmetic is a model's choice.

use std::sync::atomic::{AtomicU64, Ordering};

use usgx_isa::SgxCode;

/// The stamp of a page that no thread has to be tracked for, older than every epoch.
///
/// A page that was just made valid has it, one loaded by ELDU or ELDB too: EWB saw all translations gone.
pub(crate) const NO_STAMP: u64 = 0;
/// The first epoch of an enclave.
pub(crate) const FIRST_EPOCH: u64 = 1;

/// Who is inside which enclave.
pub trait LogicalProcessors: Send + Sync {
    /// The smallest entry epoch among the threads now inside the enclave `eid`; `None` if nobody is inside.
    fn oldest_entry(&self, eid: u64) -> Option<u64>;

    /// Says that entries into the enclave `eid` from now on carry `epoch`. Called at every change of the epoch,
    /// at ECREATE and at the reload of an SECS.
    fn set_epoch(&self, eid: u64, epoch: u64);
}

/// The epoch of one resident enclave.
#[derive(Debug)]
pub(crate) struct Tracker {
    eid: u64,
    epoch: AtomicU64,
    /// Pages with stamps up to this one are tracked, and stay so: whoever enters later does so in a later epoch.
    /// A batch of pages blocked together so asks for the threads once.
    tracked: AtomicU64,
}

impl Tracker {
    /// Starts tracking the enclave `eid` in `epoch`.
    pub(crate) fn start(eid: u64, epoch: u64, threads: &impl LogicalProcessors) -> Self {
        threads.set_epoch(eid, epoch);
        Self { eid, epoch: AtomicU64::new(epoch), tracked: AtomicU64::new(NO_STAMP) }
    }

    /// The current epoch. To stamp a page, read it *after* the change to the page's entry is made: a thread that
    /// enters in a later epoch then surely meets the change.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Starts a new tracking cycle. Preconditions: the track lock of the SECS is held.
    pub(crate) fn advance(&self, threads: &impl LogicalProcessors) -> Result<(), SgxCode> {
        let epoch = self.epoch();
        if threads.oldest_entry(self.eid).is_some_and(|entered| entered < epoch) {
            return Err(SgxCode::PrevTrkIncmpl);
        }
        // In this order: a thread that enters in between counts as an old one, which is only too careful.
        // The other way round, a page blocked in between would have a stamp behind that thread's epoch.
        self.epoch.store(epoch + 1, Ordering::SeqCst);
        threads.set_epoch(self.eid, epoch + 1);
        Ok(())
    }

    /// Whether no thread can still use a translation made before `stamp` was given.
    pub(crate) fn is_tracked(&self, stamp: u64, threads: &impl LogicalProcessors) -> bool {
        if stamp <= self.tracked.load(Ordering::SeqCst) {
            return true;
        }
        let is_tracked =
            stamp < self.epoch() && threads.oldest_entry(self.eid).is_none_or(|entered| entered > stamp);
        if is_tracked {
            self.tracked.fetch_max(stamp, Ordering::SeqCst);
        }
        is_tracked
    }

    /// Whether any thread is inside the enclave.
    pub(crate) fn is_active(&self, threads: &impl LogicalProcessors) -> bool {
        threads.oldest_entry(self.eid).is_some()
    }
}
