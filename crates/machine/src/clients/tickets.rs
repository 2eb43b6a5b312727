//! Fork tickets: how a fork's child proves whose child it is.
//!
//! A parent asks for a ticket before it forks; the child shows it in its Hello and gets the parent's enclave
//! handles. A ticket is used once. It holds the parent's mapped enclaves, because a parent may end between the
//! fork and the child's Hello; it expires a moment after the parent has hung up, and in any case after a while, as
//! the fork may have failed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clients::Client;
use crate::system::OpenEnclave;

/// Most tickets of one process at a time; the oldest goes first.
const MAX_TICKETS: usize = 64;
/// How long a child has for its Hello.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long a child has for its Hello after its parent is gone: computers may be slow. It is only ever waited for if the
/// parent was ended while it forked.
const GRACE: Duration = Duration::from_secs(10);

/// 128 random bits.
pub(crate) type Number = [u64; 2];

#[derive(Debug)]
struct Ticket {
    parent: u64,
    issued: Instant,
    expires: Instant,
    enclaves: Vec<Arc<OpenEnclave>>,
}

/// The tickets that are out.
#[derive(Debug, Default)]
pub(crate) struct Tickets(Mutex<HashMap<Number, Ticket>>);

impl Tickets {
    /// Issues a ticket to a process that is about to fork.
    pub(crate) fn issue(&self, parent: &Client) -> Number {
        let mut bytes = [0; 16];
        usgx_sys::process::random(&mut bytes);
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        // Zeros say "no ticket".
        let number = [word(0) | 1, word(8)];
        let now = Instant::now();
        let ticket =
            Ticket { parent: parent.id(), issued: now, expires: now + LIFETIME, enclaves: parent.enclaves() };
        let mut tickets = self.0.lock();
        let mut mine: Vec<_> = tickets
            .iter()
            .filter(|(_, ticket)| ticket.parent == parent.id())
            .map(|(number, ticket)| (ticket.issued, *number))
            .collect();
        mine.sort_unstable();
        let surplus = (mine.len() + 1).saturating_sub(MAX_TICKETS);
        let old: Vec<_> = mine.iter().take(surplus).filter_map(|(_, old)| tickets.remove(old)).collect();
        tickets.insert(number, ticket);
        drop(tickets);
        // Only now: an enclave may end with it.
        drop(old);
        number
    }

    /// Takes a ticket; the enclaves that the child may name.
    pub(crate) fn redeem(&self, number: Number) -> Option<Vec<Arc<OpenEnclave>>> {
        let ticket = self.0.lock().remove(&number)?;
        Some(ticket.enclaves)
    }

    /// The parent is gone: its tickets expire soon.
    pub(crate) fn parent_went(&self, parent: u64) {
        let latest = Instant::now() + GRACE;
        for ticket in self.0.lock().values_mut().filter(|ticket| ticket.parent == parent) {
            ticket.expires = ticket.expires.min(latest);
        }
    }

    /// Removes what has expired and returns it, for somebody to drop; and whether any are left.
    pub(crate) fn expire(&self, now: Instant) -> (Vec<Arc<OpenEnclave>>, bool) {
        let mut gone = Vec::new();
        let mut tickets = self.0.lock();
        tickets.retain(|_, ticket| {
            let stays = ticket.expires > now;
            if !stays {
                gone.append(&mut ticket.enclaves);
            }
            stays
        });
        (gone, !tickets.is_empty())
    }

    /// Removes all tickets.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        drop(all);
    }
}
