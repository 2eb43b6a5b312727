//! Messages on sockets: rare, and the only ones that carry file descriptors.
//!
//! All sockets are `SOCK_SEQPACKET`, so one message is one `sendmsg`. A request and its answer on a channel
//! are never interleaved with others: the runtime holds a lock across the pair.

/// First word of a [`Hello`].
pub const HELLO_MAGIC: u32 = u32::from_le_bytes(*b"usgx");

/// Sent once by every process image through the door, with one descriptor: the machine's end of the new
/// channel. The machine answers on that channel with a [`Welcome`] and the region's memfd.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Hello {
    /// [`HELLO_MAGIC`].
    pub magic: u32,
    /// [`crate::VERSION`].
    pub version: u32,
    /// The process ID, for people to read; the machine trusts the socket's credentials instead.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
    /// The ticket that the parent got before it forked ([`op::FORK`]), or zeros.
    pub ticket: [u64; 2],
}

/// The machine's answer to a [`Hello`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Welcome {
    /// 0, or a negative errno.
    pub status: i32,
    /// [`crate::VERSION`].
    pub version: u32,
}

/// A request on the channel. The answer is an [`Answer`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// One of [`op`].
    pub op: u32,
    /// Zero.
    pub reserved: u32,
    /// Arguments, by operation.
    pub args: [u64; 4],
}

/// The answer to a [`Request`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The result, or a negative errno.
    pub status: i64,
    /// Results, by operation.
    pub values: [u64; 4],
}

/// Operations on the channel.
pub mod op {
    /// Opens a device. `args[0]`: one of [`super::device`]; `args[1]`: the open flags (`O_ACCMODE` part).
    /// The answer carries the device's descriptor.
    pub const OPEN: u32 = 1;
    /// Names the enclave behind a device descriptor, which the request carries. The answer: `values[0]` the
    /// enclave's handle (never 0), valid in this process image and its forks, and two descriptors: the
    /// enclave's view and its window ([`crate::window`]). The view and the window get their sizes when the
    /// enclave is created.
    pub const ATTACH: u32 = 2;
    /// Gives a thread its slot. `args[0]`: the thread ID. The answer: `values[0]` the slot's index, and one
    /// descriptor: the thread's kick socket, on which the runtime sets `F_SETOWN_EX` to the thread,
    /// `F_SETSIG` to a signal that it owns, and `O_ASYNC | O_NONBLOCK`.
    pub const THREAD: u32 = 3;
    /// Gives a slot back. `args[0]`: its index. The thread must have no call under way.
    pub const THREAD_END: u32 = 4;
    /// Hands over the process's userfaultfd, which the request carries.
    pub const USERFAULTFD: u32 = 5;
    /// Makes a ticket for a child that is about to be forked: `values[0..2]`. The child's [`super::Hello`]
    /// gets this process's enclave handles. Mappings of views are registered anew by the child
    /// ([`crate::slot::call::REGISTER`]).
    pub const FORK: u32 = 6;
    /// Names another process that the machine serves, for [`crate::slot::call::DEBUG`]. The request carries a
    /// pidfd of it. `values[0]`: the number of its image; `ESRCH` if the machine serves no such process.
    pub const DEBUGGEE: u32 = 7;
}

/// Devices that [`op::OPEN`] opens.
pub mod device {
    /// `/dev/sgx_enclave`.
    pub const ENCLAVE: u64 = 1;
    /// `/dev/sgx_provision`.
    pub const PROVISION: u64 = 2;
}

const _: () = assert!(size_of::<Hello>() == 32);
const _: () = assert!(size_of::<Request>() == 40);
const _: () = assert!(size_of::<Answer>() == 40);
