//! What the operator may know: counters of the driver and the machine, and who uses how much.

mod parts;
mod read;

use std::ops::Deref;

use serde::{Deserialize, Serialize};
use usgx_driver::Counts;

pub use parts::{ClientStats, EnclaveInfo, Latencies, NodeInfo, UserStats};

use crate::sight::counters::Counters;

/// The machine at one moment. What the driver counts reads as its own fields.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct StatsSnapshot {
    /// The processor's profile.
    pub profile: String,
    /// Process ID of the machine.
    pub machine_pid: u32,
    /// Seconds since the machine was built.
    pub uptime_seconds: u64,
    /// The same in microseconds, for rates.
    pub uptime_us: u64,
    /// EPC pages in all sections.
    pub epc_total_pages: u64,
    /// EPC pages that are free.
    pub epc_free_pages: u64,
    /// The most EPC pages in use at any time.
    pub peak_epc_pages: u64,
    /// EPC pages that were lost.
    pub leaked_pages: u64,
    /// EPC pages that are broken and were retired.
    pub poisoned_pages: u64,
    /// VA pages in the EPC, root VA pages included.
    pub va_pages: u64,
    /// EPC pages that some process has mapped.
    pub mapped_pages: u64,
    /// Page frames in use: EPC pages that are not mapped.
    pub frames: u64,
    /// Places of the backing store that are taken, one for each evicted page; more while a reclaim pass is at work.
    pub backing_pages: u64,
    /// Bytes that evicted pages take.
    pub backing_bytes: u64,
    /// Bytes of enclaves that are evicted.
    pub usgx_swapped_bytes: u64,
    /// Enclaves that are open.
    pub enclaves: u64,
    /// What the driver has counted for all enclaves, those that are gone included.
    #[serde(flatten)]
    pub counters: Counters,
    /// Whether `ksgxd` is at work, or about to be. If not, all that its passes have done is in the other numbers.
    pub ksgxd_busy: bool,
    /// Reclaim passes.
    pub reclaim_scans: u64,
    /// Reclaim passes by somebody who needed a page at once.
    pub direct_reclaims: u64,
    /// Pages that reclaim passes looked at: the sum of the next five, and of pages whose enclave was ending.
    pub pages_scanned: u64,
    /// Pages looked at that had been used since the last look.
    pub pages_young: u64,
    /// Old pages that could not be taken for want of backing store.
    pub pages_refused: u64,
    /// Old pages that can not go before others of their enclave: version arrays in use.
    pub pages_needed: u64,
    /// Old pages that could not be written back and stayed.
    pub pages_kept: u64,
    /// Old pages that were written back.
    pub pages_reclaimed: u64,
    /// Calls through slots.
    pub calls: u64,
    /// Questions to clients.
    pub upcalls: u64,
    /// How long things take.
    pub latencies: Latencies,
    /// Each NUMA node that has EPC.
    pub nodes: Vec<NodeInfo>,
    /// Each user who has or had an enclave.
    pub users: Vec<UserStats>,
    /// Processes that use the machine.
    pub clients: Vec<ClientStats>,
    /// Enclaves that are open.
    pub enclave_list: Vec<EnclaveInfo>,
}

impl Deref for StatsSnapshot {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.counters
    }
}

impl StatsSnapshot {
    /// Makes it smaller, which says whether it did: drops half of its longest list, enclaves with the fewest pages
    /// first.
    pub(crate) fn shorten(&mut self) -> bool {
        let lengths = [self.enclave_list.len(), self.clients.len(), self.users.len()];
        let longest = lengths.into_iter().max().unwrap_or(0);
        if lengths[0] == longest {
            self.enclave_list.sort_by_key(|enclave| std::cmp::Reverse(enclave.pages));
            self.enclave_list.truncate(longest / 2);
        } else if lengths[1] == longest {
            self.clients.truncate(longest / 2);
        } else {
            self.users.truncate(longest / 2);
        }
        longest > 0
    }
}
