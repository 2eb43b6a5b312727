//! SECINFO.FLAGS as a number, checked.
//!
//! Leaves look at SECINFO as bytes because reserved bits decide faults. Source: SDM volume 3D, "Security
//! Information (SECINFO)".

use usgx_isa::Fault;
use usgx_isa::layout::Secinfo;

use crate::le;

/// Readable from inside the enclave.
pub(crate) const R: u64 = 1 << 0;
/// Writable from inside the enclave.
pub(crate) const W: u64 = 1 << 1;
/// Executable from inside the enclave.
pub(crate) const X: u64 = 1 << 2;
/// All three permissions.
pub(crate) const RWX: u64 = R | W | X;
/// Added by EAUG, not accepted yet.
pub(crate) const PENDING: u64 = 1 << 3;
/// Type changed by EMODT, not accepted yet.
pub(crate) const MODIFIED: u64 = 1 << 4;
/// Restricted by EMODPR, not accepted yet.
pub(crate) const PR: u64 = 1 << 5;
/// PAGE_TYPE.
pub(crate) const PAGE_TYPE: u64 = 0xff << 8;

/// PT_SECS in its place in FLAGS.
pub(crate) const PT_SECS: u64 = 0;
/// PT_TCS in its place in FLAGS.
pub(crate) const PT_TCS: u64 = 1 << 8;
/// PT_REG in its place in FLAGS.
pub(crate) const PT_REG: u64 = 2 << 8;
/// PT_VA in its place in FLAGS.
pub(crate) const PT_VA: u64 = 3 << 8;
/// PT_TRIM in its place in FLAGS.
pub(crate) const PT_TRIM: u64 = 4 << 8;

/// FLAGS, if none of the SECINFO's reserved bits is set.
///
/// PENDING, MODIFIED and PR are not reserved, whichever leaf the SECINFO is for.
pub(crate) fn checked_flags(secinfo: &Secinfo) -> Result<u64, Fault> {
    checked_flags_of_bytes(secinfo.as_ref())
}

/// As [`checked_flags`], for the 64 bytes of a SECINFO in an enclave's memory.
pub(crate) fn checked_flags_of_bytes(bytes: &[u8]) -> Result<u64, Fault> {
    let flags = le::get_u64(bytes, 0);
    let reserved = !(RWX | PENDING | MODIFIED | PR | PAGE_TYPE);
    if flags & reserved == 0 && le::is_zero(&bytes[8..]) { Ok(flags) } else { Err(Fault::Gp) }
}
