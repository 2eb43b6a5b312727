//! The signed enclave, as the build script has made it.

use std::io::{self, Write};

use crate::layout;

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

/// Writes the enclave as an SGX stream, the format in which other tools measure, sign and load enclaves: 64-byte
/// records as the processor measures them, each EEXTEND followed by its 256 bytes.
///
/// # Errors
///
/// If `out` does not take it.
pub fn write_stream(out: &mut dyn Write) -> io::Result<()> {
    const PAGE: usize = 4096;
    const CHUNK: usize = 256;
    let mut record = |name: &[u8], fields: &[&[u8]], data: &[u8]| {
        let mut bytes = [0; 64];
        bytes[..name.len()].copy_from_slice(name);
        let mut at = 8;
        for field in fields {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        out.write_all(&bytes)?;
        out.write_all(data)
    };
    // One page for an SSA frame, as the loader tells ECREATE.
    record(b"ECREATE", &[&1u32.to_le_bytes(), &(layout::SIZE as u64).to_le_bytes()], &[])?;
    for region in REGIONS {
        for page in (0..region.length).step_by(PAGE) {
            let offset = (region.offset + page) as u64;
            record(b"EADD", &[&offset.to_le_bytes(), &region.flags.to_le_bytes()], &[])?;
            if !region.measured {
                continue; // Regions that are not measured are zeros.
            }
            for chunk in (0..PAGE).step_by(CHUNK) {
                let zeros = [0; CHUNK];
                let data =
                    region.contents.map_or(&zeros[..], |start| &CONTENTS[start + page + chunk..][..CHUNK]);
                record(b"EEXTEND", &[&(offset + chunk as u64).to_le_bytes()], data)?;
            }
        }
    }
    Ok(())
}
