//! What the machine and the runtime share: messages, shared memory, fixed addresses, and their version.
//!
//! This is the only trust boundary of usgx. The machine side treats every value that it reads here as an
//! allegation: it copies once, then checks. The runtime side trusts the machine. Layouts only: no code that
//! touches memory, no system calls, no allocation, so that both the freestanding runtime and the host use
//! the very same definitions.
//!
//! A process talks to the machine in three ways:
//!
//! - the *door* ([`channel::Hello`]), a `SOCK_SEQPACKET` socket that every process of a run inherits, used
//!   once by each process image to hand the machine one end of its own channel;
//! - the *channel* ([`channel`]), one socket pair for each process image; it carries what needs file
//!   descriptors, and its hang-up tells the machine that the image is gone (exit, kill or exec);
//! - *slots* ([`slot`]), one for each thread, in memory shared by the process and the machine, woken by
//!   futex: everything that is frequent.
//!
//! And it shares one *window* ([`window`]) for each enclave: tracking epoch, thread control structures and
//! the state of the enclave's pages.

#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod channel;
pub mod place;
pub mod process;
pub mod slot;
pub mod window;

/// The version of everything in this crate. Both sides refuse another.
pub const VERSION: u32 = 1;
