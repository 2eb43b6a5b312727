//! Cryptography without which EWB, ELDU and EADD are not what they are.

use std::hint::black_box;

use anyhow::{Result, anyhow};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};

use crate::measure::Activity;
use crate::raw::PAGE_SIZE;

/// Bytes that the measurement takes for one page: an EADD record, and an EEXTEND record with 256 bytes of the
/// page, 16 times.
const MEASURED_BYTES: usize = 64 + 16 * (64 + 256);

/// Encrypts a page and makes its MAC, as EWB does.
pub(crate) fn encrypt_page() -> Result<Activity> {
    let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(|_| anyhow!("AES-128-GCM refuses its key"))?;
    let key = LessSafeKey::new(key);
    let mut page = vec![0x5a_u8; PAGE_SIZE];
    let mut count = 0_u64;
    Ok(Box::new(move |times| {
        for _ in 0..times {
            let mut nonce = [0; 12];
            nonce[..8].copy_from_slice(&count.to_le_bytes());
            count += 1;
            let tag = key
                .seal_in_place_separate_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from([0; 64]),
                    &mut page,
                )
                .map_err(|_| anyhow!("AES-128-GCM failed"))?;
            let _tag = black_box(tag);
        }
        Ok(())
    }))
}

/// Hashes what EADD and EEXTEND of one page put into MRENCLAVE.
pub(crate) fn measure_page() -> Activity {
    let records = vec![0x5a_u8; MEASURED_BYTES];
    let mut hash = Sha256::new();
    Box::new(move |times| {
        for _ in 0..times {
            hash.update(black_box(&records));
        }
        black_box(hash.clone().finalize());
        Ok(())
    })
}
