//! What the EPC manager and the driver need of the system they run in.
//!
//! Implemented by the machine, by the test kit, and by a kernel. Every method speaks of the calling thread.

use crate::order::HeldLocks;

/// Locks, signals and scheduling, from outside.
pub trait Platform: Send + Sync + 'static {
    /// The mutex everything here is locked with.
    type RawMutex: lock_api::RawMutex + Send + Sync + 'static;

    /// Whether the calling thread should give up waiting and return to its program.
    fn signal_pending(&self) -> bool;

    /// Wakes the thread that runs [`Epc::reclaim_pass`](crate::Epc::reclaim_pass); cheap when it is awake.
    fn wake_ksgxd(&self);

    /// Lets other threads run.
    fn yield_now(&self);

    /// Waits until `done`, which is asked at once and after every [`wake_waiters`](Self::wake_waiters); may return
    /// early, and does so after a moment in vain. The caller holds no lock.
    fn wait_until(&self, done: &dyn Fn() -> bool) {
        if !done() {
            self.yield_now();
        }
    }

    /// Says that something happened for which a thread may be waiting.
    fn wake_waiters(&self) {}

    /// A reclaim pass begins in the calling thread. No lock of the EPC manager is held, here and in the next.
    fn reclaim_begins(&self) {}

    /// The pass has looked at so many pages and freed so many.
    fn reclaim_ends(&self, _looked_at: usize, _freed: usize) {}

    /// Runs `f` on what is known of the locks that the calling thread holds, empty when the thread begins. Called only in
    /// builds with debug assertions; a platform that keeps no such thing is not checked.
    fn with_held(_f: &mut dyn FnMut(&mut HeldLocks)) {}

    /// The NUMA node of the calling thread's processor.
    fn current_node(&self) -> usize {
        0
    }
}
