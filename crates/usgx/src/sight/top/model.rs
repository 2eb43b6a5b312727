//! What `usgx top` knows: the last two readings, rates, their history, and what the person has chosen.
//!
//! Plain data that readings and keys change; nothing here draws or asks.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use usgx_machine::{EnclaveInfo, StatsSnapshot};

/// Readings that histories remember: as many as the widest terminal has room for.
const MEMORY: usize = 240;

/// What enclaves are ordered by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Sort {
    Enclave,
    Pid,
    User,
    Size,
    Resident,
    Evicted,
    #[default]
    Faults,
    Reclaims,
    Command,
}

impl Sort {
    /// From left to right, as the columns are.
    pub(super) const ALL: [Self; 9] = [
        Self::Enclave,
        Self::Pid,
        Self::User,
        Self::Size,
        Self::Resident,
        Self::Evicted,
        Self::Faults,
        Self::Reclaims,
        Self::Command,
    ];

    /// The column that is `by` to the right of this one.
    fn beside(self, by: isize) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        Self::ALL[at.saturating_add_signed(by).min(Self::ALL.len() - 1)]
    }
}

/// How often things happen in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) faults: f64,
    pub(super) loads: f64,
    pub(super) evictions: f64,
    pub(super) passes: f64,
    pub(super) kicks: f64,
    pub(super) waits: f64,
}

/// An enclave as a row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) info: EnclaveInfo,
    pub(super) user: String,
    pub(super) command: String,
    pub(super) rates: Rates,
}

/// A process that is about to be ended, if the person agrees.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Doomed {
    pub(super) pid: u32,
    pub(super) user: String,
    pub(super) command: String,
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) stats: StatsSnapshot,
    pub(super) rates: Rates,
    /// Faults in a second, the newest last.
    pub(super) faults: VecDeque<u64>,
    /// Evictions in a second, the newest last.
    pub(super) evictions: VecDeque<u64>,
    pub(super) rows: Vec<Row>,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    /// The enclave that is chosen.
    pub(super) chosen: Option<u64>,
    pub(super) paused: bool,
    pub(super) help: bool,
    pub(super) doomed: Option<Doomed>,
    /// What went wrong, or was done, last.
    pub(super) message: Option<String>,
    has_reading: bool,
}

fn per_second(now: u64, before: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
}

fn remember(history: &mut VecDeque<u64>, rate: f64) {
    if history.len() == MEMORY {
        history.pop_front();
    }
    history.push_back(rate.round() as u64);
}

impl Model {
    /// Takes a reading. `user` and `command` name users and processes.
    pub(super) fn update(
        &mut self,
        stats: StatsSnapshot,
        user: impl Fn(u32) -> String,
        command: impl Fn(u32) -> String,
    ) {
        let before = std::mem::replace(&mut self.stats, stats);
        let stats = &self.stats;
        // Another machine, in the place of the one before: nothing to compare with.
        let continues = self.has_reading
            && before.machine_pid == stats.machine_pid
            && before.uptime_us <= stats.uptime_us;
        let seconds = if continues { (stats.uptime_us - before.uptime_us) as f64 / 1e6 } else { 0.0 };
        self.rates = Rates {
            faults: per_second(stats.epc_faults, before.epc_faults, seconds),
            loads: per_second(stats.loads, before.loads, seconds),
            evictions: per_second(stats.evictions, before.evictions, seconds),
            passes: per_second(stats.reclaim_scans, before.reclaim_scans, seconds),
            kicks: per_second(stats.kicks, before.kicks, seconds),
            waits: per_second(stats.waits, before.waits, seconds),
        };
        if continues {
            remember(&mut self.faults, self.rates.faults);
            remember(&mut self.evictions, self.rates.evictions);
        }
        let earlier: HashMap<u64, &EnclaveInfo> =
            before.enclave_list.iter().map(|enclave| (enclave.id, enclave)).collect();
        let row = |enclave: &EnclaveInfo| {
            let old = earlier.get(&enclave.id).map(|enclave| &enclave.counters.0);
            let rate = |pick: fn(&usgx_machine::Counters) -> u64| {
                let before = old.map_or(0, |old| pick(&usgx_machine::Counters(*old)));
                per_second(pick(&enclave.counters), before, seconds)
            };
            Row {
                user: user(enclave.uid),
                command: command(enclave.pid),
                rates: Rates {
                    faults: rate(|counters| counters.epc_faults),
                    loads: rate(|counters| counters.loads),
                    evictions: rate(|counters| counters.evictions),
                    kicks: rate(|counters| counters.kicks),
                    waits: rate(|counters| counters.waits),
                    passes: 0.0,
                },
                info: enclave.clone(),
            }
        };
        self.rows = stats.enclave_list.iter().map(row).collect();
        self.has_reading = true;
        self.arrange();
    }

    /// Puts the rows in order, and the choice on one that there is.
    fn arrange(&mut self) {
        let order = |a: &Row, b: &Row| -> Ordering {
            match self.sort {
                Sort::Enclave => a.info.id.cmp(&b.info.id),
                Sort::Pid => a.info.pid.cmp(&b.info.pid),
                Sort::User => a.user.cmp(&b.user),
                Sort::Command => a.command.cmp(&b.command),
                // The largest first.
                Sort::Size => b.info.size.cmp(&a.info.size),
                Sort::Resident => b.info.resident_pages.cmp(&a.info.resident_pages),
                Sort::Evicted => b.info.evicted_pages.cmp(&a.info.evicted_pages),
                Sort::Faults => b.rates.faults.total_cmp(&a.rates.faults),
                Sort::Reclaims => b.rates.evictions.total_cmp(&a.rates.evictions),
            }
        };
        let reversed = self.reversed;
        self.rows.sort_by(|a, b| {
            let order = if reversed { order(b, a) } else { order(a, b) };
            order.then(a.info.id.cmp(&b.info.id))
        });
        if self.chosen.is_none_or(|chosen| !self.rows.iter().any(|row| row.info.id == chosen)) {
            self.chosen = self.rows.first().map(|row| row.info.id);
        }
    }

