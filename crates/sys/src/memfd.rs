//! Memory files: the regions, views and windows that the machine shares with its clients.
//!
//! A [`Memfd`] is handed to hostile processes, which can write to it, punch holes into it and, until it is
//! [sealed](Memfd::seal_size), resize it and seal it themselves. So whoever maps one checks after sealing
//! that it has the size that he thinks it has.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;

/// A memory file.
#[derive(Debug)]
pub struct Memfd(File);

impl Memfd {
    /// Makes an empty memory file. `name` is for people who look at `/proc/PID/maps`.
    ///
    /// # Errors
    /// Whatever `memfd_create` says.
    pub fn create(name: &str) -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Nobody executes the file itself (mappings may still be executable); where the kernel is too old to
        // know the flag, it is not needed either.
        let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
            other => other?,
        };
        Ok(Self(fd.into()))
    }

    /// Gives the file `size` bytes and seals it against shrinking, growing and further seals.
    ///
    /// # Errors
    /// [`Errno::PERM`] if somebody who shares the file has sealed it in a way that makes it useless;
    /// otherwise whatever the calls say.
    pub fn seal_size(&self, size: u64) -> Result<(), Errno> {
        rustix::fs::ftruncate(&self.0, size)?;
        rustix::fs::fcntl_add_seals(&self.0, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let seals = rustix::fs::fcntl_get_seals(&self.0)?;
        let length = rustix::fs::fstat(&self.0)?.st_size;
        if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) || u64::try_from(length) != Ok(size) {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    /// Reads at `offset`; what lies beyond the end of the file, or cannot be read, is zeros.
    pub fn read_or_zeros(&self, offset: u64, out: &mut [u8]) {
        if self.0.read_exact_at(out, offset).is_err() {
            out.fill(0);
        }
    }

    /// Reads at `offset` into several buffers, one after the other.
    ///
    /// # Errors
    /// Whatever `preadv` says; [`Errno::IO`] if the file ends before the buffers do.
    pub fn read_vectored(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<(), Errno> {
        let wanted: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let got = rustix::io::retry_on_intr(|| rustix::io::preadv(&self.0, buffers, offset))?;
        if got == wanted { Ok(()) } else { Err(Errno::IO) }
    }

    /// Writes at `offset`.
    ///
    /// # Errors
    /// Whatever `pwrite` says.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.0.write_all_at(bytes, offset).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// Frees the memory of a range; it reads as zeros afterwards.
    ///
    /// # Errors
    /// Whatever `fallocate` says.
    pub fn punch_hole(&self, offset: u64, length: u64) -> Result<(), Errno> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.0, mode, offset, length))
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Memfd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}
