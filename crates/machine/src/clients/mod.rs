//! The machine's side of a process image: its handles, registrations and threads.

mod client;
pub(crate) mod register;
mod slot;
pub(crate) mod tickets;
pub(crate) mod worker;

pub(crate) use client::Client;
pub(crate) use slot::{FaultClock, ThreadSlot};
