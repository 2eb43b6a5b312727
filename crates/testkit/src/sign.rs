//! Measuring an image and signing it, independently of the processor model.

use std::sync::OnceLock;

use openssl::bn::BigNum;
use openssl::hash::Hasher;
use openssl::pkey::Private;
use openssl::rsa::Rsa;
use sgxs::sigstruct::{EnclaveHash, Signer};
use sha2::{Digest, Sha256};
use usgx_isa::layout::{AttributesFlags, Sigstruct};

use crate::image::Image;

/// The signing key of all test enclaves: new in each run, 3072 bits, exponent 3.
fn key() -> &'static Rsa<Private> {
    static KEY: OnceLock<Rsa<Private>> = OnceLock::new();
    KEY.get_or_init(|| {
        let three = BigNum::from_u32(3).expect("a small number");
        Rsa::generate_with_e(3072, &three).expect("OpenSSL makes keys")
    })
}

/// The measurement that the processor should arrive at.
pub(crate) fn measure(image: &Image) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut block = |tag: &[u8; 8], fields: &[u8]| {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(tag);
        bytes[8..8 + fields.len()].copy_from_slice(fields);
        hash.update(bytes);
    };
    let mut create = [0; 12];
    create[..4].copy_from_slice(&1u32.to_le_bytes());
    create[4..].copy_from_slice(&image.size.to_le_bytes());
    block(b"ECREATE\0", &create);
    for page in &image.pages {
        let offset = page.index * 4096;
        block(b"EADD\0\0\0\0", &[offset.to_le_bytes(), page.secinfo.to_le_bytes()].concat());
        for (at, chunk) in (0..).step_by(256).zip(page.contents.0.chunks(256)).filter(|_| page.measure) {
            block(b"EEXTEND\0", &u64::to_le_bytes(offset + at));
            for data in chunk.chunks(64) {
                let (tag, rest) = data.split_first_chunk::<8>().expect("64 bytes");
                block(tag, rest);
            }
        }
    }
    hash.finalize().into()
}

/// A SIGSTRUCT for the image, with every attribute of it demanded.
pub(crate) fn sign(image: &Image) -> Sigstruct {
    let mut signer = Signer::new(EnclaveHash::new(measure(image)));
    signer.attributes_flags(AttributesFlags::from_bits_truncate(image.attributes), !0).attributes_xfrm(3, !0);
    signer.sign::<_, Hasher>(&**key()).expect("OpenSSL signs")
}
