//! Cryptography without which EWB, ELDU and EADD are not what they are.

use std::hint::black_box;

use anyhow::{Result, anyhow};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};

use crate::measure::{Activity, timed};
use crate::raw::PAGE_SIZE;

/// Bytes that the measurement takes for one page: an EADD record, and an EEXTEND record with 256 bytes of the
/// page, 16 times.
const MEASURED_BYTES: usize = 64 + 16 * (64 + 256);

/// Encrypts a page and makes its MAC, as EWB does.
pub(crate) fn encrypt_page() -> Result<Activity> {
    let key = page_key()?;
    let mut page = vec![0x5a_u8; PAGE_SIZE];
    let mut count = 0_u64;
    Ok(timed(move |times| {
        for _ in 0..times {
            count += 1;
            seal_page(&key, count, &mut page)?;
        }
        Ok(())
    }))
}

/// Hashes what EADD and EEXTEND of one page put into MRENCLAVE.
pub(crate) fn measure_page() -> Activity {
    let records = vec![0x5a_u8; MEASURED_BYTES];
    let mut hash = Sha256::new();
    timed(move |times| {
        for _ in 0..times {
            hash.update(black_box(&records));
        }
        black_box(hash.clone().finalize());
        Ok(())
    })
}

/// What loading a measured enclave cannot do without: copying its contents once, and hashing what EADD and EEXTEND
/// hash, in one stream. A unit is the whole enclave.
pub(crate) fn copy_and_measure(pages: usize) -> Activity {
    let source = vec![0x5a_u8; pages * PAGE_SIZE];
    let mut copy = vec![0_u8; pages * PAGE_SIZE];
    let mut records = [0x5a_u8; MEASURED_BYTES];
    timed(move |times| {
        for _ in 0..times {
            let mut hash = Sha256::new();
            let pages = source.chunks_exact(PAGE_SIZE).zip(copy.chunks_exact_mut(PAGE_SIZE));
            for (index, (from, to)) in (0_u64..).zip(pages) {
                to.copy_from_slice(from);
                records[16..24].copy_from_slice(&index.to_le_bytes());
                hash.update(black_box(&records));
            }
            black_box(hash.finalize());
            black_box(&copy);
        }
        Ok(())
    })
}

/// The key of an eviction.
pub(crate) fn page_key() -> Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(|_| anyhow!("AES-128-GCM refuses its key"))?;
    Ok(LessSafeKey::new(key))
}

/// Encrypts a page once.
pub(crate) fn seal_page(key: &LessSafeKey, number: u64, page: &mut [u8]) -> Result<()> {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    let tag = key
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from([0; 64]), page)
        .map_err(|_| anyhow!("AES-128-GCM failed"))?;
    let _tag = black_box(tag);
    Ok(())
}
