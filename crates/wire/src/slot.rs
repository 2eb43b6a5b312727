//! Slots: one thread's calls to the machine, through shared memory and a futex.
//!
//! The word [`Slot::turn`] says whose turn it is. The runtime writes a call into [`Slot::words`], sets
//! [`turn::CALL`] and wakes the machine; the machine either answers ([`turn::REPLY`]) or first asks
//! something of the process ([`turn::UPCALL`]), which the runtime answers with [`turn::ANSWER`]. Every
//! change of turn is a `Release` store that pairs with an `Acquire` load on the other side. Futexes are
//! shared ones (no `FUTEX_PRIVATE_FLAG`).
//!
//! Addresses in calls are linear addresses in the calling process. Errors are negative errnos.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Arguments and results of a call.
pub const NR_WORDS: usize = 10;

/// One thread's slot.
#[repr(C, align(64))]
pub struct Slot {
    /// Whose turn it is: one of [`turn`]. The futex word.
    pub turn: AtomicU32,
    /// Set while the runtime spins or sleeps on `turn`: [`waiter`] bits, so that the other side can leave out
    /// a wake that nobody needs.
    pub waiting: AtomicU32,
    /// `words[0]` is the call ([`call`]) or the upcall ([`upcall`]); the rest by its kind.
    pub words: [AtomicU64; NR_WORDS],
    /// The processor on which the runtime last gave the turn away.
    pub processor: AtomicU32,
    /// How often the runtime looks at `turn` before it sleeps; the machine says so.
    pub looks: AtomicU32,
    /// On a cache line of its own: where the thread is.
    pub inside: Inside,
}

/// Which enclave a thread is inside of, and since which tracking epoch.
///
/// Written by the runtime at entry (`enclave` last) and exit (`enclave` first), read by the machine when it
/// checks tracking. A client's word about its own enclave, so a lie harms only the liar.
#[repr(C, align(64))]
pub struct Inside {
    /// The enclave's handle, or 0 outside.
    pub enclave: AtomicU64,
    /// The window's epoch at entry.
    pub epoch: AtomicU64,
}

/// Values of [`Slot::turn`].
pub mod turn {
    /// No call is under way.
    pub const IDLE: u32 = 0;
    /// The machine's turn: a new call.
    pub const CALL: u32 = 1;
    /// The runtime's turn: the machine asks something.
    pub const UPCALL: u32 = 2;
    /// The machine's turn: the upcall's answer, in `words[1..]`.
    pub const ANSWER: u32 = 3;
    /// The runtime's turn: the call's result, in `words[1..]`.
    pub const REPLY: u32 = 4;
    /// The machine has given the slot up.
    pub const CLOSED: u32 = 5;
}

/// Bits of [`Slot::waiting`].
pub mod waiter {
    /// The runtime sleeps in the futex.
    pub const RUNTIME: u32 = 1 << 0;
    /// The machine sleeps in the futex.
    pub const MACHINE: u32 = 1 << 1;
}

/// Calls: `words[0]`.
pub mod call {
    /// A page of an enclave was touched and is not mapped (or is write-protected).
    ///
    /// In: 1 enclave, 2 address, 3 page-fault error code (W and I/D bits count), 4 the mapping's protection
    /// (`PROT_*`), 5 one of [`super::fault_kind`]. Out: 1 one of [`super::outcome`], 2 the page's window entry
    /// ([`crate::window::entry`]) for `MAPPED`.
    pub const FAULT: u64 = 1;
    /// An ioctl on `/dev/sgx_enclave`. In: 1 enclave, 2 command, 3 argument. Out: 1 result or errno.
    pub const IOCTL: u64 = 2;
    /// May this range be mapped? In: 1 enclave, 2 start, 3 length, 4 protection. Out: 1 zero or errno,
    /// 2 the enclave's base, 3 its size (both 0 before it is created).
    pub const MMAP: u64 = 3;
    /// May a mapped range get this protection? In and out as [`MMAP`].
    pub const MPROTECT: u64 = 4;
    /// The range is mapped `PROT_NONE` to the view and registered with the process's userfaultfd: from the
    /// answer on, the machine knows it. In: 1 enclave, 2 start, 3 length. Out: 1 zero or errno.
    pub const REGISTER: u64 = 5;
    /// The range is no longer mapped. In: 1 enclave, 2 start, 3 length. Out: 1 zero.
    pub const UNREGISTER: u64 = 6;
    /// An ENCLU leaf that touches keys or the EPCM, run by a thread inside the enclave. In: 1 enclave, 2 leaf,
    /// 3 RBX, 4 RCX, 5 RDX. Out: 1 one of [`super::enclu_outcome`], 2 RAX for `DONE`, or the vector; 3 the
    /// page-fault error code; 4 the faulting address. A page that EACCEPT or EACCEPTCOPY has accepted is mapped.
    pub const ENCLU: u64 = 7;
    /// The thread leaves the enclave while its TCS is not in the window. In: 1 enclave, 2 the TCS's address,
    /// 3 CSSA, 4 AEP to store. STATE becomes inactive. Out: 1 zero.
    pub const STORE_TCS: u64 = 8;
    /// An asynchronous exit must store into an SSA page that is not mapped. In: 1 enclave, 2 address, 3 length
    /// (within one page); the bytes are in the data area. Out: 1 zero.
    pub const STORE_SSA: u64 = 9;
    /// A debugger reads or writes memory of a process that the kernel has let it trace. In: 1 the process
    /// ([`crate::channel::op::DEBUGGEE`]), 2 address, 3 length (at most [`super::DEBUG_MAX`]), 4 one of
    /// [`super::debug`]; the bytes are in the data area. Out: 1 the number of bytes moved, all of them, or an
    /// errno; or 0 if no enclave is mapped at the address, and then 2 the number of bytes up to the next
    /// mapping of one.
    pub const DEBUG: u64 = 10;
}

