//! The errors that a system call on the device reports.

use usgx_epc::AllocError;

use crate::seams::{Efault, SourceError, StoreError};

/// An `errno` value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// Interrupted.
    pub const EINTR: Self = Self(4);
    /// The processor raised a fault.
    pub const EIO: Self = Self(5);
    /// No such device or address.
    pub const ENXIO: Self = Self(6);
    /// Try again.
    pub const EAGAIN: Self = Self(11);
    /// No memory of some kind.
    pub const ENOMEM: Self = Self(12);
    /// Permission denied.
    pub const EACCES: Self = Self(13);
    /// Bad address, or a page that is not there.
    pub const EFAULT: Self = Self(14);
    /// Something else is at work.
    pub const EBUSY: Self = Self(16);
    /// The processor can not do that.
    pub const ENODEV: Self = Self(19);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// Unknown ioctl.
    pub const ENOTTY: Self = Self(25);
    /// A signal interrupted the call before it had any effect that a repetition would trip over. Never shown to
    /// a program: it sees `EINTR`, or the call is made again.
    pub const ERESTARTSYS: Self = Self(512);
}

impl From<AllocError> for Errno {
    fn from(error: AllocError) -> Self {
        match error {
            AllocError::Exhausted => Self::ENOMEM,
            AllocError::Busy => Self::EBUSY,
            AllocError::Interrupted => Self::ERESTARTSYS,
        }
    }
}

impl From<Efault> for Errno {
    fn from(Efault: Efault) -> Self {
        Self::EFAULT
    }
}

impl From<SourceError> for Errno {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Fault => Self::EFAULT,
            SourceError::Access => Self::EACCES,
        }
    }
}

impl From<StoreError> for Errno {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::ENOMEM,
            StoreError::TooLarge => Self::EINVAL,
            StoreError::Io => Self::EIO,
        }
    }
}
