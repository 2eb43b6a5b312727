//! The hardware face: EPC contents, the clients' page tables, and the threads inside enclaves.

pub(crate) mod books;
pub(crate) mod departures;
pub(crate) mod frames;
pub(crate) mod ranges;
pub(crate) mod region;
pub(crate) mod spaces;
pub(crate) mod threads;
pub(crate) mod view;
pub(crate) mod window;
