//! An ordinary SGX program, as a library: it knows Linux's interface to SGX and nothing of usgx.
//!
//! It loads the enclave of `examples/enclave` through `/dev/sgx_enclave`, enters it by the vDSO function, lets
//! it fill a heap of 64 MiB and checks every byte. With less EPC than that, every page is written back and
//! loaded again on the way. It runs on a machine with real SGX just as well.

mod device;
mod enclave;
mod image;
#[path = "../../enclave/src/layout.rs"]
#[allow(dead_code, reason = "parts of it are for the enclave")]
mod layout;
mod memory;
mod vdso;
mod work;

pub use enclave::{Enclave, Error};
pub use image::write_stream;
pub use work::{Identity, Outcome, Progress, identity, work};
