//! `usgx stats`: a machine's numbers, once or again and again.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use usgx_machine::StatsSnapshot;

use super::{names, printed};
use crate::machine;
use crate::size::Size;
use crate::statistics::{Statistics, grouped};

const PAGE_SIZE: u64 = 4096;

/// Prints the numbers of the machine at `socket`.
///
/// # Errors
///
/// If no machine answers.
pub(crate) fn show(socket: &Path, json: bool, interval: Option<Duration>) -> Result<ExitCode> {
    let users = names::Users::read();
    let mut before: Option<StatsSnapshot> = None;
    loop {
        let stats = machine::snapshot(socket)?;
        let text = if json {
            Statistics(stats.clone()).json() + "\n"
        } else {
            describe(&stats, before.as_ref(), &users)
        };
        let written = io::stdout().write_all(text.as_bytes());
        let Some(interval) = interval.filter(|_| written.is_ok()) else { return printed(written) };
        before = Some(stats);
        std::thread::sleep(interval);
    }
}

/// How often something happens in a second; nothing before there are two readings.
fn rate(now: u64, before: Option<u64>, seconds: f64) -> String {
    match before {
        Some(before) if seconds > 0.0 => format!("{:.0}", now.saturating_sub(before) as f64 / seconds),
        _ => String::new(),
    }
}

fn describe(stats: &StatsSnapshot, before: Option<&StatsSnapshot>, users: &names::Users) -> String {
    let seconds = before.map_or(0.0, |before| stats.uptime_us.saturating_sub(before.uptime_us) as f64 / 1e6);
    let pages = |count: u64| Size(count * PAGE_SIZE).to_string();
    let mut text = String::new();
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        text,
        "EPC {} ({}), up {} s, {} enclaves, {} processes",
        pages(stats.epc_total_pages),
        stats.profile,
        stats.uptime_seconds,
        stats.enclaves,
        stats.clients.len()
    );
    for node in &stats.nodes {
        let _ = writeln!(
            text,
            "  node {}: sgx_total_bytes {}, usgx_free_bytes {}, hits {}, misses {}",
            node.node, node.sgx_total_bytes, node.usgx_free_bytes, node.hits, node.misses
        );
    }
    let _ = writeln!(
        text,
        "  usgx_swapped_bytes {}, in the backing store {}, at most in use {}\n",
        stats.usgx_swapped_bytes,
        Size(stats.backing_bytes),
        pages(stats.peak_epc_pages)
    );
    let _ = writeln!(text, "{:<26} {:>14} {:>10}", "", "TOTAL", "PER SECOND");
    let more = |stats: &StatsSnapshot| {
        [
            ("reclaim_scans", "Reclaim passes.", stats.reclaim_scans),
            ("direct_reclaims", "Those of them by somebody who needed a page.", stats.direct_reclaims),
            ("pages_scanned", "Pages that passes looked at.", stats.pages_scanned),
            ("pages_young", "Those of them that were in use.", stats.pages_young),
            ("pages_reclaimed", "Those of them that were written back.", stats.pages_reclaimed),
            ("pages_needed", "Version arrays that other pages need.", stats.pages_needed),
            ("pages_kept", "Those of them that could not be written back.", stats.pages_kept),
            ("pages_refused", "Those of them for which there was no backing store.", stats.pages_refused),
        ]
    };
    let all = |stats: &StatsSnapshot| stats.counters.each().chain(more(stats)).collect::<Vec<_>>();
    let earlier = before.map(all);
    for (index, (name, help, value)) in all(stats).into_iter().enumerate() {
        let rate = rate(value, earlier.as_ref().map(|earlier| earlier[index].2), seconds);
        let _ = writeln!(text, "{name:<26} {:>14} {rate:>10}  {help}", grouped(value));
    }
    latencies(&mut text, stats);
    let _ = writeln!(
        text,
        "\n{:<16} {:>8} {:>8} {:>10} {:>12} {:>12}",
        "USER", "OPEN", "PAST", "EPC", "FAULTS", "EVICTIONS"
    );
    for user in &stats.users {
        let _ = writeln!(
            text,
            "{:<16} {:>8} {:>8} {:>10} {:>12} {:>12}",
            users.name(user.uid),
            user.enclaves,
            user.past_enclaves,
            pages(user.epc_pages),
            grouped(user.counters.epc_faults),
            grouped(user.counters.evictions)
        );
    }
    enclaves(&mut text, stats, users);
    text
}

