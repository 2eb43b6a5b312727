//! Who is inside which enclave, and making them leave.
//!
//! A thread writes into its slot which enclave it is inside of, and in which epoch it entered; the processor
//! checks tracking against that. It is the client's word about its own enclave. Three things make an old entry
//! count as a new one, as if the thread had left and come back: a call that the thread makes (it executes nothing
//! of the enclave meanwhile, and holds no translation), a kick that it does not answer in time, and its end.
//! That is safe because it is the hole in the view that stops accesses; tracking only keeps the architecture's
//! rules.
//!
//! Lock order: called with the enclave's lock and the processor's; takes the tables' locks, one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use usgx_cpu::LogicalProcessors;

use crate::clients::{Client, ThreadSlot};
use crate::hardware::spaces::Views;
use crate::hardware::view::View;

/// The longest that a kick waits. Bare metal needs microseconds; a client that is stopped needs for ever.
const KICK_BOUND: Duration = Duration::from_millis(10);
/// How long a kick sleeps between two looks.
const KICK_NAP: Duration = Duration::from_micros(50);

/// The threads of all clients, as the processor sees them.
#[derive(Debug)]
pub(crate) struct Threads(pub(crate) Arc<Views>);

impl LogicalProcessors for Threads {
    fn oldest_entry(&self, eid: u64) -> Option<u64> {
        let view = self.0.by_eid(eid)?;
        let mut oldest = None;
        for_each_inside(&view, |_, _, epoch| {
            oldest = Some(oldest.map_or(epoch, |oldest: u64| oldest.min(epoch)));
        });
        oldest
    }

    fn set_epoch(&self, eid: u64, epoch: u64) {
        // At ECREATE nobody knows the enclave yet; `Views::bind` catches up.
        if let Some(view) = self.0.by_eid(eid) {
            view.set_epoch(epoch);
        }
    }
}

/// Calls `f` for each thread that counts as inside, with the epoch of its entry.
fn for_each_inside(view: &View, mut f: impl FnMut(&Arc<Client>, &Arc<ThreadSlot>, u64)) {
    for client in view.members() {
        client.for_each_slot(|slot| {
            if let Some(epoch) = slot.inside(&client, view.id().0) {
                f(&client, slot, epoch);
            }
        });
    }
}

/// Makes every thread that is inside leave once, and waits for that, but not for longer than the bound: after
/// it, whoever is still there counts as having left; and at once, while that kick is waiting for it. So a stopped thread
/// costs the bound once, not for each batch of its enclave's pages. No lock is held.
pub(crate) fn kick(view: &View) {
    let (id, epoch) = (view.id().0, view.epoch());
    let is_old =
        |slot: &ThreadSlot, client: &Client| slot.inside(client, id).is_some_and(|entered| entered < epoch);
    let mut targets = Vec::new();
    for_each_inside(view, |client, slot, entered| {
        let Some(written) = slot.written_epoch(client, id).filter(|_| entered < epoch) else { return };
        slot.kick();
        if slot.is_deaf(id, written) {
            slot.write_off_deaf(id, epoch, written);
        } else {
            targets.push((Arc::clone(client), Arc::clone(slot), written));
        }
    });
    let start = Instant::now();
    loop {
        targets.retain(|(client, slot, _)| !client.is_closed() && is_old(slot, client));
        if targets.is_empty() {
            return;
        }
        if start.elapsed() > KICK_BOUND {
            break;
        }
        std::thread::sleep(KICK_NAP);
    }
    for (client, slot, written) in targets {
        tracing::debug!(pid = client.credentials().pid, tid = slot.tid(), "a thread does not answer a kick");
        slot.write_off_deaf(id, epoch, written);
    }
}
