//! The SGX architecture as data: structures, page types, leaf numbers, error codes, and the seam between
//! software that *runs* supervisor leaves ([`Encls`]) and whatever *carries them out*.
//!
//! Layouts of the architecture's structures come from the [`sgx_isa`] crate and are re-exported in
//! [`layout`]; this crate adds what that crate does not have (fields of newer processors, codes, faults).
//! Everything else in the workspace depends on this crate and it depends on nothing of the workspace.
//! Source: Intel SDM volume 3D, chapters "Enclave Access Control and Data Structures" and "SGX Instruction
//! References".

#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod code;
pub mod encls;
pub mod layout;

pub use addr::{EpcPage, LinAddr, PAGE_SHIFT, PAGE_SIZE, Page, VaSlot};
pub use code::{Fault, LeafError, SgxCode, Vector};
pub use encls::{Encls, EvictedPage};
