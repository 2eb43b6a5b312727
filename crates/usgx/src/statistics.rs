//! A machine's numbers, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use usgx_machine::StatsSnapshot;

use crate::size::Size;

const PAGE_SIZE: u64 = 4096;

/// The counters of one machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statistics(pub(crate) StatsSnapshot);

impl Statistics {
    /// Reads what [`Self::json`] has written.
    pub(crate) fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().map(Self)
    }

    /// One line of JSON, with the machine's own names for its counters.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }

    /// The EPC's size and the largest part of it that was ever in use, in bytes.
    pub(crate) fn epc_bytes(&self) -> (u64, u64) {
        (self.0.epc_total_pages * PAGE_SIZE, self.0.peak_epc_pages * PAGE_SIZE)
    }

    /// The EPC in use just now, in bytes.
    pub(crate) fn epc_used_bytes(&self) -> u64 {
        self.0.epc_total_pages.saturating_sub(self.0.epc_free_pages) * PAGE_SIZE
    }

    /// A table that says what each number is.
    pub(crate) fn table(&self) -> String {
        let stats = &self.0;
        let (total, peak) = self.epc_bytes();
        let mut text = format!("EPC {} ({}), at most {} in use\n", Size(total), stats.profile, Size(peak));
        for node in stats.nodes.iter().filter(|_| stats.nodes.len() > 1) {
            let free = Size(node.usgx_free_bytes);
            let _ = writeln!(text, "  node {}: {}, {free} of it free", node.node, Size(node.sgx_total_bytes));
        }
        for (name, value, meaning) in [
            ("pages added", stats.pages_added, "by EADD and EAUG"),
            ("EPC faults", stats.epc_faults, "a page was touched that was not mapped"),
            ("evictions", stats.evictions, "pages written back by EWB"),
            ("loads", stats.loads, "pages brought back by ELDU"),
            ("remaps", stats.remaps, "faults on a page that was still in the EPC"),
            ("kicks", stats.kicks, "threads made to leave an enclave"),
            ("reclaim scans", stats.reclaim_scans, "passes of the reclaimer"),
        ] {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {name:<14} {:>12}  {meaning}", grouped(value));
        }
        text
    }
}

/// A number with a comma after every three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn the_table_names_every_number_and_json_comes_back() {
        let mut statistics = Statistics::default();
        statistics.0.epc_total_pages = 4096;
        statistics.0.counters.0.evictions = 54321;
        let table = statistics.table();
        for expected in ["EPC 16 MiB", "54,321", "EWB", "ELDU", "kicks", "reclaim scans"] {
            assert!(table.contains(expected), "{table}");
        }
        let back = Statistics::from_json(&statistics.json()).expect("it is JSON");
        assert_eq!(back.0.evictions, 54321);
        assert!(Statistics::from_json("nonsense").is_none());
    }
}
