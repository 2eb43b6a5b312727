//! Layouts of what the kernel puts on a signal stack, on x86-64.

use crate::usercopy::Plain;

/// `stack_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct StackT {
    /// Lowest address.
    pub sp: u64,
    /// [`SS_ONSTACK`], [`SS_DISABLE`], [`SS_AUTODISARM`].
    pub flags: i32,
    /// Padding.
    pub pad: i32,
    /// Bytes.
    pub size: u64,
}

/// In use now.
pub const SS_ONSTACK: i32 = 1;
/// There is none.
pub const SS_DISABLE: i32 = 2;
/// Taken away while a handler runs on it.
pub const SS_AUTODISARM: i32 = 1 << 31;

/// `struct sigcontext`: the interrupted registers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "registers")]
pub struct Sigcontext {
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rsp: u64,
    pub rip: u64,
    pub eflags: u64,
    pub cs: u16,
    pub gs: u16,
    pub fs: u16,
    pub ss: u16,
    /// Error code of the exception.
    pub err: u64,
    /// Vector of the exception.
    pub trapno: u64,
    pub oldmask: u64,
    /// Address of the page fault.
    pub cr2: u64,
    /// Address of the [`FpState`], or 0: the initial state.
    pub fpstate: u64,
    pub reserved: [u64; 8],
}

/// `ucontext_t` as the kernel lays it out (with a mask of one word).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Ucontext {
    /// `UC_*` bits.
    pub flags: u64,
    /// Unused.
    pub link: u64,
    /// The alternate stack; `rt_sigreturn` sets it.
    pub stack: StackT,
    /// Registers.
    pub mcontext: Sigcontext,
    /// The mask; `rt_sigreturn` sets it.
    pub sigmask: u64,
}

/// `siginfo_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SigInfo {
    /// Signal number.
    pub signo: i32,
    /// Error number, or for seccomp the filter's data.
    pub errno: i32,
    /// Why.
    pub code: i32,
    /// Padding.
    pub pad: i32,
    /// By kind; `fields[0]` is `si_addr` of an exception.
    pub fields: [u64; 14],
}

impl SigInfo {
    /// `si_syscall` of a seccomp trap.
    pub fn syscall(&self) -> u64 {
        self.fields[1] & 0xffff_ffff
    }

    /// Whether the kernel raised it for an exception or the like, rather than somebody having sent it.
    pub fn by_kernel(&self) -> bool {
        self.code > 0
    }
}

/// The legacy part of the saved extended state (FXSAVE layout), with the software bytes at its end.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the layout of FXSAVE")]
pub struct FpState {
    pub cwd: u16,
    pub swd: u16,
    pub twd: u16,
    pub fop: u16,
    pub rip: u64,
    pub rdp: u64,
    pub mxcsr: u32,
    pub mxcsr_mask: u32,
    pub st: [[u64; 2]; 8],
    pub xmm: [[u64; 2]; 16],
    pub reserved: [u64; 6],
    /// [`FP_MAGIC1`] if an XSAVE image follows.
    pub magic1: u32,
    /// Bytes of the whole area including the second magic word.
    pub extended_size: u32,
    /// State components that the area has room for.
    pub xfeatures: u64,
    /// Bytes of the XSAVE image; the second magic word stands there.
    pub xstate_size: u32,
    pub padding: [u32; 7],
}

/// An XSAVE image follows the legacy part.
pub const FP_MAGIC1: u32 = 0x4650_5853;
/// Bytes of the legacy part alone.
pub const FXSAVE_SIZE: usize = 512;

/// What the kernel pushes: `struct rt_sigframe`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RtSigframe {
    /// Where the handler returns to: the restorer.
    pub pretcode: u64,
    /// Context.
    pub uc: Ucontext,
    /// Information.
    pub info: SigInfo,
}

/// `struct sigaction` as the system call takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sigaction {
    /// Handler, 0 for default, 1 for ignore.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Restorer.
    pub restorer: u64,
    /// Mask while the handler runs.
    pub mask: u64,
}

// SAFETY: integers without padding.
unsafe impl Plain for StackT {}
// SAFETY: integers without padding.
unsafe impl Plain for Ucontext {}
// SAFETY: integers without padding.
unsafe impl Plain for SigInfo {}
// SAFETY: integers without padding.
unsafe impl Plain for RtSigframe {}
// SAFETY: integers without padding.
unsafe impl Plain for Sigaction {}

const _: () = assert!(size_of::<Sigcontext>() == 256);
const _: () = assert!(size_of::<Ucontext>() == 304);
const _: () = assert!(size_of::<SigInfo>() == 128);
const _: () = assert!(size_of::<FpState>() == 512);
const _: () = assert!(core::mem::offset_of!(FpState, magic1) == 464);
const _: () = assert!(size_of::<RtSigframe>() == 440);

/// Signal numbers.
#[allow(missing_docs, dead_code, reason = "the names are the documentation")]
pub mod signum {
    pub const SIGILL: i32 = 4;
    pub const SIGTRAP: i32 = 5;
    pub const SIGBUS: i32 = 7;
    pub const SIGFPE: i32 = 8;
    pub const SIGKILL: i32 = 9;
    pub const SIGSEGV: i32 = 11;
    pub const SIGCHLD: i32 = 17;
    pub const SIGCONT: i32 = 18;
    pub const SIGSTOP: i32 = 19;
    pub const SIGURG: i32 = 23;
    pub const SIGWINCH: i32 = 28;
    pub const SIGSYS: i32 = 31;
}

/// The bit of a signal in a mask.
pub const fn bit(sig: i32) -> u64 {
    1 << (sig - 1)
}

/// The signals that the runtime owns: always handled by it, in no mask that the kernel gets. SIGFPE is among
/// them because an enclave may raise it under the vDSO function, which turns it into a return value.
pub const OWNED: u64 = bit(signum::SIGSYS)
    | bit(signum::SIGILL)
    | bit(signum::SIGSEGV)
    | bit(signum::SIGBUS)
    | bit(signum::SIGTRAP)
    | bit(signum::SIGFPE);
