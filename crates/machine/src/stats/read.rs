//! Reading a snapshot. Takes the enclaves' locks, one after the other, so it is not for the event loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use usgx_driver::{EnclaveId, EnclaveStats, NodeStats};
use usgx_isa::PAGE_SIZE;

use super::{ClientStats, EnclaveInfo, Latencies, NodeInfo, StatsSnapshot, UserStats};
use crate::clients::Client;
use crate::sight::Sight;
use crate::sight::counters::Counters;
use crate::sight::owners::OTHERS;
use crate::system::Host;

const PAGE: u64 = PAGE_SIZE as u64;

fn enclave(sight: &Sight, id: EnclaveId, stats: &EnclaveStats) -> EnclaveInfo {
    let record = sight.owners.record(id);
    let (base, size) = stats.place.unwrap_or_default();
    EnclaveInfo {
        id: id.0,
        pid: record.as_ref().map_or(0, |record| record.owner.pid),
        uid: record.as_ref().map_or(OTHERS, |record| record.owner.uid),
        age_seconds: record.as_ref().map_or(0, |record| record.age().as_secs()),
        base,
        size,
        initialized: stats.initialized,
        pages: stats.pages,
        resident_pages: stats.resident,
        evicted_pages: stats.evicted(),
        va_pages: stats.va_pages,
        va_resident_pages: stats.va_resident,
        epc_pages: stats.epc_pages(),
        counters: Counters(stats.counts),
        fault_latency: record.map(|record| record.faults.read()).unwrap_or_default(),
    }
}

/// What users have now, on top of what they had.
fn users(sight: &Sight, enclaves: &[EnclaveInfo]) -> Vec<UserStats> {
    let past = sight.owners.users();
    let mut users: BTreeMap<u32, UserStats> = past
        .into_iter()
        .map(|(uid, past)| {
            let user = UserStats {
                uid,
                past_enclaves: past.enclaves,
                counters: past.counters,
                ..UserStats::default()
            };
            (uid, user)
        })
        .collect();
    for enclave in enclaves {
        let user = users
            .entry(enclave.uid)
            .or_insert_with(|| UserStats { uid: enclave.uid, ..UserStats::default() });
        user.enclaves += 1;
        user.epc_pages += enclave.epc_pages;
        user.counters.add(&enclave.counters);
    }
    users.into_values().collect()
}

fn client(client: &Client, enclaves: &[EnclaveInfo]) -> ClientStats {
    let owner = client.owner();
    let mut stats = ClientStats {
        pid: owner.pid,
        uid: owner.uid,
        threads: client.slots().len() as u64,
        opened: owner.past(),
        ..ClientStats::default()
    };
    for open in client.enclaves() {
        let Some(enclave) = enclaves.iter().find(|enclave| enclave.id == open.handle()) else { continue };
        stats.enclaves += 1;
        stats.resident_pages += enclave.resident_pages;
        stats.evicted_pages += enclave.evicted_pages;
        stats.epc_faults += enclave.counters.epc_faults;
        if Arc::ptr_eq(&open.record.owner, owner) {
            stats.opened.add(&enclave.counters);
        }
    }
    stats
}

fn node(stats: &NodeStats) -> NodeInfo {
    NodeInfo {
        node: stats.node as u64,
        sgx_total_bytes: stats.total as u64 * PAGE,
        usgx_free_bytes: stats.free as u64 * PAGE,
        hits: stats.hits,
        misses: stats.misses,
        foreign: stats.foreign,
        freed: stats.freed,
    }
}

impl StatsSnapshot {
    /// Reads everything.
    pub(crate) fn read(host: &Host, clients: &[Arc<Client>]) -> Self {
        // First: if it is at rest now, what comes after it is complete.
        let ksgxd_busy = host.platform.ksgxd_is_busy();
        let sight = &host.sight;
        let mut enclaves: Vec<EnclaveInfo> =
            host.driver.enclave_stats().iter().map(|(id, stats)| enclave(sight, *id, stats)).collect();
        enclaves.sort_by_key(|enclave| enclave.id);
        let driver = host.driver.stats();
        let age = sight.age();
        let times = &sight.latencies;
        Self {
            profile: host.hw.profile().name().to_owned(),
            machine_pid: std::process::id(),
            uptime_seconds: age.as_secs(),
            uptime_us: u64::try_from(age.as_micros()).unwrap_or(u64::MAX),
            epc_total_pages: driver.total_pages,
            epc_free_pages: driver.free_pages,
            peak_epc_pages: driver.peak_pages,
            leaked_pages: driver.leaked_pages,
            poisoned_pages: driver.poisoned_pages,
            va_pages: driver.va_pages,
            mapped_pages: host.views.nr_mapped() as u64,
            frames: host.frames.nr_used() as u64,
            backing_pages: host.store.nr_pages(),
            backing_bytes: host.store.size(),
            usgx_swapped_bytes: enclaves.iter().map(|enclave| enclave.evicted_pages * PAGE).sum(),
            enclaves: driver.enclaves,
            counters: Counters(driver.counts),
            ksgxd_busy,
            reclaim_scans: driver.reclaim_scans,
            direct_reclaims: driver.direct_reclaims,
            pages_scanned: driver.pages_scanned,
            pages_young: driver.pages_young,
            pages_refused: driver.pages_refused,
            pages_needed: driver.pages_needed,
            pages_kept: driver.pages_kept,
            pages_reclaimed: driver.pages_reclaimed,
            calls: host.calls.load(Relaxed),
            upcalls: host.upcalls.load(Relaxed),
            latencies: Latencies {
                fault: times.fault.read(),
                ioctl: times.ioctl.read(),
                enclu: times.enclu.read(),
                reclaim: times.reclaim.read(),
                kick: times.kick.read(),
                wait: times.wait.read(),
            },
            nodes: host.driver.node_stats().iter().map(node).collect(),
            users: users(sight, &enclaves),
            clients: clients.iter().map(|one| client(one, &enclaves)).collect(),
            enclave_list: enclaves,
        }
    }
}
