//! The counters in Prometheus' text format, by its conventions: base units, `_total` for what only grows.
//!
//! Names are for dashboards to rely on. Enclaves come and go, so only the [`MAX_ENCLAVES`] largest have series of
//! their own; users' totals have no gap. Source: prometheus.io, "Exposition formats", "Metric and label naming".

use std::fmt::{Display, Write};

use usgx_isa::PAGE_SIZE;

use super::histogram::{Latency, NR_BOUNDS};
use crate::stats::StatsSnapshot;

/// Most enclaves that have series of their own.
const MAX_ENCLAVES: usize = 100;

/// Labels of a sample.
type Labels<'a> = [(&'a str, &'a dyn Display)];

/// The text so far.
struct Text(String);

impl Text {
    /// Begins a family of metrics.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let value = value.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{value}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    /// A family with one sample.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, help: &str, latency: &Latency) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut sum = 0;
        for index in 0..=NR_BOUNDS {
            sum += latency.buckets.get(index).copied().unwrap_or(0);
            match Latency::bound(index) {
                Some(bound) => self.sample(&bucket, &[("le", &bound)], sum),
                None => self.sample(&bucket, &[("le", &"+Inf")], sum),
            }
        }
        self.sample(&format!("{name}_sum"), &[], latency.nanoseconds as f64 / 1e9);
        self.sample(&format!("{name}_count"), &[], sum);
    }
}

/// The name of a counter of the driver's: in the singular of what it counts, without units that are pages anyway.
fn counter_name(name: &str) -> String {
    let name = match name {
        "evictions" => "epc_evictions",
        "loads" => "epc_loads",
        "remaps" => "fault_remaps",
        "retries" => "fault_retries",
        "evictions_at_once" => "epc_evictions_at_once",
        "evictions_after_etrack" => "epc_evictions_after_etrack",
        "evictions_after_kick" => "epc_evictions_after_kick",
        "pages_added" => "epc_pages_added",
        "pages_augmented" => "epc_pages_augmented",
        "pages_removed" => "epc_pages_removed",
        "pages_lost" => "epc_pages_lost",
        other => other,
    };
    format!("usgx_{name}_total")
}

/// Writes everything.
pub(crate) fn write(stats: &StatsSnapshot) -> String {
    let mut text = Text(String::with_capacity(32 * 1024));
    machine(&mut text, stats);
    nodes(&mut text, stats);
    for (name, help, latency) in stats.latencies.each() {
        text.histogram(&format!("usgx_{name}_seconds"), help, latency);
    }
    users(&mut text, stats);
    enclaves(&mut text, stats);
    text.0
}

fn machine(text: &mut Text, stats: &StatsSnapshot) {
    text.family("usgx_machine_info", "gauge", "The machine.");
    let version = env!("CARGO_PKG_VERSION");
    text.sample("usgx_machine_info", &[("profile", &stats.profile), ("version", &version)], 1);
    let uptime = stats.uptime_us as f64 / 1e6;
    text.single("usgx_uptime_seconds", "gauge", "Time since the machine was built.", uptime);

    let enclave_pages: u64 = stats.enclave_list.iter().map(|enclave| enclave.resident_pages).sum();
    let used = stats.epc_total_pages - stats.epc_free_pages.min(stats.epc_total_pages);
    let gone = stats.leaked_pages + stats.poisoned_pages;
    let rest = used.saturating_sub(enclave_pages + stats.va_pages + gone);
    text.family("usgx_epc_pages", "gauge", "Pages of the EPC by what they are in use for.");
    for (state, pages) in [
        ("free", stats.epc_free_pages),
        ("enclave", enclave_pages),
        ("va", stats.va_pages),
        ("leaked", stats.leaked_pages),
        ("poisoned", stats.poisoned_pages),
        ("other", rest),
    ] {
        text.sample("usgx_epc_pages", &[("state", &state)], pages);
    }
    for (name, help, value) in [
        ("usgx_epc_size_pages", "Pages of the EPC.", stats.epc_total_pages),
        ("usgx_epc_peak_pages", "The most pages of the EPC in use at any time.", stats.peak_epc_pages),
        ("usgx_mapped_pages", "Pages that some process has mapped.", stats.mapped_pages),
        ("usgx_swapped_bytes", "Enclave memory that is evicted.", stats.usgx_swapped_bytes),
        ("usgx_backing_bytes", "What evicted pages take outside of the EPC.", stats.backing_bytes),
        ("usgx_enclaves", "Enclaves that are open.", stats.enclaves),
        ("usgx_clients", "Processes that use the machine.", stats.clients.len() as u64),
    ] {
        text.single(name, "gauge", help, value);
    }
    for (name, help, value) in stats.counters.each() {
        text.single(&counter_name(name), "counter", help, value);
    }
    for (name, help, value) in [
        ("usgx_reclaim_passes_total", "Reclaim passes.", stats.reclaim_scans),
        (
            "usgx_direct_reclaims_total",
            "Reclaim passes by somebody who needed a page.",
            stats.direct_reclaims,
        ),
        ("usgx_calls_total", "Calls of programs' threads.", stats.calls),
        ("usgx_upcalls_total", "Questions to programs' threads.", stats.upcalls),
    ] {
        text.single(name, "counter", help, value);
    }
    let name = "usgx_reclaim_pages_total";
    text.family(name, "counter", "Pages that reclaim passes looked at, by what they found.");
    let known = [
        ("young", stats.pages_young),
        ("refused", stats.pages_refused),
        ("needed", stats.pages_needed),
        ("kept", stats.pages_kept),
        ("reclaimed", stats.pages_reclaimed),
    ];
    let orphans = stats.pages_scanned.saturating_sub(known.iter().map(|(_, pages)| pages).sum());
    for (found, pages) in known.into_iter().chain([("orphan", orphans)]) {
        text.sample(name, &[("found", &found)], pages);
    }
}

