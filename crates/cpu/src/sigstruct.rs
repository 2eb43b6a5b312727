//! SIGSTRUCT: its layout, and the signature in it.
//!
//! EINIT checks a 3072-bit RSA signature with exponent 3 by two multiplications and the quotients Q1 and Q2
//! that the signer supplies, without any division. Called by EINIT. Source: SDM volume 3D, "Enclave Signature
//! Structure (SIGSTRUCT)" and "EINIT".

use crypto_bigint::{Limb, U3072};
use sha2::{Digest, Sha256};
use usgx_isa::SgxCode;
use usgx_isa::layout::{SIGSTRUCT_HEADER1, SIGSTRUCT_HEADER2, Sigstruct};

use crate::le;

/// Offsets of SIGSTRUCT's fields. Source: SDM volume 3D, table "Layout of Enclave Signature Structure".
mod at {
    pub(super) const HEADER: usize = 0;
    pub(super) const VENDOR: usize = 16;
    pub(super) const HEADER2: usize = 24;
    pub(super) const RESERVED1: usize = 44;
    pub(super) const MODULUS: usize = 128;
    pub(super) const EXPONENT: usize = 512;
    pub(super) const SIGNATURE: usize = 516;
    pub(super) const MISCSELECT: usize = 900;
    pub(super) const MISCMASK: usize = 904;
    /// Two bytes for CET, which no profile has, and two that are reserved anyway.
    pub(super) const RESERVED2: usize = 908;
    pub(super) const ISVFAMILYID: usize = 912;
    pub(super) const ATTRIBUTES: usize = 928;
    pub(super) const ATTRIBUTEMASK: usize = 944;
    pub(super) const ENCLAVEHASH: usize = 960;
    pub(super) const RESERVED3: usize = 992;
    pub(super) const ISVEXTPRODID: usize = 1008;
    pub(super) const ISVPRODID: usize = 1024;
    pub(super) const ISVSVN: usize = 1026;
    pub(super) const RESERVED4: usize = 1028;
    pub(super) const Q1: usize = 1040;
    pub(super) const Q2: usize = 1424;
}

/// Bytes of a 3072-bit number.
const RSA_SIZE: usize = 384;
/// `VENDOR` of enclaves by Intel; all others have 0.
const VENDOR_INTEL: u32 = 0x8086;
/// The DER prefix of a SHA-256 digest in PKCS #1 v1.5 signatures. Source: RFC 8017, 9.2.
const DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00,
    0x04, 0x20,
];

/// A SIGSTRUCT, read by its offsets.
pub(crate) struct Signed<'a>(&'a [u8]);

impl<'a> Signed<'a> {
    pub(crate) fn new(sigstruct: &'a Sigstruct) -> Self {
        Self(sigstruct.as_ref())
    }

    /// Checks the fields with fixed values. Without KSS on the processor its fields are reserved.
    pub(crate) fn check_format(&self, kss: bool) -> Result<(), SgxCode> {
        let zero = |from: usize, to: usize| le::is_zero(&self.0[from..to]);
        let good = le::array(self.0, at::HEADER) == SIGSTRUCT_HEADER1
            && matches!(le::get_u32(self.0, at::VENDOR), 0 | VENDOR_INTEL)
            && le::array(self.0, at::HEADER2) == SIGSTRUCT_HEADER2
            && le::get_u32(self.0, at::EXPONENT) == 3
            && zero(at::RESERVED1, at::MODULUS)
            && zero(at::RESERVED2, at::ISVFAMILYID)
            && zero(at::RESERVED3, at::ISVEXTPRODID)
            && zero(at::RESERVED4, at::Q1)
            && (kss || !self.has_kss_fields());
        if good { Ok(()) } else { Err(SgxCode::InvalidSigStruct) }
    }

    /// Whether a field is set that only enclaves with ATTRIBUTES.KSS may have.
    pub(crate) fn has_kss_fields(&self) -> bool {
        !le::is_zero(&self.isvfamilyid()) || !le::is_zero(&self.isvextprodid())
    }

    /// Checks the signature.
    pub(crate) fn verify(&self) -> Result<(), SgxCode> {
        let digest = Sha256::new()
            .chain_update(&self.0[..at::MODULUS])
            .chain_update(&self.0[at::MISCSELECT..at::RESERVED4])
            .finalize();
        let number = |offset: usize| U3072::from_le_slice(&self.0[offset..offset + RSA_SIZE]);
        let [n, s, q1, q2] = [at::MODULUS, at::SIGNATURE, at::Q1, at::Q2].map(number);
        let encoded =
            (s < n).then(|| reduce(&s, &s, &q1, &n).and_then(|r| reduce(&r, &s, &q2, &n))).flatten();
        if encoded == Some(encode(&digest)) { Ok(()) } else { Err(SgxCode::InvalidSignature) }
    }

    /// SHA-256 of the signer's modulus, as stored.
    pub(crate) fn mrsigner(&self) -> [u8; 32] {
        Sha256::digest(&self.0[at::MODULUS..at::EXPONENT]).into()
    }

    pub(crate) fn miscselect(&self) -> u32 {
        le::get_u32(self.0, at::MISCSELECT)
    }

    pub(crate) fn miscmask(&self) -> u32 {
        le::get_u32(self.0, at::MISCMASK)
    }

    pub(crate) fn attributes(&self) -> [u64; 2] {
        [le::get_u64(self.0, at::ATTRIBUTES), le::get_u64(self.0, at::ATTRIBUTES + 8)]
    }

    pub(crate) fn attributemask(&self) -> [u64; 2] {
        [le::get_u64(self.0, at::ATTRIBUTEMASK), le::get_u64(self.0, at::ATTRIBUTEMASK + 8)]
    }

    pub(crate) fn enclavehash(&self) -> [u8; 32] {
        le::array(self.0, at::ENCLAVEHASH)
    }

    pub(crate) fn isvfamilyid(&self) -> [u8; 16] {
        le::array(self.0, at::ISVFAMILYID)
    }

    pub(crate) fn isvextprodid(&self) -> [u8; 16] {
        le::array(self.0, at::ISVEXTPRODID)
    }

    pub(crate) fn isvprodid(&self) -> u16 {
        le::get_u16(self.0, at::ISVPRODID)
    }

    pub(crate) fn isvsvn(&self) -> u16 {
        le::get_u16(self.0, at::ISVSVN)
    }
}

/// `a * b - quotient * n`, if that is in `0..n`: then it is `a * b mod n`, and `quotient` is the true one.
fn reduce(a: &U3072, b: &U3072, quotient: &U3072, n: &U3072) -> Option<U3072> {
    let (product_low, product_high) = a.split_mul(b);
    let (multiple_low, multiple_high) = quotient.split_mul(n);
    let (low, borrow) = product_low.sbb(&multiple_low, Limb::ZERO);
    let (high, borrow) = product_high.sbb(&multiple_high, borrow);
    (borrow == Limb::ZERO && high == U3072::ZERO && low < *n).then_some(low)
}

/// The padded message of a signature over `digest`. Source: RFC 8017, 9.2.
fn encode(digest: &[u8]) -> U3072 {
    let mut encoded = [0xff; RSA_SIZE];
    let digest_at = RSA_SIZE - digest.len();
    let info_at = digest_at - DIGEST_INFO.len();
    le::put(&mut encoded, 0, &[0x00, 0x01]);
    le::put(&mut encoded, info_at - 1, &[0x00]);
    le::put(&mut encoded, info_at, &DIGEST_INFO);
    le::put(&mut encoded, digest_at, digest);
    U3072::from_be_slice(&encoded)
}
