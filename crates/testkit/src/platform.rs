//! Locks, signals and scheduling of a simulated system.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use usgx_epc::{HeldLocks, Platform};

/// A platform whose signals are switched by the test and whose `ksgxd` only counts how often it is woken.
#[derive(Debug, Default)]
pub struct SimPlatform {
    signal: AtomicBool,
    wakes: AtomicUsize,
    node: AtomicUsize,
    waiters: Mutex<()>,
    wake: Condvar,
}

impl SimPlatform {
    /// Makes a signal pending, or takes it away.
    pub fn set_signal(&self, pending: bool) {
        self.signal.store(pending, SeqCst);
    }

    /// Says on which NUMA node all threads run.
    pub fn set_node(&self, node: usize) {
        self.node.store(node, SeqCst);
    }

    /// How often `ksgxd` was woken.
    pub fn wakes(&self) -> usize {
        self.wakes.load(SeqCst)
    }
}

thread_local! {
    static HELD: RefCell<HeldLocks> = const { RefCell::new(HeldLocks::NONE) };
}

impl Platform for SimPlatform {
    type RawMutex = parking_lot::RawMutex;

    fn signal_pending(&self) -> bool {
        self.signal.load(SeqCst)
    }

    fn wake_ksgxd(&self) {
        self.wakes.fetch_add(1, SeqCst);
    }

    fn yield_now(&self) {
        std::thread::yield_now();
    }

    fn wait_until(&self, done: &dyn Fn() -> bool) {
        let mut waiters = self.waiters.lock();
        if !done() {
            self.wake.wait_for(&mut waiters, Duration::from_millis(1));
        }
    }

    fn wake_waiters(&self) {
        drop(self.waiters.lock());
        self.wake.notify_all();
    }

    fn with_held(f: &mut dyn FnMut(&mut HeldLocks)) {
        HELD.with_borrow_mut(f);
    }

    fn current_node(&self) -> usize {
        self.node.load(SeqCst)
    }
}