    pub(super) fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.reversed = false;
        self.arrange();
    }

    /// Orders by the column that is `by` to the right.
    pub(super) fn sort_beside(&mut self, by: isize) {
        self.sort_by(self.sort.beside(by));
    }

    pub(super) fn reverse(&mut self) {
        self.reversed = !self.reversed;
        self.arrange();
    }

    /// The place of the chosen row.
    pub(super) fn chosen_place(&self) -> Option<usize> {
        self.rows.iter().position(|row| Some(row.info.id) == self.chosen)
    }

    /// Chooses the row that is `by` below.
    pub(super) fn choose_beside(&mut self, by: isize) {
        let Some(last) = self.rows.len().checked_sub(1) else { return };
        let place = self.chosen_place().unwrap_or(0).saturating_add_signed(by).min(last);
        self.chosen = Some(self.rows[place].info.id);
    }

    /// The process of the chosen row, if it can be ended from here.
    pub(super) fn doom(&self) -> Option<Doomed> {
        let row = &self.rows[self.chosen_place()?];
        // Without a number it is not visible to the machine.
        (row.info.pid != 0).then(|| Doomed {
            pid: row.info.pid,
            user: row.user.clone(),
            command: row.command.clone(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use usgx_machine::NodeInfo;

    /// A machine with two nodes and three enclaves, after so many seconds.
    pub(in crate::sight::top) fn reading(seconds: u64) -> StatsSnapshot {
        let mut stats = StatsSnapshot {
            profile: "ice-lake-sp".into(),
            uptime_us: seconds * 1_000_000,
            uptime_seconds: seconds,
            epc_total_pages: 16_384,
            epc_free_pages: 4096,
            enclaves: 3,
            reclaim_scans: seconds * 10,
            ..StatsSnapshot::default()
        };
        stats.counters.0.epc_faults = seconds * 1000;
        stats.counters.0.evictions = seconds * 400;
        for node in 0..2 {
            let (total, free) = (32 << 20, 8 << 20);
            stats.nodes.push(NodeInfo {
                node,
                sgx_total_bytes: total,
                usgx_free_bytes: free,
                ..NodeInfo::default()
            });
        }
        for id in 1..=3_u64 {
            let mut enclave = EnclaveInfo {
                id,
                pid: 4000 + id as u32,
                uid: 1000 + id as u32 % 2,
                size: 64 << 20 << id,
                pages: 1000 * id,
                resident_pages: 600 * id,
                evicted_pages: 400 * id,
                ..EnclaveInfo::default()
            };
            enclave.counters.0.epc_faults = seconds * 100 * (4 - id);
            enclave.counters.0.evictions = seconds * 10 * id;
            stats.enclave_list.push(enclave);
        }
        stats
    }

    /// A model after two readings, a second apart.
    pub(in crate::sight::top) fn model() -> Model {
        let mut model = Model::default();
        for seconds in [60, 61] {
            model.update(reading(seconds), |uid| format!("user{uid}"), |pid| format!("prog{pid}"));
        }
        model
    }

    fn order(model: &Model) -> Vec<u64> {
        model.rows.iter().map(|row| row.info.id).collect()
    }

    #[test]
    fn rates_are_differences_over_the_machines_own_time() {
        let model = model();
        assert_eq!((model.rates.faults, model.rates.evictions, model.rates.passes), (1000.0, 400.0, 10.0));
        assert_eq!((model.faults.len(), model.faults[0]), (1, 1000));
        assert_eq!(model.rows[0].rates.faults, 300.0);
    }

    #[test]
    fn another_machine_is_not_compared() {
        let mut model = model();
        let mut other = reading(2);
        other.machine_pid = 99;
        model.update(other, |_| String::new(), |_| String::new());
        assert_eq!(model.rates, Rates::default());
        assert_eq!(model.faults.len(), 1);
    }

    #[test]
    fn rows_are_in_the_order_that_was_chosen() {
        let mut model = model();
        assert_eq!(order(&model), [1, 2, 3], "by faults");
        for (sort, expected) in [
            (Sort::Reclaims, [3, 2, 1]),
            (Sort::Size, [3, 2, 1]),
            (Sort::Evicted, [3, 2, 1]),
            (Sort::Pid, [1, 2, 3]),
            (Sort::User, [2, 1, 3]),
        ] {
            model.sort_by(sort);
            assert_eq!(order(&model), expected, "{sort:?}");
        }
        model.reverse();
        assert_eq!(order(&model), [1, 3, 2]);
        model.sort_beside(-100);
        assert_eq!(model.sort, Sort::Enclave);
        model.sort_beside(100);
        assert_eq!(model.sort, Sort::Command);
    }

    #[test]
    fn the_choice_follows_its_enclave() {
        let mut model = model();
        model.choose_beside(1);
        assert_eq!(model.chosen, Some(2));
        model.sort_by(Sort::Size);
        assert_eq!(model.chosen_place(), Some(1));
        assert_eq!(model.doom().map(|doomed| doomed.pid), Some(4002));
        model.choose_beside(50);
        assert_eq!(model.chosen, Some(1));
        let mut fewer = reading(62);
        fewer.enclave_list.truncate(0);
        model.update(fewer, |_| String::new(), |_| String::new());
        assert_eq!((model.chosen, model.doom()), (None, None));
    }
}
