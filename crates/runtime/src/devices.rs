//! The device files: opening them, what their paths look like, and their ioctls.
//!
//! A device descriptor is one end of a socket pair whose other end the machine holds. It is known by the socket's
//! inode number, so descriptors that were inherited or came through another socket are found like those that were
//! opened here: a socket that is not known yet is shown to the machine once.
//!
//! Where the device nodes cannot be real files in the program's mount namespace, the path calls are answered
//! here; the directories that show them are [`listing`]'s.

use usgx_wire::channel::{Request, device, op};
use usgx_wire::slot::{NR_WORDS, call};

use crate::arch::close;
use crate::arch::syscall::{errno, nr};
use crate::enclaves::{self, CHANGES, Enclave};
use crate::process::reserve;
use crate::syscalls::memory;
use crate::thread::Thread;
use crate::{filter, link, listing, procfs, sys, usercopy};

/// A path that usgx answers for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Enclave,
    Provision,
    /// `/dev/sgx`.
    Directory,
}

const NODES: [(&[u8], Node); 5] = [
    (b"/dev/sgx_enclave", Node::Enclave),
    (b"/dev/sgx_provision", Node::Provision),
    (b"/dev/sgx/enclave", Node::Enclave),
    (b"/dev/sgx/provision", Node::Provision),
    (OLDER, Node::Directory),
];

/// Where the devices were before they got their names.
const OLDER: &[u8] = b"/dev/sgx";

pub const AT_FDCWD: i32 = -100;
const MAX_PATH: usize = 64;

