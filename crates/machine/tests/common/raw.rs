//! The calls of the test client that the compiler cannot check: memory at fixed addresses, descriptors by number,
//! and a signal to a child.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The inode of the socket with this number, or 0.
pub fn socket_inode(number: i32) -> u64 {
    // SAFETY: borrowed for the one call; a wrong number is an error.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    usgx_sys::process::socket_id(fd).map_or(0, |id| id.inode)
}

/// Maps a view where its enclave is.
pub fn map_view(base: u64, size: u64, view: &impl AsRawFd) {
    // SAFETY: a range that only this enclave uses.
    let address = unsafe {
        libc::mmap(
            base as *mut _,
            size as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            view.as_raw_fd(),
            0,
        )
    };
    assert_eq!(address as u64, base, "mmap: {}", io::Error::last_os_error());
}

/// Unmaps what [`map_view`] has mapped.
pub fn unmap_view(base: u64, size: u64) {
    // SAFETY: the mapping is the caller's enclave's, and nobody has references into it.
    unsafe { libc::munmap(base as *mut _, size as usize) };
}

/// Moves a page between a view and the start of a file; false if the page is not there.
pub fn move_page(file: &impl AsRawFd, addr: u64, into_view: bool) -> bool {
    // SAFETY: the kernel reads or writes a page of a view that this thread has mapped; nobody has references into
    // it.
    let moved = unsafe {
        if into_view {
            libc::pread(file.as_raw_fd(), addr as *mut _, 4096, 0)
        } else {
            libc::pwrite(file.as_raw_fd(), addr as *const _, 4096, 0)
        }
    };
    moved == 4096
}

/// Lets a descriptor pass on to the programs that are started from here.
pub fn inherit(fd: &OwnedFd) {
    // SAFETY: a flag of a descriptor that is ours; the test is the only one to care.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }, 0);
}

/// Takes an inherited descriptor; each number once.
pub fn take_inherited(number: i32) -> OwnedFd {
    // SAFETY: inherited for this child, and taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Sends a signal to a child.
pub fn signal(child: &std::process::Child, number: i32) {
    // SAFETY: a signal to our own child, which has not been waited for.
    unsafe { libc::kill(child.id() as i32, number) };
}
