//! What a process needs to leave a quiet companion behind: forking off, letting go of everything inherited,
//! reserved descriptor numbers, and a socket on which every message says who sent it.
//!
//! The order matters and is the caller's: [`Inherited::now`] first thing in `main`, [`fork_detached`] before
//! any thread exists, [`settle`] in the new process.

use std::ffi::CString;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
};
use rustix::thread::CapabilitySet;

/// Descriptors that this process had when it began, and that no code of ours owns.
#[derive(Debug)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Lists the open descriptors from 3 on. To be called before anything is opened.
    #[must_use]
    pub fn now() -> Self {
        let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Self(Vec::new()) };
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let listed: Vec<RawFd> = numbers.filter(|&fd| fd > 2).collect();
        // The listing saw its own descriptor, which is closed by now.
        Self(listed.into_iter().filter(|&fd| is_open(fd)).collect())
    }
}

/// Whether this process may trace others whatever the kernel keeps from their user.
#[must_use]
pub fn traces_all() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE))
}

/// Tells whether a descriptor number is in use.
#[must_use]
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: `F_GETFD` reads a flag; any number may be asked about.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Which process [`fork_detached`] has returned in.
#[derive(Debug)]
pub enum Role {
    /// The caller's own process, unchanged and without a new child.
    Original,
    /// The new process: no relation of the original's, in a session of its own.
    Companion,
}

/// Forks twice, so that the new process is nobody's child and the original has no child that it does not
/// know of.
///
/// # Errors
///
/// `EBUSY` if the process has more than one thread; the errno of `fork`, `setsid`.
pub fn fork_detached() -> io::Result<Role> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: There is one thread, so the child's copy of every lock is in a state that it can go on from.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: As above.
            match unsafe { libc::fork() } {
                0 => {
                    rustix::process::setsid()?;
                    Ok(Role::Companion)
                }
                // SAFETY: `_exit` ends the middle process without running anything of the original's.
                other => unsafe { libc::_exit(i32::from(other == -1)) },
            }
        }
        child => {
            let mut status = 0;
            loop {
                // SAFETY: The kernel writes one `int` to `status`.
                let who = unsafe { libc::waitpid(child, &raw mut status, 0) };
                if who == child {
                    break;
                }
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::EINTR) {
                    return Err(error);
                }
            }
            if status == 0 { Ok(Role::Original) } else { Err(io::Error::from_raw_os_error(libc::EAGAIN)) }
        }
    }
}

