//! The Enclave Page Cache as a resource: who has which page, which pages may be taken back, and when.
//!
//! A page moves `Dirty` → `Free` → `Owned` → `Active` → `Reclaiming` → `Free`, or, given away whole, `Free` → `Owned`
//! → `Raw` → `Owned` → `Free` ([`PageState`]). This crate owns those moves, the free lists, the list of reclaimable
//! pages, the watermarks and the reclaim pass. It does not know what an enclave is: whoever owns a reclaimable page is a
//! [`PageOwner`], which carries out what a pass decides. It runs no thread: `ksgxd` is [`Epc::should_reclaim`] and
//! [`Epc::reclaim_pass`], called by whoever has a thread. Called by the driver. Source: the behaviour of Linux,
//! arch/x86/kernel/cpu/sgx/main.c.
//!
//! # Locks
//!
//! ```text
//! (the owner's own lock)   may be held around everything here but a reclaim pass and an allocation that reclaims
//!   lru                    short; never held across a leaf, a call to an owner, or an I/O
//!     node.free            innermost, takes nothing
//! ```
//!
//! Each lock has its [`Rank`], which builds with debug assertions check. [`PageOwner::get`] is the one call made with `lru` held: it may take no lock.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod allocate;
mod batch;
mod counters;
mod epc;
mod given_away;
mod lru;
mod nodes;
mod order;
mod owner;
mod owners;
mod platform;
mod poison;
mod policy;
mod reclaim;
mod sanitize;
mod state;

pub use allocate::{AllocError, Reclaim};
pub use counters::{EpcStats, NodeStats};
pub use epc::{Epc, InReclaim, SectionConfig};
pub use order::{HeldLocks, OrderedGuard, OrderedMutex, Rank, check_none_held};
pub use owner::{Age, HeldOwner, PageOwner, Used, Victim, Written};
pub use owners::OwnerId;
pub use platform::Platform;
pub use poison::{NotEpc, Poisoned};
pub use policy::Policy;
pub use reclaim::BATCH;
pub use state::PageState;
