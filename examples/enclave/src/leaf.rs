//! The ENCLU leaves that this enclave uses, and the structures that they take. Source: SDM volume 3D.

use core::arch::asm;

/// EREPORT.
const EREPORT: u32 = 0;
/// EGETKEY.
const EGETKEY: u32 = 1;
/// EEXIT.
pub(crate) const EEXIT: u32 = 4;
/// KEYREQUEST.KEYNAME: the seal key.
const KEYNAME_SEAL: u16 = 4;
/// KEYREQUEST.KEYPOLICY: for this very enclave, not for all of its signer's.
const KEYPOLICY_MRENCLAVE: u16 = 1;

/// TARGETINFO and KEYREQUEST: both are 512 bytes, aligned to their size.
#[repr(C, align(512))]
pub(crate) struct Block512(pub(crate) [u8; 512]);

/// REPORTDATA: 64 bytes, aligned to 128.
#[repr(C, align(128))]
pub(crate) struct ReportData(pub(crate) [u8; 64]);

/// REPORT: 432 bytes, aligned to 512.
#[repr(C, align(512))]
pub(crate) struct Report(pub(crate) [u8; 432]);

#[repr(C, align(16))]
struct Key([u8; 16]);

/// Makes a report of this enclave for the enclave that `target` describes.
pub(crate) fn report(target: &Block512, data: &ReportData) -> Report {
    let mut report = Report([0; 432]);
    // SAFETY: The three operands are inside the enclave, aligned as the leaf wants, and as large as it reads
    // and writes. RBX is saved around the leaf because the compiler keeps it for itself.
    unsafe {
        asm!(
            "xchg {target}, rbx",
            "enclu",
            "xchg {target}, rbx",
            target = inout(reg) target => _,
            in("eax") EREPORT,
            in("rcx") data,
            in("rdx") &raw mut report,
            options(nostack),
        );
    }
    report
}

/// Derives this enclave's seal key; fails with the leaf's error code.
pub(crate) fn seal_key() -> Result<[u8; 16], u64> {
    let mut request = Block512([0; 512]);
    request.0[0..2].copy_from_slice(&KEYNAME_SEAL.to_le_bytes());
    request.0[2..4].copy_from_slice(&KEYPOLICY_MRENCLAVE.to_le_bytes());
    let mut key = Key([0; 16]);
    let code: u64;
    // SAFETY: As in `report`.
    unsafe {
        asm!(
            "xchg {request}, rbx",
            "enclu",
            "xchg {request}, rbx",
            request = inout(reg) &raw const request => _,
            inout("rax") u64::from(EGETKEY) => code,
            in("rcx") &raw mut key,
            options(nostack),
        );
    }
    if code == 0 { Ok(key.0) } else { Err(code) }
}
