//! The doors: how processes come in, and what they bring and take in messages.
//!
//! One thread, the event loop, serves all sockets. It never waits for a client: sends that would wait drop the
//! client, and whatever takes long is done by another thread.

pub(crate) mod activity;
mod channel;
mod control;
mod devices;
pub(crate) mod event_loop;
mod messages;
mod stream;
