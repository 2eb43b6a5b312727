//! Every system call that the host side of usgx makes, behind safe and typed functions.
//!
//! This is one of the few crates with `unsafe` code in it: each block says why it is sound. Errors are
//! [`std::io::Error`]s with the kernel's errno; what they mean is the caller's business.

#![expect(unsafe_code, reason = "system calls")]

pub mod arena;
pub mod attendant;
pub mod cpuid;
pub mod events;
pub mod futex;
pub mod memfd;
pub mod pace;
pub mod pidfd;
pub mod probe;
pub mod process;
pub mod ptrace;
pub mod shared;
pub mod socket;
pub mod uffd;
pub mod vdso;

pub use rustix::io::Errno;
