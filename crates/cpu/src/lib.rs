//! The software SGX processor: EPCM, leaves, tracking epochs, measurement, keys and paging cryptography.
//!
//! [`Processor`] implements the supervisor leaves ([`usgx_isa::Encls`]) and those user leaves that touch the
//! EPCM or keys. It owns what a real package owns: the EPCM, the package keys and the resident control
//! structures. It does not own where a page's bytes live ([`PageBytes`]), who is inside which enclave
//! ([`LogicalProcessors`]) or the page tables ([`Translate`]): the machine, or a test, supplies those. Entry,
//! exit and AEX themselves are carried out by the thread; only their checks and stores are here.
//!
//! Layout of the crate: `leaf` has one file for each family of ENCLS leaves and `enclu` one for each family of
//! ENCLU leaves; the other modules are what the leaves are built of. Source of every rule: Intel SDM volume 3D,
//! as digested in the project's ISA reference, whose order of checks is kept.
//!
//! This is a model: it keeps no secret from whoever runs it.

#![forbid(unsafe_code)]

mod bytes;
mod enclu;
mod epcm;
mod fuses;
mod keys;
mod le;
mod leaf;
mod lock;
mod measure;
mod paging;
mod processor;
mod profile;
mod secinfo;
mod secs;
mod sigstruct;
mod tracking;
mod xsave;

#[cfg(test)]
mod tests;

pub use bytes::{ArenaBytes, PageBytes};
pub use enclu::{EncluError, TcsState, Translate};
pub use epcm::{Access, EpcmEntry};
pub use fuses::{FuseKeys, FuseKeysError};
pub use processor::Processor;
pub use profile::{CpuidOverride, Profile};
pub use secs::EnclaveState;
pub use tracking::LogicalProcessors;
pub use xsave::{XsaveComponent, XsaveLayout};
