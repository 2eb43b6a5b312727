//! The machine's own process, and the identity of descriptors.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

/// What tells one open socket from another, whatever dup, fork or `SCM_RIGHTS` did with its descriptor.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SocketId {
    device: u64,
    /// The inode number, as `/proc/PID/fd` shows it.
    pub inode: u64,
}

/// The identity of the socket behind `fd`, or `None` if it is no socket.
pub fn socket_id(fd: impl AsFd) -> Option<SocketId> {
    let stat = rustix::fs::fstat(fd).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
        .then_some(SocketId { device: stat.st_dev, inode: stat.st_ino })
}

/// Raises the number of descriptors that this process may have as far as it is allowed to.
pub fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: limit.maximum, maximum: limit.maximum },
    );
}

/// The effective user ID of this process.
#[must_use]
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The number of the processor that the calling thread runs on, which it may leave at any time.
#[must_use]
pub fn processor() -> usize {
    rustix::thread::sched_getcpu()
}

/// Bytes of memory that the host has.
#[must_use]
pub fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}

/// Sets the permissions of a file by its path.
///
/// # Errors
/// Whatever `chmod` says.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmodat(rustix::fs::CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Opens a file without a name in a directory: it goes away with its last descriptor.
///
/// # Errors
/// Whatever `open` says; [`Errno::OPNOTSUPP`] where the file system has no such files.
pub fn open_unnamed(directory: &Path) -> Result<std::fs::File, Errno> {
    rustix::fs::open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
        .map(std::fs::File::from)
}

/// Reserves disk space for a range of a file, growing it if need be.
///
/// # Errors
/// [`Errno::NOSPC`] when the disk is full; whatever else `fallocate` says.
pub fn reserve_space(file: impl AsFd, offset: u64, length: u64) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), offset, length)
    })
}

/// Frees the disk space of a range of a file; best effort.
pub fn free_space(file: impl AsFd, offset: u64, length: u64) {
    let mode = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    let _ = rustix::fs::fallocate(file, mode, offset, length);
}

/// The next bytes of the kernel's random number generator.
///
/// # Panics
/// If the kernel has none to give, which it has since it has booted.
pub fn random(out: &mut [u8]) {
    let mut filled = 0;
    while filled < out.len() {
        let (_, rest) = out.split_at_mut(filled);
        filled += rustix::io::retry_on_intr(|| {
            rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty())
        })
        .expect("getrandom fails only for bad flags or addresses");
    }
}
