//! Memory that another process can write at any time.
//!
//! Such memory is never behind a plain reference: words are atomics, everything else is copied with volatile
//! accesses. Used by the machine for regions and windows.
#![expect(unsafe_code, reason = "maps memory and makes references to its words")]

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// A shared, writable mapping of a file, from its beginning.
///
/// # Invariants
///
/// `base` is the start of a mapping of `length` bytes, readable and writable, that lives as long as the
/// value. The file cannot shrink below `length` (whoever made it has sealed it; see [`SharedMemory::map`]).
#[derive(Debug)]
pub struct SharedMemory {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread, and all accesses are atomic or volatile.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps the first `length` bytes of a file, which must be sealed against shrinking.
    ///
    /// # Errors
    /// [`Errno::INVAL`] if the file can still shrink or is too short; otherwise whatever `mmap` says.
    pub fn map(file: impl AsFd, length: usize) -> Result<Self, Errno> {
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        let size = rustix::fs::fstat(&file)?.st_size;
        if !seals.contains(rustix::fs::SealFlags::SHRINK)
            || usize::try_from(size).map_or(true, |size| size < length)
        {
            return Err(Errno::INVAL);
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                0,
            )?
        };
        // INVARIANT: just mapped, and the file is sealed as checked above.
        Ok(Self { base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?, length })
    }

    /// Bytes of the mapping.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether the mapping has no bytes; never the case.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The 32-bit word at `offset`.
    ///
    /// # Panics
    /// If the word is not aligned or not inside the mapping: offsets are the caller's own arithmetic, never
    /// a client's.
    #[must_use]
    pub fn word32(&self, offset: usize) -> &AtomicU32 {
        self.check(offset, 4);
        assert!(offset.is_multiple_of(4), "unaligned word at {offset:#x}");
        // SAFETY: in bounds and aligned as checked; the mapping lives as long as `self`; every access to it
        // in this process is atomic or volatile, and other processes are outside of the language's model.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    /// The 64-bit word at `offset`.
    ///
    /// # Panics
    /// As [`word32`](Self::word32).
    #[must_use]
    pub fn word64(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8), "unaligned word at {offset:#x}");
        // SAFETY: as in `word32`.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU64>() }
    }

    /// Copies bytes out. Another process may change them meanwhile; the copy is whatever was seen.
    ///
    /// # Panics
    /// If the range is not inside the mapping.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        self.check(offset, out.len());
        // SAFETY: in bounds as checked.
        let source = unsafe { self.base.as_ptr().add(offset) };
        if (source as usize).is_multiple_of(8) && out.len().is_multiple_of(8) {
            for (index, chunk) in out.chunks_exact_mut(8).enumerate() {
                // SAFETY: in bounds, aligned to 8 as tested, and volatile: the memory may change.
                let word = unsafe { source.cast::<u64>().add(index).read_volatile() };
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            return;
        }
        for (index, byte) in out.iter_mut().enumerate() {
            // SAFETY: in bounds, and volatile: the memory may change.
            *byte = unsafe { source.add(index).read_volatile() };
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If the range is not inside the mapping.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: in bounds as checked.
        let target = unsafe { self.base.as_ptr().add(offset) };
        if (target as usize).is_multiple_of(8) && bytes.len().is_multiple_of(8) {
            for (index, chunk) in bytes.chunks_exact(8).enumerate() {
                let mut word = [0; 8];
                word.copy_from_slice(chunk);
                // SAFETY: in bounds, aligned to 8 as tested, and volatile: others may look.
                unsafe { target.cast::<u64>().add(index).write_volatile(u64::from_ne_bytes(word)) };
            }
            return;
        }
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: in bounds, and volatile: others may look.
            unsafe { target.add(index).write_volatile(*byte) };
        }
    }

    fn check(&self, offset: usize, length: usize) {
        assert!(
            offset.checked_add(length).is_some_and(|end| end <= self.length),
            "access at {offset:#x}, {length} bytes, outside of a mapping of {:#x}",
            self.length
        );
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        // A failure would leak address space and nothing else.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
