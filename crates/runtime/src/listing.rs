//! Directories that show the device files: `/dev`, whose listings get three more entries, and `/dev/sgx`, the older
//! place, which is there only for programs of a run.
//!
//! What looks like `/dev/sgx` is another directory, which every system has and hardly anybody lists: so its descriptors
//! are the kernel's, with the identity that `stat` tells. They are known by a flag that means nothing for directories
//! and stays with the open file, whatever way the descriptor goes. Which paths are meant, [`devices`] decides.

use core::ffi::CStr;

use crate::arch::syscall::{errno, nr, on_behalf};
use crate::devices::{AT_FDCWD, inode};
use crate::{sys, usercopy};

/// The directory behind `/dev/sgx`.
const STAND_IN: &CStr = c"/proc/driver";
/// The flag by which descriptors of it that are meant as `/dev/sgx` are known: `O_APPEND`.
const MARK: u64 = 0o2000;

const DT_CHR: u8 = 2;
const DT_DIR: u8 = 4;

/// An entry: name, type, inode number.
type Entry = (&'static [u8], u8, u64);
/// What a listing of `/dev` gets in front.
const IN_DEV: [Entry; 3] = [
    (b"sgx_enclave", DT_CHR, inode(125) as u64),
    (b"sgx_provision", DT_CHR, inode(126) as u64),
    (b"sgx", DT_DIR, inode(0) as u64),
];
/// What is in `/dev/sgx`.
const IN_OLDER: [Entry; 4] = [
    (b".", DT_DIR, inode(0) as u64),
    (b"..", DT_DIR, 1),
    (b"enclave", DT_CHR, inode(125) as u64),
    (b"provision", DT_CHR, inode(126) as u64),
];

/// `struct linux_dirent64`s, one after the other.
struct Dirents {
    bytes: [u8; 128],
    len: usize,
}

/// Bytes in front of an entry's name.
const HEAD: usize = 19;

impl Dirents {
    const fn new() -> Self {
        Self { bytes: [0; 128], len: 0 }
    }

    /// Appends an entry, which the one at `next` follows, if the whole stays within `limit` bytes.
    fn push(&mut self, (name, kind, ino): Entry, next: u64, limit: usize) -> bool {
        let size = (HEAD + name.len() + 1).next_multiple_of(8);
        if self.len + size > limit.min(self.bytes.len()) {
            return false;
        }
        let entry = &mut self.bytes[self.len..self.len + size];
        entry[..8].copy_from_slice(&ino.to_le_bytes());
        entry[8..16].copy_from_slice(&next.to_le_bytes());
        entry[16..18].copy_from_slice(&(size as u16).to_le_bytes());
        entry[18] = kind;
        entry[HEAD..HEAD + name.len()].copy_from_slice(name);
        self.len += size;
        true
    }

    fn put(&self, buffer: u64) -> bool {
        // SAFETY: `len` bytes are there; `buffer` is an address of the program.
        (unsafe { usercopy::copy_out(buffer, self.bytes.as_ptr(), self.len) }) == self.len
    }
}

/// `getdents64`.
pub fn getdents(args: [u64; 6]) -> i64 {
    let [fd, buffer, len, ..] = args;
    if is_older_directory(fd as i32) {
        return list_older(fd, buffer, len as usize);
    }
    let mut ours = Dirents::new();
    let room = IN_DEV.into_iter().all(|entry| ours.push(entry, 0, usize::MAX));
    let extra = ours.len as u64;
    if !room || len < 4 * extra || !is_fresh_dev(fd) {
        // SAFETY: the program's own call.
        return unsafe { on_behalf(nr::GETDENTS64, args) };
    }
    // The first call on `/dev` finds our entries before the kernel's.
    // SAFETY: the program's own call, behind the place for our entries.
    let result = unsafe { sys!(nr::GETDENTS64, fd, buffer + extra, len - extra) };
    match result {
        ..0 => result,
        _ if ours.put(buffer) => result + extra as i64,
        _ => -errno::EFAULT,
    }
}

const SEEK_SET: u64 = 0;
const SEEK_CUR: u64 = 1;

/// A listing of `/dev/sgx`, from the file's position on.
fn list_older(fd: u64, buffer: u64, len: usize) -> i64 {
    // SAFETY: a call without memory.
    let at = unsafe { sys!(nr::LSEEK, fd, 0, SEEK_CUR) };
    let mut next = at.max(0) as usize;
    let mut entries = Dirents::new();
    let rest = IN_OLDER.into_iter().skip(next);
    for entry in rest {
        if !entries.push(entry, next as u64 + 1, len) {
            break;
        }
        next += 1;
    }
    if entries.len == 0 && next < IN_OLDER.len() {
        return -errno::EINVAL;
    }
    if !entries.put(buffer) {
        return -errno::EFAULT;
    }
    // SAFETY: a call without memory.
    unsafe { sys!(nr::LSEEK, fd, next, SEEK_SET) };
    entries.len as i64
}

/// Opens `/dev/sgx`.
pub fn open_older_directory(flags: u64) -> i64 {
    // SAFETY: the kernel reads the name, which ends with a zero.
    unsafe { sys!(nr::OPENAT, AT_FDCWD, STAND_IN.as_ptr(), flags | MARK, 0) }
}

/// Makes a call of the stat or access family about `/dev/sgx`.
pub fn ask_about_older_directory(number: u64, mut args: [u64; 6]) -> i64 {
    let path = usize::from(!matches!(number, nr::STAT | nr::LSTAT | nr::ACCESS));
    args[path] = STAND_IN.as_ptr() as u64;
    // SAFETY: the program's own call, about another path.
    unsafe { on_behalf(number, args) }
}

/// Whether a descriptor is one of `/dev/sgx`.
pub fn is_older_directory(fd: i32) -> bool {
    const F_GETFL: u64 = 3;
    // SAFETY: a call without memory.
    let flags = unsafe { sys!(nr::FCNTL, fd, F_GETFL) };
    flags >= 0 && flags as u64 & MARK != 0 && is_at(fd as u64, STAND_IN)
}

/// Whether `fd` is `/dev`, not read yet.
fn is_fresh_dev(fd: u64) -> bool {
    // SAFETY: a call without memory.
    let at = unsafe { sys!(nr::LSEEK, fd, 0, SEEK_CUR) };
    at == 0 && is_at(fd, c"/dev")
}

/// Whether a descriptor is one of the file at a path.
fn is_at(fd: u64, path: &CStr) -> bool {
    let (mut open, mut named) = ([0u64; 18], [0u64; 18]);
    // SAFETY: the kernel reads the name, and writes two `struct stat`.
    unsafe {
        sys!(nr::STAT, path.as_ptr(), named.as_mut_ptr()) == 0
            && sys!(nr::FSTAT, fd, open.as_mut_ptr()) == 0
            && open[..2] == named[..2]
    }
}
