//! What the operator may know: counters of the driver and the machine, and who uses how much.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use crate::clients::Client;
use crate::system::Host;

/// The machine at one moment.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct StatsSnapshot {
    /// The processor's profile.
    pub profile: String,
    /// Seconds since the machine was built.
    pub uptime_seconds: u64,
    /// EPC pages in all sections.
    pub epc_total_pages: u64,
    /// EPC pages that are free.
    pub epc_free_pages: u64,
    /// The most EPC pages in use at any time.
    pub peak_epc_pages: u64,
    /// EPC pages that were lost.
    pub leaked_pages: u64,
    /// VA pages in the EPC.
    pub va_pages: u64,
    /// EPC pages that some process has mapped.
    pub mapped_pages: u64,
    /// Page frames in use: EPC pages that are not mapped.
    pub frames: u64,
    /// Bytes that evicted pages take.
    pub backing_bytes: u64,
    /// Enclaves that are open.
    pub enclaves: u64,
    /// Pages ever added, by EADD and EAUG.
    pub pages_added: u64,
    /// Page faults.
    pub epc_faults: u64,
    /// Pages written back.
    pub evictions: u64,
    /// Pages loaded.
    pub loads: u64,
    /// Faults on a page that only had to be mapped.
    pub remaps: u64,
    /// Faults after which the thread had to fault again.
    pub retries: u64,
    /// Tracking cycles.
    pub etracks: u64,
    /// Times that threads were made to leave an enclave.
    pub kicks: u64,
    /// Reclaim passes.
    pub reclaim_scans: u64,
    /// Pages that reclaim passes looked at.
    pub pages_scanned: u64,
    /// Reclaim passes by somebody who needed a page at once.
    pub direct_reclaims: u64,
    /// Calls through slots.
    pub calls: u64,
    /// Questions to clients.
    pub upcalls: u64,
    /// Processes that use the machine.
    pub clients: Vec<ClientStats>,
}

/// A process that uses the machine.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct ClientStats {
    /// Process ID, or 0 if it is not visible to the machine.
    pub pid: u32,
    /// User ID.
    pub uid: u32,
    /// Threads that have a slot.
    pub threads: u64,
    /// Enclaves that it may use.
    pub enclaves: u64,
    /// Pages of these that are in the EPC. Enclaves that are shared count for every process.
    pub resident_pages: u64,
    /// Pages of these that are evicted.
    pub evicted_pages: u64,
    /// Page faults on these enclaves.
    pub epc_faults: u64,
}

impl ClientStats {
    fn read(client: &Client) -> Self {
        let credentials = client.credentials();
        let mut stats = Self {
            pid: credentials.pid,
            uid: credentials.uid,
            threads: client.slots().len() as u64,
            ..Self::default()
        };
        for open in client.enclaves() {
            let enclave = open.enclave.stats();
            stats.enclaves += 1;
            stats.resident_pages += enclave.resident;
            // The SECS is counted among the pages, not among the resident ones.
            stats.evicted_pages += enclave.pages.saturating_sub(1 + enclave.resident);
            stats.epc_faults += enclave.epc_faults;
        }
        stats
    }
}

impl StatsSnapshot {
    /// Reads all counters; takes the locks of the clients' enclaves, one after the other.
    pub(crate) fn read(host: &Host, clients: &[Arc<Client>]) -> Self {
        let driver = host.driver.stats();
        Self {
            profile: host.hw.profile().name().to_owned(),
            uptime_seconds: host.started.elapsed().as_secs(),
            epc_total_pages: driver.total_pages,
            epc_free_pages: driver.free_pages,
            peak_epc_pages: driver.peak_pages,
            leaked_pages: driver.leaked_pages,
            va_pages: driver.va_pages,
            mapped_pages: host.views.nr_mapped() as u64,
            frames: host.frames.nr_used() as u64,
            backing_bytes: host.store.size(),
            enclaves: driver.enclaves,
            pages_added: driver.pages_added,
            epc_faults: driver.epc_faults,
            evictions: driver.evictions,
            loads: driver.loads,
            remaps: driver.remaps,
            retries: driver.retries,
            etracks: driver.etracks,
            kicks: driver.kicks,
            reclaim_scans: driver.reclaim_scans,
            pages_scanned: driver.pages_scanned,
            direct_reclaims: driver.direct_reclaims,
            calls: host.calls.load(Relaxed),
            upcalls: host.upcalls.load(Relaxed),
            clients: clients.iter().map(|client| ClientStats::read(client)).collect(),
        }
    }
}
