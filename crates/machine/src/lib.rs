//! The machine: the host that serves SGX programs, in user space.
//!
//! It has two faces, as a computer has. `hardware` holds the EPC's contents, maps EPC pages into processes
//! and knows who is inside an enclave; `kernel` is what the driver needs beyond that: callers, locks, `ksgxd`,
//! the backing store. `doors` lets processes in: one event loop for sockets and descriptors. `clients` keeps what
//! a process has, with a worker thread for each of its threads, and `calls` carries out what the threads ask for.
//! `sight` counts, times and tells what happens.
//! The driver (`usgx-driver`) and the processor (`usgx-cpu`) decide; this crate connects them to processes.
//!
//! A client may be hostile: whatever it sends or writes into shared memory is copied once and checked, a wrong
//! message closes its channel, and the end of its channel frees all that it had.
//!
//! # Locks
//!
//! ```text
//! enclave.state (driver)         held across everything that follows; never across a message to a client
//!   view.books                   one enclave's mappings; held across calls into clients' page tables
//!     processor's page locks     `usgx-cpu`
//!       tables of views, members of a view, slots of a client, a thread's epoch    look-ups, one at a time
//!       frames.pages[i], arena   where a page's bytes are; innermost
//!   store                        innermost, held across the swap file's I/O
//! client.registered              around view.books, in REGISTER and UNREGISTER; no enclave lock is taken inside
//! tickets, provision, activity   take nothing
//! owners, ring (sight)           innermost: taken with any of the above held
//! ```
//!
//! Those that are taken around or under others are checked in builds with debug assertions (`order`).
//!
//! An `OpenEnclave` (`system`) is never dropped with a lock held: that may destroy the enclave, which
//! takes most of the above.

mod calls;
pub mod client;
mod clients;
mod config;
mod doors;
mod error;
mod fuses;
mod hardware;
mod header;
mod kernel;
mod machine;
mod order;
mod page_map;
mod sight;
mod stats;
mod system;
mod topology;

pub use config::MachineConfig;
pub use error::MachineError;
pub use machine::Machine;
pub use sight::counters::Counters;
pub use sight::event::{EventRecord, KINDS, Kind};
pub use sight::histogram::Latency;
pub use sight::owners::OTHERS;
pub use stats::{ClientStats, EnclaveInfo, Latencies, NodeInfo, StatsSnapshot, UserStats};
pub use usgx_driver::Behaviour;
