//! Counters: what the driver has done, for the operator. All accesses are relaxed; nothing is decided by them.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter that only grows.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn bump(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What is counted for each enclave and for all of them.
#[derive(Default)]
pub(crate) struct Events {
    pub(crate) pages_added: Counter,
    pub(crate) faults: Counter,
    pub(crate) retries: Counter,
    pub(crate) remaps: Counter,
    pub(crate) evictions: Counter,
    pub(crate) loads: Counter,
    pub(crate) va_evictions: Counter,
    pub(crate) va_loads: Counter,
    pub(crate) etracks: Counter,
    pub(crate) kicks: Counter,
}

/// Counters of the whole driver.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Enclaves that are open now.
    pub enclaves: u64,
    /// Pages ever added, by EADD and EAUG.
    pub pages_added: u64,
    /// Page faults.
    pub epc_faults: u64,
    /// Faults on a page that was resident and only had to be mapped.
    pub remaps: u64,
    /// Faults after which the thread had to fault again.
    pub retries: u64,
    /// Pages written back (EWB).
    pub evictions: u64,
    /// Pages loaded (ELDU).
    pub loads: u64,
    /// VA pages written back (EWB), not counted among the evictions.
    pub va_evictions: u64,
    /// VA pages loaded (ELDU), not counted among the loads.
    pub va_loads: u64,
    /// Tracking cycles started (ETRACK).
    pub etracks: u64,
    /// Times that threads were made to leave an enclave.
    pub kicks: u64,
    /// VA pages in the EPC now.
    pub va_pages: u64,
    /// EPC pages in all sections.
    pub total_pages: u64,
    /// EPC pages that are free now.
    pub free_pages: u64,
    /// The most EPC pages in use at any time.
    pub peak_pages: u64,
    /// EPC pages that could not be removed, lost until a restart.
    pub leaked_pages: u64,
    /// EPC pages that are broken and were retired.
    pub poisoned_pages: u64,
    /// Reclaim passes.
    pub reclaim_scans: u64,
    /// Pages that reclaim passes looked at.
    pub pages_scanned: u64,
    /// Reclaim passes that somebody made who needed a page at once.
    pub direct_reclaims: u64,
}

/// Counters of one enclave.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EnclaveStats {
    /// Pages it has, with its SECS.
    pub pages: u64,
    /// Pages of these that are in the EPC, without SECS.
    pub resident: u64,
    /// VA pages.
    pub va_pages: u64,
    /// VA pages of these that are in the EPC.
    pub va_resident: u64,
    /// Pages ever added, by EADD and EAUG.
    pub pages_added: u64,
    /// Page faults.
    pub epc_faults: u64,
    /// Faults on a page that was resident and only had to be mapped.
    pub remaps: u64,
    /// Pages written back (EWB).
    pub evictions: u64,
    /// Pages loaded (ELDU).
    pub loads: u64,
}