fn nodes(text: &mut Text, stats: &StatsSnapshot) {
    text.family("usgx_node_epc_bytes", "gauge", "EPC of a NUMA node.");
    for node in &stats.nodes {
        let used = node.sgx_total_bytes.saturating_sub(node.usgx_free_bytes);
        for (state, bytes) in [("free", node.usgx_free_bytes), ("used", used)] {
            text.sample("usgx_node_epc_bytes", &[("node", &node.node), ("state", &state)], bytes);
        }
    }
    let name = "usgx_node_allocations_total";
    text.family(name, "counter", "Pages handed out, as numastat names it.");
    for node in &stats.nodes {
        for (kind, pages) in [("hit", node.hits), ("miss", node.misses), ("foreign", node.foreign)] {
            text.sample(name, &[("node", &node.node), ("kind", &kind)], pages);
        }
    }
}

fn users(text: &mut Text, stats: &StatsSnapshot) {
    let user = |uid: u32| if uid == crate::OTHERS { "others".to_owned() } else { uid.to_string() };
    text.family("usgx_user_epc_bytes", "gauge", "EPC that a user's enclaves take.");
    for one in &stats.users {
        text.sample("usgx_user_epc_bytes", &[("uid", &user(one.uid))], one.epc_pages * PAGE_SIZE as u64);
    }
    for (name, help) in [
        ("epc_faults", "Page faults in a user's enclaves."),
        ("evictions", "Pages of a user's enclaves written back by EWB."),
        ("loads", "Pages of a user's enclaves brought back by ELDU."),
    ] {
        let metric = counter_name(name).replacen("usgx_", "usgx_user_", 1);
        text.family(&metric, "counter", help);
        for one in &stats.users {
            let value = one.counters.each().find(|(other, ..)| *other == name).map_or(0, |(.., value)| value);
            text.sample(&metric, &[("uid", &user(one.uid))], value);
        }
    }
}

fn enclaves(text: &mut Text, stats: &StatsSnapshot) {
    let mut enclaves: Vec<_> = stats.enclave_list.iter().collect();
    enclaves.sort_by_key(|enclave| std::cmp::Reverse(enclave.pages));
    enclaves.truncate(MAX_ENCLAVES);
    text.family("usgx_enclave_pages", "gauge", "Pages of an enclave, by where they are.");
    for enclave in &enclaves {
        for (state, pages) in [("resident", enclave.resident_pages), ("evicted", enclave.evicted_pages)] {
            let (id, pid, uid) = (&enclave.id, &enclave.pid, &enclave.uid);
            let labels: &Labels<'_> = &[("enclave", id), ("pid", pid), ("uid", uid), ("state", &state)];
            text.sample("usgx_enclave_pages", labels, pages);
        }
    }
    text.family("usgx_enclave_faults_total", "counter", "Page faults of an enclave.");
    for enclave in &enclaves {
        let labels: &Labels<'_> = &[("enclave", &enclave.id), ("pid", &enclave.pid), ("uid", &enclave.uid)];
        text.sample("usgx_enclave_faults_total", labels, enclave.counters.epc_faults);
    }
}
