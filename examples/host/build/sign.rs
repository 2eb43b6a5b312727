//! SIGSTRUCT: the signature that EINIT checks. Source: SDM volume 3D, "Enclave Signature Structure".

use num_bigint::BigUint;
use sha2::{Digest as _, Sha256};

/// Bytes of the RSA modulus.
const BYTES: usize = 384;
/// ATTRIBUTES: DEBUG and MODE64BIT.
const ATTRIBUTES: u64 = 0x6;
/// Every attribute counts but DEBUG, which may be on or off.
const ATTRIBUTE_MASK: u64 = !0x2;
/// XFRM: x87 and SSE.
const XFRM: u64 = 0x3;
const HEADER: [u8; 16] = [6, 0, 0, 0, 0xe1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];
const HEADER2: [u8; 16] = [1, 1, 0, 0, 0x60, 0, 0, 0, 0x60, 0, 0, 0, 1, 0, 0, 0];
/// 2026-01-01, in decimal digits read as hexadecimal. Fixed, so that builds can be repeated.
const DATE: u32 = 0x2026_0101;
/// PKCS #1 v1.5: what stands before a SHA-256 hash.
const DIGEST_INFO: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1, 5, 0, 4, 0x20];

pub(crate) struct Key {
    modulus: BigUint,
    exponent: BigUint,
}

impl Key {
    /// Reads the key file: two numbers in hexadecimal, each under its name.
    pub(crate) fn parse(text: &str) -> Self {
        let number = |name: &str| {
            let digits: String = text
                .lines()
                .skip_while(|line| *line != name)
                .skip(1)
                .take_while(|line| !line.is_empty())
                .collect();
            BigUint::parse_bytes(digits.as_bytes(), 16).expect("the key file holds hexadecimal numbers")
        };
        Self { modulus: number("modulus"), exponent: number("private exponent") }
    }
}

fn little_endian(number: &BigUint) -> [u8; BYTES] {
    let mut bytes = number.to_bytes_le();
    bytes.resize(BYTES, 0);
    bytes.try_into().expect("every number here is below the modulus")
}

/// The whole structure for an enclave with this measurement.
pub(crate) fn sigstruct(measurement: &[u8; 32], key: &Key) -> [u8; 1808] {
    let mut bytes = [0; 1808];
    let mut put = |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
    put(0, &HEADER);
    put(20, &DATE.to_le_bytes());
    put(24, &HEADER2);
    put(904, &u32::MAX.to_le_bytes());
    put(928, &ATTRIBUTES.to_le_bytes());
    put(936, &XFRM.to_le_bytes());
    put(944, &ATTRIBUTE_MASK.to_le_bytes());
    put(952, &u64::MAX.to_le_bytes());
    put(960, measurement);
    put(1024, &1u16.to_le_bytes());
    put(1026, &1u16.to_le_bytes());

    let mut hash = Sha256::new();
    hash.update(&bytes[..128]);
    hash.update(&bytes[900..1028]);
    let mut message = vec![0xff; BYTES];
    message[..2].copy_from_slice(&[0, 1]);
    let tail = BYTES - 32 - DIGEST_INFO.len();
    message[tail - 1] = 0;
    message[tail..BYTES - 32].copy_from_slice(&DIGEST_INFO);
    message[BYTES - 32..].copy_from_slice(&hash.finalize());

    let message = BigUint::from_bytes_be(&message);
    let n = &key.modulus;
    let s = message.modpow(&key.exponent, n);
    // Quotients that spare the processor the divisions.
    let q1 = &s * &s / n;
    let q2 = (&s * &s * &s - &q1 * &s * n) / n;
    assert_eq!(s.modpow(&BigUint::from(3u8), n), message, "the key file is damaged");
    let mut put = |offset: usize, field: &[u8]| bytes[offset..offset + field.len()].copy_from_slice(field);
    put(128, &little_endian(n));
    put(512, &3u32.to_le_bytes());
    put(516, &little_endian(&s));
    put(1040, &little_endian(&q1));
    put(1424, &little_endian(&q2));
    bytes
}
