//! Little-endian fields of structures that are handled as bytes.
//!
//! The leaves check reserved bytes and measure structures as they are in memory, so they read fields from
//! bytes at the offsets of the SDM's tables. Offsets are constants; one that is out of range is a bug.

/// The `N` bytes of `bytes` at `offset`.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("the range has N bytes")
}

/// The 16-bit field of `bytes` at `offset`.
pub(crate) fn get_u16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array(bytes, offset))
}

/// The 32-bit field of `bytes` at `offset`.
pub(crate) fn get_u32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array(bytes, offset))
}

/// The 64-bit field of `bytes` at `offset`.
pub(crate) fn get_u64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array(bytes, offset))
}

/// Stores `value` into `bytes` at `offset`.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// Whether all of `bytes` is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
