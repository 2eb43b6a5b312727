//! What the attendant tells a freshly injected runtime, and how a program's next `execve` is announced.
//!
//! The *attendant* is the process that `usgx run` leaves behind: it traces a program for the moment of an
//! `execve`, to put the runtime into the new image. It writes a [`Boot`] over the runtime's symbol
//! `usgx_boot` and starts the runtime at its ELF entry point, with the stack pointer of the new program.

/// First word of a [`Boot`].
pub const MAGIC: u64 = u64::from_le_bytes(*b"usgxboot");

/// Parameters of a process image, written by the attendant before the image runs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`crate::VERSION`].
    pub version: u32,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Where the program itself would have started (the interpreter's or the program's entry point).
    pub entry: u64,
    /// The kernel's own vDSO image in this process; 0 if it has none.
    pub real_vdso: u64,
    /// Process ID of the attendant, for `PR_SET_PTRACER`.
    pub attendant_pid: u32,
    /// The door to the machine, an inherited descriptor.
    pub door_fd: i32,
    /// The socket to the attendant (`SOCK_SEQPACKET`), an inherited descriptor shared by all processes of
    /// the run; only [`ExecRequest`] travels on it.
    pub attendant_fd: i32,
    /// First of the descriptor numbers that the runtime keeps for itself; the door and the attendant's
    /// socket are among them.
    pub fd_base: i32,
    /// How many descriptor numbers from `fd_base` on are the runtime's.
    pub fd_count: i32,
    /// Keeps the size a multiple of 8
    pub reserved: i32,
}

/// Bits of [`Boot::flags`].
pub mod flags {
    /// This is the first image of the run: the seccomp filter is not installed yet.
    pub const INSTALL_FILTER: u32 = 1 << 0;
    /// The attendant prints statistics when the run's first process ends: announce its `exit_group` with
    /// [`super::EXIT_NOTICE`] and wait for the answer.
    pub const ANNOUNCE_EXIT: u32 = 1 << 1;
    /// `/dev/sgx_enclave` and its like are real files in this mount namespace, so only opens need care.
    pub const DEVICES_ARE_FILES: u32 = 1 << 2;
    /// The program's parent is to trace it ([`super::EXEC_TRACED`]), and to find it stopped by `SIGTRAP`.
    pub const TRACE_ME: u32 = 1 << 3;
    /// The attendant has the capability to trace even a program that its user may execute but not read, whose memory the
    /// kernel keeps from others.
    pub const TRACES_ALL: u32 = 1 << 4;
}

/// [`ExecRequest::kind`]: the thread is about to call `execve`; seize it and answer.
pub const EXEC_BEGIN: u32 = 1;
/// [`ExecRequest::kind`]: the `execve` has failed; let the thread go and answer.
pub const EXEC_FAILED: u32 = 2;
/// [`ExecRequest::kind`]: the run's first process is about to end by `exit_group`; answer when done.
pub const EXIT_NOTICE: u32 = 3;

/// [`ExecRequest::kind`]: as [`EXEC_BEGIN`], and the new image asks its parent to trace it ([`flags::TRACE_ME`]).
pub const EXEC_TRACED: u32 = 4;

/// [`ExecRequest::kind`]: a tracer of the run asks whether the process `tid`, which it traces, has announced an
/// `execve` and waits for a runtime since.
pub const EXEC_AWAITED: u32 = 5;
/// [`ExecRequest::kind`]: the process `tid`, which the sender traces and has announced its `execve`, has its new image,
/// and memory mapped where the runtime belongs: fill it. `rip` and `rsp` are the registers with which the kernel would
/// start it. The answer says where to start it instead.
pub const EXEC_INHERIT: u32 = 6;

/// A message to the attendant. It carries one descriptor (`SCM_RIGHTS`): one end of a fresh socket pair, on
/// which the attendant answers with one [`ExecAnswer`], so that many processes can share the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExecRequest {
    /// One of [`EXEC_BEGIN`], [`EXEC_FAILED`], [`EXIT_NOTICE`], [`EXEC_TRACED`], [`EXEC_AWAITED`],
    /// [`EXEC_INHERIT`].
    pub kind: u32,
    /// The process, as it sees itself.
    pub pid: u32,
    /// The calling thread, as it sees itself (the attendant uses the sender's credentials where IDs differ).
    pub tid: u32,
    /// [`EXEC_BEGIN`], [`EXEC_TRACED`]: signals that the program blocks and the kernel does not know to be blocked, bit `n - 1`
    /// for signal `n`: the new image inherits them.
    pub blocked: u32,
    /// [`EXEC_INHERIT`]: the instruction pointer.
    pub rip: u64,
    /// [`EXEC_INHERIT`]: the stack pointer.
    pub rsp: u64,
}

/// The attendant's answer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExecAnswer {
    /// 0, or a negative errno: the thread could not be seized.
    pub status: i32,
    /// Zero.
    pub reserved: u32,
    /// [`EXEC_INHERIT`]: the runtime's entry point.
    pub entry: u64,
    /// [`EXEC_INHERIT`]: signals that the new image finds blocked beside those of the kernel's mask.
    pub blocked: u64,
}

const _: () = assert!(size_of::<Boot>() == 56);
const _: () = assert!(size_of::<ExecRequest>() == 32);
const _: () = assert!(size_of::<ExecAnswer>() == 24);
