//! Who is inside which enclave, in a simulated system.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use usgx_cpu::LogicalProcessors;

#[derive(Debug, Default)]
struct Inside {
    epoch: u64,
    /// The epoch in which each thread entered.
    threads: BTreeMap<u32, u64>,
}

#[derive(Debug, Default)]
struct State {
    enclaves: BTreeMap<u64, Inside>,
    stubborn: usize,
}

/// Simulated threads. Cloning gives another reference.
#[derive(Clone, Debug, Default)]
pub struct SimThreads(Arc<Mutex<State>>);

impl SimThreads {
    /// Lets `thread` enter the enclave that the processor calls `eid`.
    pub fn enter(&self, eid: u64, thread: u32) {
        let mut state = self.0.lock();
        let inside = state.enclaves.entry(eid).or_default();
        inside.threads.insert(thread, inside.epoch);
    }

    /// Lets `thread` leave it.
    pub fn leave(&self, eid: u64, thread: u32) {
        self.0.lock().enclaves.entry(eid).or_default().threads.remove(&thread);
    }

    /// Lets everybody leave every enclave.
    pub fn leave_all(&self) {
        self.0.lock().enclaves.values_mut().for_each(|inside| inside.threads.clear());
    }

    /// Makes the next `kicks` kicks have no effect.
    pub fn set_stubborn(&self, kicks: usize) {
        self.0.lock().stubborn = kicks;
    }

    /// Makes everybody leave every enclave and enter again at once.
    pub fn kick(&self) {
        let mut state = self.0.lock();
        if state.stubborn > 0 {
            state.stubborn -= 1;
            return;
        }
        for inside in state.enclaves.values_mut() {
            inside.threads.values_mut().for_each(|entered| *entered = inside.epoch);
        }
    }
}

impl LogicalProcessors for SimThreads {
    fn oldest_entry(&self, eid: u64) -> Option<u64> {
        self.0.lock().enclaves.get(&eid)?.threads.values().min().copied()
    }

    fn set_epoch(&self, eid: u64, epoch: u64) {
        self.0.lock().enclaves.entry(eid).or_default().epoch = epoch;
    }
}
