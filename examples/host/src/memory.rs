//! Address space: a reserved range for the enclave, and mappings in it.

use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};

use crate::device::Device;

/// A range of addresses of this process, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Range {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: The range is plain addresses; nothing in it belongs to a thread.
unsafe impl Send for Range {}
// SAFETY: As above; no method gives access to the memory itself.
unsafe impl Sync for Range {}

impl Range {
    fn map(length: usize, protection: i32, flags: i32) -> io::Result<Self> {
        // SAFETY: Without a fixed address, `mmap` replaces nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// Keeps addresses free.
    pub(crate) fn reserve(length: usize) -> io::Result<Self> {
        Self::map(length, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
    }

    /// Maps memory that reads as zeros.
    pub(crate) fn zeros(length: usize) -> io::Result<Self> {
        Self::map(length, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
    }

    /// The first address in the range that is a multiple of `alignment`.
    pub(crate) fn aligned(&self, alignment: usize) -> usize {
        self.start.as_ptr().addr().next_multiple_of(alignment)
    }

    /// The first byte.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Maps a part of the range to the enclave.
    pub(crate) fn map_enclave(
        &self,
        device: &Device,
        address: usize,
        length: usize,
        protection: i32,
    ) -> io::Result<()> {
        let start = self.start.as_ptr().addr();
        if address < start || address + length > start + self.length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let at = self.start.as_ptr().with_addr(address).cast();
        // SAFETY: The mapping replaces a part of this range only, by the check above.
        let done = unsafe { libc::mmap(at, length, protection, flags, device.0.as_raw_fd(), 0) };
        if done == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: The range is this value's own, and nobody uses an address in it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A page-aligned copy of some bytes, for the kernel to read pages from.
#[derive(Debug)]
pub(crate) struct Aligned(Vec<Page>);

#[repr(C, align(4096))]
#[derive(Clone, Debug)]
struct Page([u8; 4096]);

impl Aligned {
    /// Copies whole pages.
    pub(crate) fn copy(bytes: &[u8]) -> Self {
        let page = |chunk: &[u8]| {
            let mut page = Page([0; 4096]);
            page.0[..chunk.len()].copy_from_slice(chunk);
            page
        };
        Self(bytes.chunks(4096).map(page).collect())
    }

    /// The first byte.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }
}
