//! A platform on which a schedule tester decides which thread runs.
//!
//! Every lock that driver and EPC manager take, every wait and every yield is a point at which `shuttle` may go on
//! with another thread. The simulations' own locks are not: what happens under one is a single step. A thread
//! that waits for something that never comes is a deadlock, which `shuttle` reports: waits have no bound here.

mod raw;

use std::cell::RefCell;

use shuttle::sync::{Condvar, Mutex};
use shuttle::thread::ThreadId;
use usgx_epc::{HeldLocks, Platform};

/// What has happened for which threads may wait.
#[derive(Debug, Default)]
struct Alarm {
    wanted: bool,
    stopped: bool,
}

/// A platform for the inside of a `shuttle` test.
#[derive(Debug, Default)]
pub struct SchedulePlatform {
    alarm: Mutex<Alarm>,
    ksgxd: Condvar,
    waiters: Condvar,
    /// Not a scheduling point, as a signal is none.
    killed: parking_lot::Mutex<Vec<ThreadId>>,
}

impl SchedulePlatform {
    /// Waits until `ksgxd` is wanted; false after [`stop`](Self::stop). For the thread that is `ksgxd`.
    ///
    /// # Panics
    /// If another thread of the schedule has panicked.
    pub fn wait_for_work(&self) -> bool {
        let mut alarm = self.alarm.lock().expect("nobody panics with it");
        while !alarm.wanted && !alarm.stopped {
            alarm = self.ksgxd.wait(alarm).expect("nobody panics with it");
        }
        alarm.wanted = false;
        !alarm.stopped
    }

    /// Makes a signal pending for a thread, for good.
    pub fn kill(&self, thread: ThreadId) {
        self.killed.lock().push(thread);
    }

    /// Ends `ksgxd`.
    ///
    /// # Panics
    /// If another thread of the schedule has panicked.
    pub fn stop(&self) {
        self.alarm.lock().expect("nobody panics with it").stopped = true;
        self.ksgxd.notify_one();
    }
}

shuttle::thread_local! {
    static HELD: RefCell<HeldLocks> = RefCell::new(HeldLocks::NONE);
}

impl Platform for SchedulePlatform {
    type RawMutex = raw::ScheduleMutex;

    fn signal_pending(&self) -> bool {
        self.killed.lock().contains(&shuttle::thread::current().id())
    }

    fn wake_ksgxd(&self) {
        self.alarm.lock().expect("nobody panics with it").wanted = true;
        self.ksgxd.notify_one();
    }

    fn yield_now(&self) {
        shuttle::thread::yield_now();
    }

    fn wait_until(&self, done: &dyn Fn() -> bool) {
        let mut alarm = self.alarm.lock().expect("nobody panics with it");
        while !done() {
            alarm = self.waiters.wait(alarm).expect("nobody panics with it");
        }
    }

    fn with_held(f: &mut dyn FnMut(&mut HeldLocks)) {
        HELD.with(|held| f(&mut held.borrow_mut()));
    }

    fn wake_waiters(&self) {
        drop(self.alarm.lock().expect("nobody panics with it"));
        self.waiters.notify_all();
    }
}
