//! `SOCK_SEQPACKET` sockets: one message, one call, with descriptors.
//!
//! Every send and receive is made with `MSG_DONTWAIT`: whoever shares the socket's file description could
//! clear `O_NONBLOCK` on it, and the machine's event loop must never wait for a client.
#![expect(unsafe_code, reason = "getsockopt for credentials, whose process ID may be 0")]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

/// Most descriptors in one message, either way.
pub const MAX_FDS: usize = 4;

/// Who is at the other end of a socket, as the kernel knows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Credentials {
    /// Process ID, or 0 if the process is not visible from here.
    pub pid: u32,
    /// Effective user ID.
    pub uid: u32,
    /// Effective group ID.
    pub gid: u32,
}

/// A received message.
#[derive(Debug)]
pub struct Received {
    /// Bytes of the message; 0 at the end of the stream.
    pub length: usize,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Whether bytes or descriptors did not fit and are lost.
    pub truncated: bool,
}

/// Makes a connected pair, close-on-exec.
///
/// # Errors
/// Whatever `socketpair` says.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Makes a connected pair of byte streams, close-on-exec: for kicks, where messages mean nothing.
///
/// # Errors
/// Whatever `socketpair` says.
pub fn stream_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// Binds and listens at `path`.
///
/// # Errors
/// [`Errno::ADDRINUSE`] if something is at `path`; otherwise whatever the calls say.
pub fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// Connects to the listener at `path`.
///
/// # Errors
/// Whatever the calls say.
pub fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Takes the next connection of a listener, if there is one.
///
/// # Errors
/// [`Errno::AGAIN`] if there is none; otherwise whatever `accept` says.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd, Errno> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

/// Whether `fd` is a Unix socket of type `SOCK_SEQPACKET`.
pub fn is_seqpacket(fd: impl AsFd) -> bool {
    sockopt::socket_type(&fd) == Ok(SocketType::SEQPACKET)
        && sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
}

/// Whoever connected the socket, or made the pair.
///
/// # Errors
/// Whatever `getsockopt` says.
pub fn peer(fd: impl AsFd) -> Result<Credentials, Errno> {
    // rustix's own type has no room for the process ID 0 of a process in a foreign PID namespace.
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: `credentials` has room for `length` bytes, and any bytes are a valid `ucred`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(Credentials {
        pid: u32::try_from(credentials.pid).unwrap_or(0),
        uid: credentials.uid,
        gid: credentials.gid,
    })
}

/// Asks for room for at least `bytes` bytes of messages under way; best effort.
pub fn set_send_buffer(fd: impl AsFd, bytes: usize) {
    let _ = sockopt::set_socket_send_buffer_size(fd, bytes);
}

/// Sends one message, without waiting.
///
/// # Errors
/// [`Errno::AGAIN`] if the other side does not read; [`Errno::INVAL`] for too many descriptors; whatever
/// else `sendmsg` says.
pub fn send(fd: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    if fds.len() > MAX_FDS {
        return Err(Errno::INVAL);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent =
        rustix::io::retry_on_intr(|| rustix::net::sendmsg(&fd, &[IoSlice::new(bytes)], &mut control, flags))?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}

/// Sends one byte to a stream, without waiting; a full stream is as good as a sent byte for a kick.
pub fn send_byte(fd: impl AsFd) {
    let _ = rustix::net::send(fd, b"k", SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// Receives one message, without waiting.
///
/// # Errors
/// [`Errno::AGAIN`] if there is none; otherwise whatever `recvmsg` says.
pub fn receive(fd: impl AsFd, out: &mut [u8]) -> Result<Received, Errno> {
    receive_with(fd, out, RecvFlags::DONTWAIT)
}

/// Receives one message, and waits for it: for clients of the machine.
///
/// # Errors
/// Whatever `recvmsg` says.
pub fn receive_waiting(fd: impl AsFd, out: &mut [u8]) -> Result<Received, Errno> {
    receive_with(fd, out, RecvFlags::empty())
}

fn receive_with(fd: impl AsFd, out: &mut [u8], flags: RecvFlags) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let message = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&fd, &mut [IoSliceMut::new(out)], &mut control, flags)
    })?;
    let mut fds = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = item {
            fds.extend(received);
        }
    }
    let truncated = message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Received { length: message.bytes, fds, truncated })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_bounds_and_carry_descriptors() {
        let (left, right) = pair().expect("sockets");
        let file = std::fs::File::open("/dev/null").expect("exists");
        send(&left, b"one", &[file.as_fd()]).expect("room");
        send(&left, b"two", &[]).expect("room");
        let mut buffer = [0; 16];
        let first = receive(&right, &mut buffer).expect("a message");
        assert_eq!((first.length, first.fds.len(), first.truncated), (3, 1, false));
        let second = receive(&right, &mut buffer).expect("a message");
        assert_eq!((second.length, second.fds.len()), (3, 0));
        assert_eq!(receive(&right, &mut buffer).map(|m| m.length), Err(Errno::AGAIN));
        drop(left);
        assert_eq!(receive(&right, &mut buffer).map(|m| m.length), Ok(0));
    }

    #[test]
    fn a_pair_knows_its_maker() {
        let (left, _right) = pair().expect("sockets");
        assert!(is_seqpacket(&left));
        assert_eq!(peer(&left).expect("credentials").pid, std::process::id());
    }
}
