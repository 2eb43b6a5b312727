//! The SGX driver: enclaves as a program builds, runs, changes and loses them.
//!
//! An [`Enclave`] is one open of `/dev/sgx_enclave`, a [`VirtualEpc`] one of `/dev/sgx_vepc`. This crate owns their
//! pages' whereabouts, enclaves' version arrays, the order of the checks behind every ioctl, mapping, page fault and
//! debugger access, and the two ends of paging (EWB and ELDU). It decides; [`Encls`](usgx_isa::Encls) carries out leaves,
//! [`AddressSpaces`] moves pages in and out of processes, [`BackingStore`] keeps what is evicted. It does not
//! know what a process, a thread or a file is. Called by the machine, or by a kernel. Source:
//! the behaviour of Linux, arch/x86/kernel/cpu/sgx, whose files the modules name.
//!
//! # Locks
//!
//! ```text
//! enclave.state      held across leaves, address space calls and backing store I/O; never two at once
//! vepc.pages         in the same place of the order: never held with an enclave's; held across its host's `map`
//!   zombies          of the driver: what ended virtual EPCs have left; held across EREMOVE
//!   roots            of the driver: its own VA pages; only the EPC manager's locks below it
//!   lru              of the EPC manager; short
//!     node.free      of the EPC manager; innermost
//! registry           of the driver: which enclaves there are; takes nothing and nothing is held
//! ```
//!
//! Builds with debug assertions check it (`usgx_epc::Rank`).
//!
//! No lock is held in a call to a [`Caller`] or in [`AddressSpaces::kick`]: both may wait for a client.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod behaviour;
mod check;
mod config;
mod debug;
mod driver;
mod enclave;
mod errno;
mod event;
mod fault;
mod grow;
mod ioctl;
mod mapping;
mod owner;
mod page;
mod paging;
mod patience;
mod roots;
mod seams;
mod state;
mod stats;
mod table;
mod track;
mod transit;
mod va;
mod va_paging;
mod vepc;
mod write_back;

pub use behaviour::Behaviour;
pub use config::Config;
pub use driver::Driver;
pub use enclave::{Enclave, EnclaveAttributes, NotResident};
pub use errno::Errno;
pub use event::{After, Event, FaultEnd};
pub use fault::FaultOutcome;
pub use ioctl::command;
pub use page::{PageKind, Prot};
pub use seams::{
    AddressSpaces, BackingStore, Caller, Efault, EnclaveId, Machine, MapFailed, SourceError, StoreError,
};
pub use stats::{Counts, EnclaveStats, Stats};
pub use usgx_epc::{HeldLocks, NodeStats, Platform, Poisoned, Policy, Rank, SectionConfig, check_none_held};
pub use vepc::VirtualEpc;
