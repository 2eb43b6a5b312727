//! Locks, signals and scheduling, as the driver and the EPC manager want them; and `ksgxd`'s alarm clock.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use usgx_driver::{HeldLocks, Platform};

use crate::clients::worker;
use crate::sight::{Sight, timed};
use crate::topology::Topology;

/// The longest that a thread waits for a reclaim pass before it looks around: a pass that kicks nobody takes less.
const WAIT_BOUND: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Clock {
    /// Somebody wants `ksgxd` to run.
    wanted: bool,
    /// `ksgxd` has done all that it was wanted for.
    rests: bool,
    /// The machine ends.
    stopped: bool,
    /// Reclaim passes that have ended.
    passes: u64,
}

/// What `ksgxd` does next.
#[derive(Debug)]
pub(crate) enum Task {
    /// Reclaim, up to the high mark.
    Reclaim,
    /// Nothing of the kind: time has passed.
    Tick,
    /// End with the machine.
    End,
}

/// The machine's platform.
#[derive(Debug)]
pub(crate) struct HostPlatform {
    topology: Topology,
    clock: Mutex<Clock>,
    /// For `ksgxd`.
    alarm: Condvar,
    /// For those who wait for a pass to end.
    done: Condvar,
    sight: Arc<Sight>,
}

impl HostPlatform {
    /// The platform of a machine with this topology.
    pub(crate) fn new(topology: Topology) -> Self {
        Self {
            topology,
            clock: Mutex::default(),
            alarm: Condvar::new(),
            done: Condvar::new(),
            sight: Arc::default(),
        }
    }

    /// What watches over everything that happens.
    pub(crate) fn sight(&self) -> &Arc<Sight> {
        &self.sight
    }

    /// Waits until `ksgxd` is wanted, at most for `bound`. For `ksgxd`.
    pub(crate) fn wait_for_work(&self, bound: Duration) -> Task {
        let mut clock = self.clock.lock();
        clock.rests = true;
        self.alarm.wait_while_for(&mut clock, |clock| !clock.wanted && !clock.stopped, bound);
        if clock.stopped {
            return Task::End;
        }
        if !std::mem::take(&mut clock.wanted) {
            return Task::Tick;
        }
        clock.rests = false;
        Task::Reclaim
    }

    /// Whether `ksgxd` is at work or about to be, making the EPC usable included.
    pub(crate) fn ksgxd_is_busy(&self) -> bool {
        let clock = self.clock.lock();
        clock.wanted || !clock.rests
    }

    /// Waits for the end of a pass, at most for `bound`.
    pub(crate) fn wait_for_pass(&self, bound: Duration) {
        timed(&self.sight.latencies.wait, || {
            let mut clock = self.clock.lock();
            let now = clock.passes;
            self.done.wait_while_for(&mut clock, |clock| clock.passes == now && !clock.stopped, bound);
        });
    }

    /// Whether the machine ends.
    pub(crate) fn is_stopped(&self) -> bool {
        self.clock.lock().stopped
    }

    /// Ends `ksgxd`.
    pub(crate) fn stop(&self) {
        self.clock.lock().stopped = true;
        self.alarm.notify_all();
        self.done.notify_all();
    }
}

thread_local! {
    static HELD: RefCell<HeldLocks> = const { RefCell::new(HeldLocks::NONE) };
}

impl Platform for HostPlatform {
    type RawMutex = parking_lot::RawMutex;

    fn signal_pending(&self) -> bool {
        worker::with_current(|link| link.is_some_and(|link| link.signal_pending()))
    }

    fn wake_ksgxd(&self) {
        let mut clock = self.clock.lock();
        if !clock.wanted {
            clock.wanted = true;
            self.alarm.notify_one();
        }
    }

    fn yield_now(&self) {
        std::thread::yield_now();
    }

    fn wait_until(&self, done: &dyn Fn() -> bool) {
        timed(&self.sight.latencies.wait, || {
            let mut clock = self.clock.lock();
            if !done() && !clock.stopped {
                self.done.wait_for(&mut clock, WAIT_BOUND);
            }
        });
    }

    fn wake_waiters(&self) {
        self.clock.lock().passes += 1;
        self.done.notify_all();
    }

    fn with_held(f: &mut dyn FnMut(&mut HeldLocks)) {
        HELD.with_borrow_mut(f);
    }

    fn current_node(&self) -> usize {
        self.topology.current_node()
    }

    fn reclaim_begins(&self) {
        self.sight.reclaim_begins();
    }

    fn reclaim_ends(&self, looked_at: usize, freed: usize) {
        self.sight.reclaim_ends(looked_at, freed);
    }
}