/// Which of our nodes the path names, if any.
fn node(dirfd: i32, path: u64) -> Option<Node> {
    let mut given = [0u8; MAX_PATH];
    // SAFETY: the buffer is as long.
    let read = unsafe { usercopy::copy_in(given.as_mut_ptr(), path, MAX_PATH) };
    let len = given[..read].iter().position(|byte| *byte == 0)?;
    let given = &given[..len];
    // Nearly all paths end here.
    let mut last = given.rsplit(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    if !matches!(last.next(), Some(b"sgx_enclave" | b"sgx_provision" | b"enclave" | b"provision" | b"sgx")) {
        return None;
    }
    let mut clean = Clean { bytes: [0; 2 * MAX_PATH], len: 0 };
    if given[0] != b'/' {
        let mut directory = [0u8; MAX_PATH];
        let len = directory_path(dirfd, &mut directory)?;
        clean.append(&directory[..len])?;
    }
    clean.append(given)?;
    NODES.iter().find(|(path, _)| *path == clean.path()).map(|(_, node)| *node)
}

/// A path without doubled slashes and dots.
struct Clean {
    bytes: [u8; 2 * MAX_PATH],
    len: usize,
}

impl Clean {
    fn append(&mut self, path: &[u8]) -> Option<()> {
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
            if part == b".." {
                self.len = self.bytes[..self.len].iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                continue;
            }
            let end = self.len + 1 + part.len();
            self.bytes.get_mut(self.len..end)?[0] = b'/';
            self.bytes[self.len + 1..end].copy_from_slice(part);
            self.len = end;
        }
        Some(())
    }

    fn path(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The path of an open directory, or of the current one.
fn directory_path(dirfd: i32, into: &mut [u8; MAX_PATH]) -> Option<usize> {
    if dirfd == AT_FDCWD {
        // SAFETY: the kernel writes at most the buffer's length.
        let len = unsafe { sys!(nr::GETCWD, into.as_mut_ptr(), MAX_PATH) };
        return (len > 0).then(|| len as usize - 1);
    }
    if listing::is_older_directory(dirfd) {
        into[..OLDER.len()].copy_from_slice(OLDER);
        return Some(OLDER.len());
    }
    procfs::path_of(dirfd, into)
}

const O_ACCMODE: u64 = 3;
const O_CREAT: u64 = 0o100;
const O_EXCL: u64 = 0o200;
const O_DIRECTORY: u64 = 0o200000;
const O_CLOEXEC: u64 = 0o2000000;
const O_PATH: u64 = 0o10000000;

/// The open family; `None` if it is not about a device.
pub fn open(number: u64, args: [u64; 6]) -> Option<i64> {
    let (dirfd, path, flags) = match number {
        nr::OPEN => (AT_FDCWD, args[0], args[1]),
        nr::CREAT => (AT_FDCWD, args[0], O_CREAT | 1),
        nr::OPENAT => (args[0] as i32, args[1], args[2]),
        _ => (args[0] as i32, args[1], usercopy::get::<u64>(args[2])?),
    };
    let kind = match node(dirfd, path)? {
        Node::Enclave => device::ENCLAVE,
        Node::Provision => device::PROVISION,
        Node::Directory => return Some(listing::open_older_directory(flags)),
    };
    if flags & O_PATH != 0 {
        return None;
    }
    if flags & O_DIRECTORY != 0 {
        return Some(-errno::ENOTDIR);
    }
    if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL {
        return Some(-errno::EEXIST);
    }
    if kind == device::ENCLAVE
        && let Err(error) = filter::arm_memory()
    {
        return Some(-error);
    }
    let request = Request { op: op::OPEN, reserved: 0, args: [kind, flags & O_ACCMODE, 0, 0] };
    let (answer, [fd, _]) = link::channel_call(request, None, flags & O_CLOEXEC != 0);
    if answer.status < 0 {
        return Some(answer.status);
    }
    note_access(fd, flags & O_ACCMODE);
    Some(i64::from(fd))
}

const SOL_SOCKET: u64 = 1;
/// A property of the socket itself, so that it is the same whatever way a descriptor has gone; it means nothing
/// else on a socket of this kind.
const SO_PRIORITY: u64 = 12;

/// Notes how a device was opened.
fn note_access(fd: i32, access: u64) {
    let access = access as u32;
    // SAFETY: the kernel reads four bytes.
    unsafe { sys!(nr::SETSOCKOPT, fd, SOL_SOCKET, SO_PRIORITY, &raw const access, 4) };
}

/// The most that a mapping of the device may be (`PROT_*`); `None` if it was opened for writing only.
fn max_prot(fd: i32) -> Option<u32> {
    const READ_EXEC: u32 = 5;
    const ALL: u32 = 7;
    let (mut access, mut len) = (2u32, 4u32);
    // SAFETY: the kernel writes four bytes.
    unsafe { sys!(nr::GETSOCKOPT, fd, SOL_SOCKET, SO_PRIORITY, &raw mut access, &raw mut len) };
    match access {
        0 => Some(READ_EXEC),
        1 => None,
        _ => Some(ALL),
    }
}

/// The enclave whose device the descriptor is, if it is one. (On a descriptor of `/dev/sgx_provision` the kernel
/// itself gives the right answers: no ioctl, no mapping.)
pub fn of_fd(fd: i32) -> Option<&'static Enclave> {
    let ino = link::socket_inode(fd)?;
    if let Some(enclave) = enclaves::by_ino(ino) {
        return Some(enclave);
    }
    let _guard = CHANGES.lock();
    if let Some(enclave) = enclaves::by_ino(ino) {
        return Some(enclave);
    }
    let request = Request { op: op::ATTACH, reserved: 0, args: [0; 4] };
    let (answer, [view, window]) = link::channel_call(request, Some(fd), true);
    if answer.status < 0 || answer.values[0] == 0 {
        return None;
    }
    let (view, window) = (reserve(view), reserve(window));
    let enter = || enclaves::add_locked(answer.values[0], ino, view, window, max_prot(fd));
    let enclave = enter().or_else(|| {
        let unused = enclaves::all().find(|enclave| !enclaves::is_mapped(enclave))?;
        enclaves::remove_locked(unused);
        enter()
    });
    if enclave.is_none() {
        close(view);
        close(window);
    }
    enclave
}

/// `ioctl` with SGX's magic; `None` if the descriptor is not ours.
pub fn ioctl(thread: &mut Thread, args: [u64; 6]) -> Option<i64> {
    const CREATE: u64 = 0x4008_a400;
    let [fd, command, argument, ..] = args;
    let enclave = of_fd(fd as i32)?;
    let command = command & 0xffff_ffff;
    let mut words = [0; NR_WORDS];
    words[..4].copy_from_slice(&[call::IOCTL, enclave.handle(), command, argument]);
    let result = link::slot_call(thread, words)[1] as i64;
    if command == CREATE && result == 0 {
        memory::on_created(thread, enclave);
    }
    Some(result)
}

const S_IFCHR_0666: u32 = 0o020666;
const MISC_MAJOR: u32 = 10;

/// Minor number of a device.
fn minor(node: Node) -> u32 {
    if node == Node::Enclave { 125 } else { 126 }
}

/// The inode number of the device with this minor number.
pub const fn inode(minor: u32) -> u32 {
    1000 + minor
}

/// The stat family; `None` if it is not about one of our paths.
pub fn stat(number: u64, args: [u64; 6]) -> Option<i64> {
    let (dirfd, path, buffer) = match number {
        nr::STAT | nr::LSTAT => (AT_FDCWD, args[0], args[1]),
        nr::NEWFSTATAT => (args[0] as i32, args[1], args[2]),
        _ => (args[0] as i32, args[1], args[4]),
    };
    let node = node(dirfd, path)?;
    if node == Node::Directory {
        return Some(listing::ask_about_older_directory(number, args));
    }
    let minor = minor(node);
    let written = if number == nr::STATX {
        const BASIC_STATS: u32 = 0x7ff;
        let mut statx = [0u32; 64];
        statx[0] = BASIC_STATS;
        statx[1] = 4096;
        statx[4] = 1;
        statx[7] = S_IFCHR_0666;
        statx[8] = inode(minor);
        statx[32] = MISC_MAJOR;
        statx[33] = minor;
        usercopy::put(buffer, &statx)
    } else {
        let mut stat = [0u64; 18];
        stat[1] = u64::from(inode(minor));
        stat[2] = 1;
        stat[3] = u64::from(S_IFCHR_0666);
        stat[5] = u64::from(MISC_MAJOR << 8 | minor);
        stat[7] = 4096;
        usercopy::put(buffer, &stat)
    };
    Some(if written { 0 } else { -errno::EFAULT })
}

/// The access family; `None` if it is not about one of our paths.
pub fn access(number: u64, args: [u64; 6]) -> Option<i64> {
    const X_OK: u64 = 1;
    let (dirfd, path, wanted) =
        if number == nr::ACCESS { (AT_FDCWD, args[0], args[1]) } else { (args[0] as i32, args[1], args[2]) };
    if node(dirfd, path)? == Node::Directory {
        return Some(listing::ask_about_older_directory(number, args));
    }
    Some(if wanted & X_OK != 0 { -errno::EACCES } else { 0 })
}