fn latencies(text: &mut String, stats: &StatsSnapshot) {
    let _ = writeln!(
        text,
        "\n{:<26} {:>14} {:>10} {:>10} {:>10}",
        "", "COUNT", "MEAN", "HALF BELOW", "99% BELOW"
    );
    for (name, help, latency) in stats.latencies.each() {
        let _ = writeln!(
            text,
            "{name:<26} {:>14} {:>10} {:>10} {:>10}  {help}",
            grouped(latency.count()),
            time(Some(latency.mean()).filter(|mean| !mean.is_zero())),
            time(latency.quantile(0.5)),
            time(latency.quantile(0.99)),
        );
    }
}

/// A time in the unit that suits it.
pub(super) fn time(duration: Option<Duration>) -> String {
    match duration.map(|duration| duration.as_nanos()) {
        None => "-".to_owned(),
        Some(ns @ 0..10_000) => format!("{:.1} us", ns as f64 / 1e3),
        Some(ns @ 10_000..1_000_000) => format!("{} us", ns / 1000),
        Some(ns @ 1_000_000..1_000_000_000) => format!("{:.1} ms", ns as f64 / 1e6),
        Some(ns) => format!("{:.1} s", ns as f64 / 1e9),
    }
}

fn enclaves(text: &mut String, stats: &StatsSnapshot, users: &names::Users) {
    if stats.enclave_list.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n{:>7} {:>8} {:<12} {:>10} {:>10} {:>10} {:>12} {:>12}  COMMAND",
        "ENCLAVE", "PID", "USER", "SIZE", "IN EPC", "EVICTED", "FAULTS", "EVICTIONS"
    );
    for enclave in &stats.enclave_list {
        let _ = writeln!(
            text,
            "{:>7} {:>8} {:<12} {:>10} {:>10} {:>10} {:>12} {:>12}  {}",
            enclave.id,
            enclave.pid,
            users.name(enclave.uid),
            Size(enclave.size).to_string(),
            Size(enclave.resident_pages * PAGE_SIZE).to_string(),
            Size(enclave.evicted_pages * PAGE_SIZE).to_string(),
            grouped(enclave.counters.epc_faults),
            grouped(enclave.counters.evictions),
            names::process(enclave.pid)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usgx_machine::{EnclaveInfo, NodeInfo, UserStats};

    #[test]
    fn every_part_is_shown() {
        let mut stats =
            StatsSnapshot { epc_total_pages: 256, uptime_us: 2_000_000, ..StatsSnapshot::default() };
        stats.nodes.push(NodeInfo {
            node: 1,
            sgx_total_bytes: 1 << 20,
            usgx_free_bytes: 5,
            ..NodeInfo::default()
        });
        stats.users.push(UserStats { uid: 77, ..UserStats::default() });
        stats.enclave_list.push(EnclaveInfo { id: 12, size: 1 << 21, ..EnclaveInfo::default() });
        let before = StatsSnapshot::default();
        stats.counters.0.loads = 500;
        let text = describe(&stats, Some(&before), &names::Users::default());
        for expected in
            ["EPC 1 MiB", "node 1: sgx_total_bytes 1048576", "usgx_swapped_bytes 0", "250", "77", "2 MiB"]
        {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(
            text.lines()
                .any(|line| line.starts_with("loads") && line.contains(" 500 ") && line.contains(" 250 "))
        );
    }

    #[test]
    fn times_have_units_that_suit() {
        let shown = [1_500, 64_000, 8_400_000, 2_500_000_000].map(|ns| time(Some(Duration::from_nanos(ns))));
        assert_eq!(shown, ["1.5 us", "64 us", "8.4 ms", "2.5 s"]);
    }
}
