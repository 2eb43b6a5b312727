//! All clients, by number and by process: for those who look into other processes.
//!
//! The event loop enters a client when it welcomes it; a client that is gone is forgotten when the next one comes.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::clients::Client;

/// The clients that there are.
#[derive(Debug, Default)]
pub(crate) struct Register(Mutex<Vec<Weak<Client>>>);

impl Register {
    /// Enters a client.
    pub(crate) fn enter(&self, client: &Arc<Client>) {
        let mut clients = self.0.lock();
        clients.retain(|client| client.strong_count() > 0);
        clients.push(Arc::downgrade(client));
    }

    /// The image that a process runs now: the last one that has said hello, as the end of the one before may not
    /// have been noticed yet.
    pub(crate) fn of_process(&self, pid: u32) -> Option<Arc<Client>> {
        self.find(|client| client.credentials().pid == pid)
    }

    /// The client with a number.
    pub(crate) fn numbered(&self, id: u64) -> Option<Arc<Client>> {
        self.find(|client| client.id() == id)
    }

    fn find(&self, is_wanted: impl Fn(&Client) -> bool) -> Option<Arc<Client>> {
        let clients = self.0.lock();
        clients.iter().rev().filter_map(Weak::upgrade).find(|client| !client.is_closed() && is_wanted(client))
    }
}
