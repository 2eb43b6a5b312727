//! MRENCLAVE while it is being built: SHA-256 over 64-byte blocks.
//!
//! ECREATE, EADD and EEXTEND absorb whole blocks only, so the running hash is its intermediate state and a
//! count, 40 bytes that travel inside an evicted SECS. The owner serialises access with the build lock of the
//! SECS. Source: SDM volume 3D, the flows of ECREATE, EADD, EEXTEND and EINIT.

use sha2::compress256;
use sha2::digest::generic_array::GenericArray;
use sha2::digest::typenum::U64;
use usgx_isa::layout::{MEAS_EADD, MEAS_ECREATE, MEAS_EEXTEND};

use crate::le;

/// Bytes that one EEXTEND measures.
pub(crate) const CHUNK: usize = 256;
const BLOCK: usize = 64;

type Block = GenericArray<u8, U64>;

/// The initial state of SHA-256. Source: FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A measurement that is not final yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Measurement {
    state: [u32; 8],
    /// Blocks absorbed so far.
    blocks: u64,
}

impl Measurement {
    /// Bytes of a saved measurement.
    pub(crate) const SAVED: usize = 40;

    /// Starts a measurement with the block of ECREATE.
    pub(crate) fn start(ssaframesize: u32, size: u64) -> Self {
        let mut block = Block::default();
        le::put(&mut block, 0, &MEAS_ECREATE.to_le_bytes());
        le::put(&mut block, 8, &ssaframesize.to_le_bytes());
        le::put(&mut block, 12, &size.to_le_bytes());
        let mut fresh = Self { state: INITIAL, blocks: 0 };
        fresh.absorb(&[block]);
        fresh
    }

    /// Absorbs the block of EADD: a page at `offset` from the enclave's base, with SECINFO.FLAGS `flags`.
    pub(crate) fn add(&mut self, offset: u64, flags: u64) {
        let mut block = Block::default();
        le::put(&mut block, 0, &MEAS_EADD.to_le_bytes());
        le::put(&mut block, 8, &offset.to_le_bytes());
        le::put(&mut block, 16, &flags.to_le_bytes());
        self.absorb(&[block]);
    }

    /// Absorbs the blocks of EEXTEND: `chunk`, which is at `offset` from the enclave's base.
    pub(crate) fn extend(&mut self, offset: u64, chunk: &[u8; CHUNK]) {
        let mut blocks = [Block::default(); 1 + CHUNK / BLOCK];
        le::put(&mut blocks[0], 0, &MEAS_EEXTEND.to_le_bytes());
        le::put(&mut blocks[0], 8, &offset.to_le_bytes());
        for (block, data) in blocks[1..].iter_mut().zip(chunk.chunks_exact(BLOCK)) {
            block.copy_from_slice(data);
        }
        self.absorb(&blocks);
    }

    /// The digest of everything absorbed.
    pub(crate) fn finish(mut self) -> [u8; 32] {
        let bits = self.blocks * 8 * BLOCK as u64;
        let mut padding = Block::default();
        padding[0] = 0x80;
        padding[56..].copy_from_slice(&bits.to_be_bytes());
        self.absorb(&[padding]);
        let mut digest = [0; 32];
        for (out, word) in digest.chunks_exact_mut(4).zip(self.state) {
            out.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }

    /// The measurement as bytes.
    pub(crate) fn save(&self) -> [u8; Self::SAVED] {
        let mut saved = [0; Self::SAVED];
        le::put(&mut saved, 0, &self.blocks.to_le_bytes());
        for (i, word) in self.state.iter().enumerate() {
            le::put(&mut saved, 8 + 4 * i, &word.to_le_bytes());
        }
        saved
    }

    /// The measurement that [`save`](Self::save) made `saved` of.
    pub(crate) fn load(saved: &[u8; Self::SAVED]) -> Self {
        Self { blocks: le::get_u64(saved, 0), state: std::array::from_fn(|i| le::get_u32(saved, 8 + 4 * i)) }
    }

    fn absorb(&mut self, blocks: &[Block]) {
        compress256(&mut self.state, blocks);
        self.blocks += blocks.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn agrees_with_sha256_over_the_concatenated_blocks() {
        let chunk: [u8; CHUNK] = std::array::from_fn(|i| i as u8);
        let mut ours = Measurement::start(1, 0x10_0000);
        ours.add(0x3000, 0x203);
        ours = Measurement::load(&ours.save());
        ours.extend(0x3100, &chunk);

        let mut plain = Sha256::new();
        let block = |parts: &[&[u8]]| {
            let mut bytes = parts.concat();
            bytes.resize(BLOCK, 0);
            bytes
        };
        plain.update(block(&[b"ECREATE\0", &1u32.to_le_bytes(), &0x10_0000u64.to_le_bytes()]));
        plain.update(block(&[b"EADD\0\0\0\0", &0x3000u64.to_le_bytes(), &0x203u64.to_le_bytes()]));
        plain.update(block(&[b"EEXTEND\0", &0x3100u64.to_le_bytes()]));
        plain.update(chunk);
        assert_eq!(ours.finish(), <[u8; 32]>::from(plain.finalize()));
    }
}
