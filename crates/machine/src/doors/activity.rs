//! Whether anybody uses the machine. Takes one lock, innermost.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

#[derive(Debug, Default)]
struct Count {
    doors: usize,
    clients: usize,
    stopped: bool,
}

/// Counts who is there.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    count: Mutex<Count>,
    changed: Condvar,
}

impl Activity {
    pub(crate) fn door_opened(&self) {
        self.count.lock().doors += 1;
    }

    pub(crate) fn door_closed(&self) {
        self.count.lock().doors -= 1;
        self.changed.notify_all();
    }

    pub(crate) fn client_came(&self) {
        self.count.lock().clients += 1;
    }

    pub(crate) fn client_went(&self) {
        self.count.lock().clients -= 1;
        self.changed.notify_all();
    }

    /// The machine ends.
    pub(crate) fn stop(&self) {
        self.count.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Waits until there is no door and no client, or the machine ends.
    pub(crate) fn wait_idle(&self) {
        let mut count = self.count.lock();
        self.changed.wait_while(&mut count, |count| !count.stopped && count.doors + count.clients > 0);
    }

    /// Waits until the machine ends.
    pub(crate) fn wait_stopped(&self) {
        let mut count = self.count.lock();
        self.changed.wait_while(&mut count, |count| !count.stopped);
    }

    /// Waits until there is no client, at most for `bound`; whether there is none.
    pub(crate) fn wait_no_clients(&self, bound: Duration) -> bool {
        let mut count = self.count.lock();
        !self.changed.wait_while_for(&mut count, |count| count.clients > 0, bound).timed_out()
    }
}
