//! The signed enclave, as the build script has made it.

/// Pages of one kind, one after the other.
#[derive(Debug)]
pub(crate) struct Region {
    /// From the enclave's base.
    pub(crate) offset: usize,
    /// In bytes, whole pages.
    pub(crate) length: usize,
    /// SECINFO.FLAGS.
    pub(crate) flags: u64,
    /// Whether the contents are part of the enclave's measurement.
    pub(crate) measured: bool,
    /// Where the contents are in [`CONTENTS`]; `None` for zeros.
    pub(crate) contents: Option<usize>,
}

/// In the order in which they are added.
pub(crate) static REGIONS: &[Region] = &include!(concat!(env!("OUT_DIR"), "/regions.rs"));
/// The bytes of all regions that have some.
pub(crate) static CONTENTS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/enclave.bin"));
/// What EINIT checks.
pub(crate) static SIGSTRUCT: &[u8; 1808] = include_bytes!(concat!(env!("OUT_DIR"), "/sigstruct.bin"));
