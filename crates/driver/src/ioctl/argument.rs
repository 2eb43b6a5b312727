//! Arguments of ioctls: a few 64-bit fields, and the range check that most share.

use crate::errno::Errno;
use crate::seams::Caller;

/// The fields of an argument.
pub(super) struct Argument<const FIELDS: usize> {
    addr: u64,
    /// The fields, in order.
    pub(super) fields: [u64; FIELDS],
}

impl<const FIELDS: usize> Argument<FIELDS> {
    /// Copies the argument in.
    pub(super) fn read(addr: u64, caller: &dyn Caller) -> Result<Self, Errno> {
        let mut fields = [0; FIELDS];
        let mut bytes = [[0; 8]; FIELDS];
        caller.read(addr, bytes.as_flattened_mut())?;
        for (field, bytes) in fields.iter_mut().zip(bytes) {
            *field = u64::from_le_bytes(bytes);
        }
        Ok(Self { addr, fields })
    }

    /// Copies the whole argument out; a failure of that is the failure of the ioctl, whatever it did.
    pub(super) fn write_back(&self, caller: &dyn Caller, result: Result<(), Errno>) -> Result<(), Errno> {
        caller.write(self.addr, self.fields.map(u64::to_le_bytes).as_flattened())?;
        result
    }
}

/// Page indices of a range that lies in the enclave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct EnclRange {
    pub(super) first: u64,
    pub(super) count: u64,
}

/// Checks an offset and a length in bytes, as claimed, against an enclave of `size` bytes.
pub(super) fn check_range(offset: u64, length: u64, size: u64) -> Result<EnclRange, Errno> {
    if !offset.is_multiple_of(4096) || length == 0 || !length.is_multiple_of(4096) {
        return Err(Errno::EINVAL);
    }
    let end = offset.checked_add(length).ok_or(Errno::EINVAL)?;
    if end - 4096 >= size {
        return Err(Errno::EINVAL);
    }
    Ok(EnclRange { first: offset / 4096, count: length / 4096 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let size = 0x4000;
        assert_eq!(check_range(0x1000, 0x3000, size), Ok(EnclRange { first: 1, count: 3 }));
        for (offset, length) in
            [(1, 0x1000), (0, 0), (0, 0x1001), (u64::MAX - 0xfff, 0x1000), (0x4000, 0x1000), (0, 0x5000)]
        {
            assert_eq!(check_range(offset, length, size), Err(Errno::EINVAL), "{offset:#x} {length:#x}");
        }
    }
}
