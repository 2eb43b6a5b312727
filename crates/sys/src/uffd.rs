//! Userfaultfd, the hand that reaches into a client's page tables.
//!
//! The machine uses the descriptors that clients send ([`Userfaultfd::received`]); the calls that create and
//! register one are for clients written in Rust, that is, for tests. Raw ioctls: the `userfaultfd` crate
//! generates its bindings with libclang, which few machines have.
#![expect(unsafe_code, reason = "raw ioctls that read and write this process's memory")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

const UFFDIO_API: libc::Ioctl = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::Ioctl = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::Ioctl = 0x8010_aa01;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03;
const UFFDIO_WRITEPROTECT: libc::Ioctl = 0xc018_aa06;

const API: u64 = 0xaa;
const USER_MODE_ONLY: libc::c_int = 1;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_SIGBUS: u64 = 1 << 7;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;

const REGISTER_MODE_MISSING: u64 = 1 << 0;
const REGISTER_MODE_WP: u64 = 1 << 1;
const COPY_MODE_DONTWAKE: u64 = 1 << 0;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    length: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    target: u64,
    source: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

/// A userfaultfd: this process's own or, in the machine, a client's.
#[derive(Debug)]
pub struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Takes a descriptor that somebody claims to be a userfaultfd.
    ///
    /// # Errors
    /// [`Errno::INVAL`] if it is something else.
    pub fn received(fd: OwnedFd) -> Result<Self, Errno> {
        let name = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        if name.as_bytes() == b"anon_inode:[userfaultfd]" { Ok(Self(fd)) } else { Err(Errno::INVAL) }
    }

    /// Makes one as the runtime does: user-mode faults only, reported as `SIGBUS`, with write protection.
    ///
    /// # Errors
    /// Whatever the calls say; [`Errno::NOSYS`] or [`Errno::PERM`] where the kernel does not offer it.
    pub fn create() -> Result<Self, Errno> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe {
            libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY)
        };
        let fd = i32::try_from(fd).map_err(|_| Errno::INVAL)?;
        if fd < 0 {
            return Err(last_error());
        }
        // SAFETY: a fresh descriptor that nobody else has.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let features =
            FEATURE_SIGBUS | FEATURE_PAGEFAULT_FLAG_WP | FEATURE_MISSING_SHMEM | FEATURE_WP_HUGETLBFS_SHMEM;
        let mut api = Api { api: API, features, ioctls: 0 };
        // SAFETY: `Api` is what this ioctl reads and writes.
        unsafe { uffd.ioctl(UFFDIO_API, &mut api)? };
        Ok(uffd)
    }

    /// Registers a range of this process's memory for missing pages and write protection.
    ///
    /// # Errors
    /// Whatever the ioctl says.
    pub fn register(&self, start: u64, length: u64) -> Result<(), Errno> {
        let mode = REGISTER_MODE_MISSING | REGISTER_MODE_WP;
        let mut register = Register { range: Range { start, length }, mode, ioctls: 0 };
        // SAFETY: `Register` is what this ioctl reads and writes.
        unsafe { self.ioctl(UFFDIO_REGISTER, &mut register) }
    }

    /// Undoes [`register`](Self::register).
    ///
    /// # Errors
    /// Whatever the ioctl says.
    pub fn unregister(&self, start: u64, length: u64) -> Result<(), Errno> {
        let mut range = Range { start, length };
        // SAFETY: `Range` is what this ioctl reads.
        unsafe { self.ioctl(UFFDIO_UNREGISTER, &mut range) }
    }

    /// Puts a page with these bytes at `target`, an address of the process that owns the descriptor.
    ///
    /// # Errors
    /// [`Errno::EXIST`] if there is a page; [`Errno::NOENT`] if nothing is registered there;
    /// [`Errno::SRCH`] if the process is gone; whatever else the ioctl says.
    pub fn copy_page(&self, target: u64, bytes: &[u8; 4096]) -> Result<(), Errno> {
        loop {
            let mut copy = Copy {
                target,
                source: bytes.as_ptr() as u64,
                length: 4096,
                mode: COPY_MODE_DONTWAKE,
                copied: 0,
            };
            // SAFETY: `Copy` is what this ioctl reads and writes; it reads 4096 bytes at `source`, which are
            // borrowed, and writes into a range that was registered with this descriptor. In a process of
            // ours that is memory for which nobody holds a reference: shared, or not yet touched.
            match unsafe { self.ioctl(UFFDIO_COPY, &mut copy) } {
                // The owner changes its mappings at the moment.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Sets or clears write protection for a range of the process that owns the descriptor.
    ///
    /// # Errors
    /// [`Errno::NOENT`] if part of the range is not registered; [`Errno::SRCH`] if the process is gone;
    /// whatever else the ioctl says.
    pub fn write_protect(&self, start: u64, length: u64, protect: bool) -> Result<(), Errno> {
        // DONTWAKE is legal only when protection is taken off.
        let mode = if protect { WRITEPROTECT_MODE_WP } else { WRITEPROTECT_MODE_DONTWAKE };
        loop {
            let mut request = WriteProtect { range: Range { start, length }, mode };
            // SAFETY: `WriteProtect` is what this ioctl reads; it changes page tables, not contents.
            match unsafe { self.ioctl(UFFDIO_WRITEPROTECT, &mut request) } {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Makes an ioctl.
    ///
    /// # Safety
    /// `argument` is of the type that `command` reads and writes, and what `command` does with the memory
    /// that it names is allowed.
    unsafe fn ioctl<T>(&self, command: libc::Ioctl, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: by this function's contract.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command, std::ptr::from_mut(argument)) };
        if result < 0 { Err(last_error()) } else { Ok(()) }
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_descriptors_are_refused() {
        let file: OwnedFd = std::fs::File::open("/dev/null").expect("exists").into();
        assert_eq!(Userfaultfd::received(file).map(|_| ()), Err(Errno::INVAL));
    }
}
