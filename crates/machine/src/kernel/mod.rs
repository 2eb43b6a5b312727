//! The kernel face: what the driver needs of a kernel beyond page tables.

pub(crate) mod caller;
pub(crate) mod ksgxd;
pub(crate) mod platform;
pub(crate) mod slab;
pub(crate) mod source;
pub(crate) mod store;
pub(crate) mod swap_file;
