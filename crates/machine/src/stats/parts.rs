//! The parts of a snapshot: nodes, users, processes and enclaves.

use serde::{Deserialize, Serialize};

use crate::sight::counters::Counters;
use crate::sight::histogram::Latency;

/// How long things take.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Latencies {
    /// Page faults, from the call to the answer, with all waiting.
    pub fault: Latency,
    /// Ioctls.
    pub ioctl: Latency,
    /// ENCLU leaves that the machine carries out.
    pub enclu: Latency,
    /// Reclaim passes.
    pub reclaim: Latency,
    /// Making the threads inside an enclave leave.
    pub kick: Latency,
    /// Waiting for a reclaim pass to end.
    pub wait: Latency,
}

impl Latencies {
    /// Each with its name and what it measures.
    #[must_use]
    pub fn each(&self) -> [(&'static str, &'static str, &Latency); 6] {
        [
            ("fault", "Page faults, from the call to the answer.", &self.fault),
            ("ioctl", "Ioctls.", &self.ioctl),
            ("enclu", "ENCLU leaves that the machine carries out.", &self.enclu),
            ("reclaim", "Reclaim passes.", &self.reclaim),
            ("kick", "Making the threads inside an enclave leave.", &self.kick),
            ("wait", "Waiting for a reclaim pass to end.", &self.wait),
        ]
    }
}

/// A NUMA node that has EPC.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct NodeInfo {
    /// The node's number.
    pub node: u64,
    /// Bytes of EPC, by the name that Linux gives them in `/sys/devices/system/node/nodeN/x86`.
    pub sgx_total_bytes: u64,
    /// Bytes of these that are free, which Linux does not show.
    pub usgx_free_bytes: u64,
    /// Pages handed out to threads near it.
    pub hits: u64,
    /// Pages handed out to threads near another node.
    pub misses: u64,
    /// Pages that threads near it had to take elsewhere.
    pub foreign: u64,
    /// Pages given back.
    pub freed: u64,
}

/// A user who has or had an enclave.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct UserStats {
    /// User ID; [`u32::MAX`] for all users together who are beyond those that the machine keeps apart.
    pub uid: u32,
    /// Enclaves that are open.
    pub enclaves: u64,
    /// Enclaves that are gone.
    pub past_enclaves: u64,
    /// EPC pages that its enclaves take.
    pub epc_pages: u64,
    /// What the driver has counted for its enclaves, those that are gone included.
    #[serde(flatten)]
    pub counters: Counters,
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
    /// What the driver has counted for the enclaves that it opened itself, those that are gone included.
    pub opened: Counters,
}

/// An enclave.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct EnclaveInfo {
    /// Its number, as in events.
    pub id: u64,
    /// The process that opened it.
    pub pid: u32,
    /// The user of that process.
    pub uid: u32,
    /// Seconds since then.
    pub age_seconds: u64,
    /// First address; 0 before ECREATE.
    pub base: u64,
    /// Bytes of its address range.
    pub size: u64,
    /// Whether it can be entered.
    pub initialized: bool,
    /// Pages that it has, with its SECS.
    pub pages: u64,
    /// Pages of these that are in the EPC, without the SECS.
    pub resident_pages: u64,
    /// Pages of these that are evicted.
    pub evicted_pages: u64,
    /// VA pages.
    pub va_pages: u64,
    /// VA pages of these that are in the EPC.
    pub va_resident_pages: u64,
    /// EPC pages that it takes, of all kinds.
    pub epc_pages: u64,
    /// What the driver has counted for it.
    #[serde(flatten)]
    pub counters: Counters,
    /// How long its page faults take.
    pub fault_latency: Latency,
}
