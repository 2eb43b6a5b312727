//! The floors: what the kernel and the processor take for the least that each piece of work needs.

pub(crate) mod crypto;
pub(crate) mod heap;
pub(crate) mod paging;
mod raw;
pub(crate) mod round_trip;
pub(crate) mod signal;
