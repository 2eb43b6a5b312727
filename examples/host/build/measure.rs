//! MRENCLAVE: a hash over what the processor is told, in the order in which it is told.
//! Source: SDM volume 3D, operation of ECREATE, EADD and EEXTEND.

use sha2::{Digest as _, Sha256};

use crate::image::{Image, PAGE_SIZE};
use crate::layout;

/// Pages of an SSA frame; the loader says the same to ECREATE.
const SSA_FRAME_SIZE: u32 = 1;
/// EEXTEND measures this much at a time.
const CHUNK: usize = 256;

/// A record of the measurement: 64 bytes, begun by the leaf's name.
fn record(name: &[u8], fields: &[&[u8]]) -> [u8; 64] {
    let mut record = [0; 64];
    record[..name.len()].copy_from_slice(name);
    let mut at = 8;
    for field in fields {
        record[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    record
}

pub(crate) fn mrenclave(image: &Image) -> [u8; 32] {
    let mut hash = Sha256::new();
    let size = layout::SIZE as u64;
    hash.update(record(b"ECREATE", &[&SSA_FRAME_SIZE.to_le_bytes(), &size.to_le_bytes()]));
    for region in &image.regions {
        for offset in (0..region.length).step_by(PAGE_SIZE) {
            let address = (region.offset + offset) as u64;
            hash.update(record(b"EADD", &[&address.to_le_bytes(), &region.flags.to_le_bytes()]));
            if !region.measured {
                continue;
            }
            for (index, chunk) in image.page(region, offset).chunks(CHUNK).enumerate() {
                let address = address + (index * CHUNK) as u64;
                hash.update(record(b"EEXTEND", &[&address.to_le_bytes()]));
                hash.update(chunk);
            }
        }
    }
    hash.finalize().into()
}
