//! Whose enclave is whose, and what has become of those that are gone.
//!
//! An enclave belongs to the process that opened the device, whoever it is shared with later. What the driver has
//! counted for an enclave goes to its owner and to the owner's user when it ends, so nothing is ever lost between
//! the enclaves that live and the machine's totals. Lock order: innermost, one at a time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use usgx_driver::{Counts, EnclaveId};
use usgx_sys::socket::Credentials;

use super::counters::Counters;
use super::histogram::Histogram;

/// Most users that are kept apart; the others together are [`OTHERS`]. User namespaces have no end of users.
const MAX_USERS: usize = 256;
/// The user ID that stands for all others: the one that no user has.
pub const OTHERS: u32 = u32::MAX;

/// A process that opens enclaves.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// What was counted for its enclaves that are gone.
    past: Mutex<Counters>,
}

impl Owner {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self { pid: credentials.pid, uid: credentials.uid, past: Mutex::default() }
    }

    pub(crate) fn past(&self) -> Counters {
        *self.past.lock()
    }
}

/// What the machine keeps of an enclave beside the driver.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) owner: Arc<Owner>,
    opened: Instant,
    /// Its page faults.
    pub(crate) faults: Histogram,
}

impl Record {
    pub(crate) fn age(&self) -> Duration {
        self.opened.elapsed()
    }
}

/// What a user's enclaves that are gone have left.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Past {
    pub(crate) enclaves: u64,
    pub(crate) counters: Counters,
}

/// The owners of all enclaves.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    records: Mutex<HashMap<EnclaveId, Arc<Record>>>,
    users: Mutex<BTreeMap<u32, Past>>,
}

impl Owners {
    /// An enclave was opened.
    pub(crate) fn enclave_opened(&self, enclave: EnclaveId, owner: &Arc<Owner>) -> Arc<Record> {
        let record = Arc::new(Record {
            owner: Arc::clone(owner),
            opened: Instant::now(),
            faults: Histogram::default(),
        });
        self.records.lock().insert(enclave, Arc::clone(&record));
        record
    }

    /// An enclave is gone.
    pub(crate) fn enclave_ended(&self, enclave: EnclaveId, counts: &Counts) {
        let record = self.records.lock().remove(&enclave);
        let uid = record.as_ref().map_or(OTHERS, |record| record.owner.uid);
        if let Some(record) = record {
            record.owner.past.lock().add(counts);
        }
        let mut users = self.users.lock();
        let key = if users.len() < MAX_USERS || users.contains_key(&uid) { uid } else { OTHERS };
        let past = users.entry(key).or_default();
        past.enclaves += 1;
        past.counters.add(counts);
    }

    pub(crate) fn record(&self, enclave: EnclaveId) -> Option<Arc<Record>> {
        self.records.lock().get(&enclave).cloned()
    }

    /// What is left of enclaves that are gone, by user.
    pub(crate) fn users(&self) -> BTreeMap<u32, Past> {
        self.users.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(loads: u64) -> Counts {
        Counts { loads, ..Counts::default() }
    }

    #[test]
    fn what_ends_is_put_down_to_its_owner() {
        let owners = Owners::default();
        let owner = Arc::new(Owner::new(Credentials { pid: 5, uid: 7, gid: 7 }));
        owners.enclave_opened(EnclaveId(1), &owner);
        owners.enclave_opened(EnclaveId(2), &owner);
        owners.enclave_ended(EnclaveId(1), &counts(3));
        owners.enclave_ended(EnclaveId(2), &counts(4));
        assert!(owners.record(EnclaveId(1)).is_none());
        assert_eq!(owner.past().loads, 7);
        let users = owners.users();
        assert_eq!((users.len(), users[&7].enclaves, users[&7].counters.loads), (1, 2, 7));
    }

    #[test]
    fn users_without_end_are_counted_together() {
        let owners = Owners::default();
        for uid in 0..1000 {
            let owner = Arc::new(Owner::new(Credentials { pid: 5, uid, gid: 7 }));
            owners.enclave_opened(EnclaveId(u64::from(uid)), &owner);
            owners.enclave_ended(EnclaveId(u64::from(uid)), &counts(1));
        }
        let users = owners.users();
        assert!(users.len() <= MAX_USERS + 1);
        assert_eq!(users.values().map(|past| past.counters.loads).sum::<u64>(), 1000);
        assert_eq!(users[&OTHERS].enclaves, 1000 - MAX_USERS as u64);
    }
}