/// Signals of terminals and pipes, which a companion survives.
const IGNORED: [i32; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Lets go of all that a companion has inherited: the descriptors in `inherited`, standard input and output,
/// standard error unless `keep_stderr`, the working directory, and the signals of the terminal.
///
/// # Errors
///
/// The errno of the step that failed.
pub fn settle(inherited: Inherited, keep_stderr: bool) -> io::Result<()> {
    for fd in inherited.0 {
        // SAFETY: By what `Inherited` is, nothing in this process owns the descriptor.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    if !keep_stderr {
        rustix::stdio::dup2_stderr(&null)?;
    }
    std::env::set_current_dir("/")?;
    for signal in IGNORED {
        // SAFETY: Setting a disposition to "ignore" installs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    Ok(())
}

/// Names the calling thread, as `ps` shows it; 15 bytes count.
pub fn name_thread(name: &std::ffi::CStr) {
    // The kernel refuses no name.
    let _ = rustix::thread::set_name(name);
}

/// Becomes another program: replaces this process's image. Returns only the error.
///
/// # Errors
///
/// The errno of `execve`.
pub fn execute(file: &Path, arguments: &[CString]) -> io::Error {
    use std::os::unix::ffi::OsStrExt as _;
    let Ok(file) = CString::new(file.as_os_str().as_bytes()) else {
        return io::Error::from_raw_os_error(libc::ENOENT);
    };
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: `file` and all of `pointers` are zero-terminated strings that live until the call returns, and
    // `pointers` ends with a null.
    unsafe { libc::execv(file.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Ignores `SIGTERM`, for a process that must outlive others that are sent it at the same time: an init that
/// ends a whole session lets them finish first.
pub fn outlast_termination() {
    // SAFETY: Setting a disposition to "ignore" installs no code.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}

/// Gives `SIGPIPE` its default action back, which the Rust start-up code takes away: for a process that is
/// about to become another program.
pub fn restore_sigpipe() {
    // SAFETY: Setting a disposition to its default installs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Lets `pid` trace the caller where Yama would not (`PR_SET_PTRACER`). Kernels without Yama refuse, which is
/// no harm.
pub fn allow_tracer(pid: u32) {
    // SAFETY: The call changes a permission, no memory.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::c_ulong::from(pid), 0, 0, 0) };
}

/// Puts `fd` on a descriptor number of the caller's choice, to be inherited by programs; nobody owns it from
/// now on.
///
/// # Errors
///
/// `EEXIST` if the number is in use; the errno of `fcntl`.
pub fn place(fd: OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: `F_DUPFD` takes a fresh number and touches no descriptor that anybody owns.
    let got = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, number) };
    if got == -1 {
        return Err(io::Error::last_os_error());
    }
    if got != number {
        // SAFETY: `got` was created just now and is ours alone.
        drop(unsafe { OwnedFd::from_raw_fd(got) });
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    Ok(())
}

/// Takes a descriptor by its number, as named on the command line by a process that made it for us.
///
/// # Errors
///
/// `EBADF` if it is not open, or is not among the inherited ones.
pub fn take_inherited(inherited: &mut Inherited, number: RawFd) -> io::Result<OwnedFd> {
    let index = inherited.0.iter().position(|&fd| fd == number);
    let index = index.ok_or(io::Error::from_raw_os_error(libc::EBADF))?;
    let number = inherited.0.swap_remove(index);
    // SAFETY: It was inherited, so nothing in this process owned it, and it is on the list no longer.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// A copy of a descriptor that programs started from now on inherit, for as long as this value lives.
#[derive(Debug)]
pub struct Bequest(OwnedFd);

impl Bequest {
    /// Takes a descriptor.
    ///
    /// # Errors
    ///
    /// The errno of `fcntl`.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
        Ok(Self(fd))
    }

    /// The number under which programs find it.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Copies a descriptor of another process, which the caller must be allowed to trace.
///
/// # Errors
///
/// The errno of `pidfd_open` or `pidfd_getfd`.
pub fn descriptor_of(pid: i32, number: RawFd) -> io::Result<OwnedFd> {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let pid = Pid::from_raw(pid).ok_or(io::Error::from_raw_os_error(libc::ESRCH))?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?)
}

/// The soft limit on descriptor numbers.
#[must_use]
pub fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A pair of connected `SOCK_SEQPACKET` sockets, closed by `execve`.
///
/// # Errors
///
/// The errno of `socketpair`.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Connects to a `SOCK_SEQPACKET` socket in the file system.
///
/// # Errors
///
/// The errno of `socket` or `connect`; `ENAMETOOLONG` for a path that does not fit.
pub fn connect_seqpacket(path: &Path) -> io::Result<OwnedFd> {
    let address = rustix::net::SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// One message from a socket that reports its senders.
#[derive(Debug)]
pub struct Letter {
    /// How many bytes of the caller's buffer it fills.
    pub length: usize,
    /// The sending process, in this process's numbering; the kernel vouches for it.
    pub sender: Option<i32>,
    /// The first descriptor that came along; any others are closed.
    pub descriptor: Option<OwnedFd>,
}

/// Makes the kernel say who sent each message that arrives on `socket`.
///
/// # Errors
///
/// The errno of `setsockopt`.
pub fn report_senders(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(socket, true)?)
}

/// Takes one message, without waiting; `None` when there is none just now. A `length` of 0 is the hang-up.
///
/// # Errors
///
/// The errno of `recvmsg`.
pub fn receive_letter(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Letter>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = loop {
        let mut slices = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(socket, &mut slices, &mut ancillary, flags) {
            Ok(message) => break message,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    let (mut sender, mut descriptor) = (None, None);
    for item in ancillary.drain() {
        match item {
            RecvAncillaryMessage::ScmRights(rights) => {
                for fd in rights {
                    descriptor.get_or_insert(fd);
                }
            }
            RecvAncillaryMessage::ScmCredentials(credentials) => {
                sender = Some(credentials.pid.as_raw_nonzero().get());
            }
            _ => {}
        }
    }
    Ok(Some(Letter { length: message.bytes, sender, descriptor }))
}

/// Sends one short message without waiting and without `SIGPIPE`.
///
/// # Errors
///
/// The errno of `send`.
pub fn send_short(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Reports of traced threads, as something to wait for along with sockets.
#[derive(Debug)]
pub struct ChildNotices(OwnedFd);

impl ChildNotices {
    /// Blocks `SIGCHLD` in the calling thread, and so in every thread that it makes, and opens a descriptor that
    /// becomes readable instead. To be called before the first thread is made.
    ///
    /// # Errors
    ///
    /// The errno of `signalfd`.
    pub fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: `sigemptyset` initialises the set that `set` has room for.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: The set has been initialised.
        let mut set = unsafe { set.assume_init() };
        // SAFETY: A valid set and a valid signal number.
        unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
        // SAFETY: The kernel reads `set`; no old mask is asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        // SAFETY: The kernel reads `set` and makes a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was created just now and is ours alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes all notices that have come; what they were about is asked with [`crate::ptrace::poll`].
    pub fn clear(&self) {
        let mut notice = [0u8; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.0, &mut notice).is_ok_and(|length| length > 0) {}
    }
}

impl AsFd for ChildNotices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the descriptors is readable or hung up, or until `timeout_ms` has passed; says which
/// are. A signal counts as the time-out.
///
/// # Errors
///
/// The errno of `poll`.
pub fn wait_readable<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    timeout_ms: Option<u32>,
) -> io::Result<[bool; N]> {
    let mut entries = descriptors.map(|fd| libc::pollfd {
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    let timeout = timeout_ms.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX));
    // SAFETY: The kernel reads and writes the `N` entries of the array; negative descriptors are skipped.
    if unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, timeout) } == -1 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
        return Ok([false; N]);
    }
    Ok(entries.map(|entry| entry.revents != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_say_who_sent_them() {
        let (ours, theirs) = seqpacket_pair().expect("socket pairs can be made");
        report_senders(ours.as_fd()).expect("senders are reported");
        let mut buffer = [0; 16];
        assert!(receive_letter(ours.as_fd(), &mut buffer).expect("nothing is no error").is_none());
        send_short(theirs.as_fd(), b"hello").expect("there is room");
        let letter = receive_letter(ours.as_fd(), &mut buffer).expect("it can be read").expect("it is there");
        assert_eq!(&buffer[..letter.length], b"hello");
        assert_eq!(letter.sender, i32::try_from(std::process::id()).ok());
        drop(theirs);
        let end =
            receive_letter(ours.as_fd(), &mut buffer).expect("a hang-up is no error").expect("it is told");
        assert_eq!(end.length, 0);
    }

    #[test]
    fn waiting_ends_with_what_is_ready() {
        let (ours, theirs) = seqpacket_pair().expect("socket pairs can be made");
        let ready = wait_readable([Some(ours.as_fd()), None], Some(0)).expect("poll works");
        assert_eq!(ready, [false, false]);
        send_short(theirs.as_fd(), b"x").expect("there is room");
        let ready = wait_readable([Some(ours.as_fd()), None], None).expect("poll works");
        assert_eq!(ready, [true, false]);
    }
}
