//! Sight: what the machine knows about itself, and how it tells.
//!
//! Everything that happens arrives here once, in the thread that does it: from the driver
//! ([`usgx_driver::Machine::observe`]), from the EPC manager (reclaim passes) and from the machine's own calls. The
//! driver has counted it already; here it is timed ([`Histogram`]), put down to whoever owns the enclave
//! ([`Owners`]), and, while somebody listens, written into a [`Ring`]. Readers come by the control socket
//! (`doors::control`, `doors::stream`) and by the metrics endpoint ([`endpoint`]).
//!
//! Called with the enclave's lock held. Lock order: innermost; each lock here is held for a look-up or a change.

pub(crate) mod counters;
pub(crate) mod endpoint;
pub(crate) mod event;
pub(crate) mod exposition;
pub(crate) mod histogram;
mod http;
pub(crate) mod owners;
mod ring;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use usgx_driver::{EnclaveId, Event};

use crate::clients::worker;
use event::{Happening, Reclaim};
use histogram::Histogram;
use owners::Owners;
pub(crate) use ring::{Reader, Ring};

/// Events that the ring holds: at the hundred thousand events in a second of a machine that does nothing but page,
/// a reader may be away for 80 ms.
const RING_SIZE: usize = 8192;

thread_local! {
    /// When this thread's reclaim pass began. Passes do not nest.
    static PASS_BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Times of what takes long enough to be felt.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// A page fault, from the call to the answer, with all waiting.
    pub(crate) fault: Histogram,
    /// An ioctl, likewise.
    pub(crate) ioctl: Histogram,
    /// An ENCLU leaf that the machine carries out.
    pub(crate) enclu: Histogram,
    /// A reclaim pass, `ksgxd`'s or another.
    pub(crate) reclaim: Histogram,
    /// Making the threads inside an enclave leave.
    pub(crate) kick: Histogram,
    /// Waiting for a reclaim pass to end.
    pub(crate) wait: Histogram,
}

/// The machine's sight of itself.
#[derive(Debug)]
pub(crate) struct Sight {
    pub(crate) latencies: Latencies,
    pub(crate) owners: Owners,
    pub(crate) ring: Arc<Ring>,
    born: Instant,
}

impl Default for Sight {
    fn default() -> Self {
        Self {
            latencies: Latencies::default(),
            owners: Owners::default(),
            ring: Arc::new(Ring::new(RING_SIZE)),
            born: Instant::now(),
        }
    }
}

/// Times what `f` does.
pub(crate) fn timed<T>(histogram: &Histogram, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = f();
    histogram.record(start.elapsed());
    result
}

impl Sight {
    /// Since the machine was built.
    pub(crate) fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// Something has happened to an enclave.
    pub(crate) fn enclave_event(&self, enclave: EnclaveId, event: &Event<'_>) {
        if let Event::Destroy { counts } = event {
            self.owners.enclave_ended(enclave, counts);
        }
        if self.ring.has_readers() {
            self.tell(Some(enclave), Happening::of(event));
        }
    }

    /// A reclaim pass begins in this thread.
    pub(crate) fn reclaim_begins(&self) {
        PASS_BEGAN.set(Some(Instant::now()));
        if self.ring.has_readers() {
            self.tell(None, Happening::Reclaim(Reclaim::Begin));
        }
    }

    /// It ends.
    pub(crate) fn reclaim_ends(&self, looked_at: usize, freed: usize) {
        if let Some(began) = PASS_BEGAN.take() {
            self.latencies.reclaim.record(began.elapsed());
        }
        if self.ring.has_readers() {
            self.tell(
                None,
                Happening::Reclaim(Reclaim::End { looked_at: looked_at as u64, freed: freed as u64 }),
            );
        }
    }

    fn tell(&self, enclave: Option<EnclaveId>, what: Happening) {
        let pid = worker::with_current(|link| link.map_or(0, |link| link.client.credentials().pid));
        self.ring.push(self.born, pid, enclave.map_or(0, |id| id.0), what);
    }
}