/// What a debugger wants: `words[4]` of [`call::DEBUG`].
pub mod debug {
    /// The bytes go into the data area.
    pub const READ: u64 = 0;
    /// The bytes come from the data area.
    pub const WRITE: u64 = 1;
}

/// Most bytes of one [`call::DEBUG`]: what Linux moves at a time for `/proc/PID/mem`.
pub const DEBUG_MAX: usize = 4096;

/// Why a fault was taken: `words[5]` of [`call::FAULT`].
pub mod fault_kind {
    /// An access from inside or outside the enclave.
    pub const ACCESS: u64 = 0;
    /// EENTER or ERESUME needs this page as its TCS: the outcome is `MAPPED` only if the window then holds
    /// the TCS ([`crate::window::Tcs`]).
    pub const TCS: u64 = 1;
}

/// Outcomes of [`call::FAULT`].
pub mod outcome {
    /// The page is mapped: run the instruction again.
    pub const MAPPED: u64 = 0;
    /// Deliver a page fault that the EPCM caused (SIGSEGV, error code with the SGX bit).
    pub const SGX_FAULT: u64 = 1;
    /// Deliver what Linux delivers when its fault handler fails: SIGBUS, `BUS_ADRERR`.
    pub const SIGBUS: u64 = 2;
    /// EENTER or ERESUME: `#GP(0)`.
    pub const GP: u64 = 3;
    /// Nothing was done; run the instruction again (the page is on its way out).
    pub const RETRY: u64 = 4;
}

/// Outcomes of [`call::ENCLU`].
pub mod enclu_outcome {
    /// The leaf is done; RAX is in `words[2]`, and ZF is set if it is not 0.
    pub const DONE: u64 = 0;
    /// The leaf is done and returns no code: RAX and flags stay.
    pub const DONE_NO_CODE: u64 = 1;
    /// An ordinary page fault at `words[4]` with the error code in `words[3]`: handle it as the access would
    /// be, and run the leaf again if it is repaired.
    pub const NOT_PRESENT: u64 = 2;
    /// An exception: vector in `words[2]`, error code in `words[3]`, address in `words[4]`.
    pub const EXCEPTION: u64 = 3;
}

/// Upcalls: `words[0]`, from the machine.
pub mod upcall {
    /// Copies from the program's memory into the data area. In: 1 address, 2 length (at most the data area).
    /// Answer: 1 bytes copied before a fault.
    pub const READ: u64 = 1;
    /// Copies from the data area into the program's memory. In: 1 address, 2 length. Answer: 1 bytes copied.
    pub const WRITE: u64 = 2;
    /// Is a signal pending that the program's mask lets through? Answer: 1 zero or one.
    pub const SIGNAL_PENDING: u64 = 3;
    /// The inode number of the socket behind a descriptor. In: 1 descriptor. Answer: 1 inode number, or 0 if
    /// it is not an open socket.
    pub const SOCKET_INODE: u64 = 4;
    /// As [`READ`], for pages that are to go into an enclave, up to the end of a mapping at most, and to 3 an offset in
    /// the data area. Answer: 1 bytes copied, or [`NEVER_EXECUTABLE`].
    pub const SOURCE: u64 = 5;
    /// The answer to [`SOURCE`] if the mapping can never be executable (a file on a `noexec` mount).
    pub const NEVER_EXECUTABLE: u64 = u64::MAX;
}
