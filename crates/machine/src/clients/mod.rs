//! The machine's side of a process image: its handles, registrations and threads.

mod client;
mod slot;
pub(crate) mod tickets;
pub(crate) mod worker;

pub(crate) use client::Client;
pub(crate) use slot::{FaultClock, ThreadSlot};
