//! Proof that a kernel can link `usgx-isa`, `usgx-epc` and `usgx-driver`: a static library that has them and
//! `alloc`, but not the standard library.
//!
//! A crate in its tree that uses the standard library brings a second panic handler, and the build fails with
//! "found duplicate lang item". Bare-metal targets would show the same, but need their own toolchain; this
//! check needs none. Built by `cargo xtask test --only nostd`; nothing runs it.

#![no_std]

// Lints also look at the test target, which has the standard library.
#[cfg(not(test))]
mod raw;

extern crate alloc;
extern crate usgx_driver as _;
extern crate usgx_epc as _;
extern crate usgx_isa as _;
