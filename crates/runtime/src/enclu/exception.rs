//! An exception on its way to the program: by vector, as the processor raises it, and by signal, as Linux
//! reports it.
//!
//! [`raise`] is the one way out: inside an enclave it makes the asynchronous exit first; where the
//! interrupted instruction then is the vDSO function's ENCLU it applies Linux's fix-up; otherwise it fills in
//! the signal. Source: Linux's exception fix-up of the vDSO and its page fault handler.

use super::{aex, vdso};
use crate::signals::frame::{SigInfo, Ucontext, signum};
use crate::thread::Thread;

/// Vectors.
#[allow(missing_docs, reason = "the names are the documentation")]
pub(super) mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const BP: u8 = 3;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
    pub const CP: u8 = 21;
}

/// Bits of a page fault's error code.
#[allow(missing_docs, reason = "the names are the documentation")]
pub(super) mod pf {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const I: u32 = 1 << 4;
    pub const PK: u32 = 1 << 5;
    pub const SGX: u32 = 1 << 15;
}

const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRERR: i32 = 2;
const ILL_ILLOPN: i32 = 2;
const SI_KERNEL: i32 = 0x80;
const PAGE_MASK: u64 = !0xfff;

/// What happened, and how Linux signals it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exception {
    pub vector: u8,
    pub error: u32,
    /// The faulting address of `#PF`, not masked; 0 for all others.
    pub address: u64,
    pub signal: i32,
    pub code: i32,
    /// What `si_addr` holds.
    pub si_addr: SiAddr,
}

/// Meaning of `si_addr`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SiAddr {
    /// The faulting address.
    Fault,
    /// The instruction.
    Instruction,
    /// Nothing.
    Zero,
}

impl Exception {
    /// `#GP(0)`.
    pub const GP: Self = Self {
        vector: vector::GP,
        error: 0,
        address: 0,
        signal: signum::SIGSEGV,
        code: SI_KERNEL,
        si_addr: SiAddr::Zero,
    };
    /// `#UD`.
    pub const UD: Self = Self {
        vector: vector::UD,
        error: 0,
        address: 0,
        signal: signum::SIGILL,
        code: ILL_ILLOPN,
        si_addr: SiAddr::Instruction,
    };

    /// A page fault where nothing is mapped.
    pub fn unmapped(address: u64, error: u32) -> Self {
        Self::page_fault(address, error & !(pf::P | pf::SGX) | pf::U, signum::SIGSEGV, SEGV_MAPERR)
    }

    /// A page fault that a mapping's protection causes.
    pub fn denied(address: u64, error: u32) -> Self {
        Self::page_fault(address, error & !pf::SGX | pf::U, signum::SIGSEGV, SEGV_ACCERR)
    }

    /// A page fault that the EPCM causes.
    pub fn sgx(address: u64, error: u32) -> Self {
        Self::page_fault(address, error | pf::SGX | pf::P | pf::U, signum::SIGSEGV, SEGV_ACCERR)
    }

    /// A page fault that the driver cannot repair.
    pub fn bus(address: u64, error: u32) -> Self {
        Self::page_fault(address, error & !(pf::P | pf::SGX) | pf::U, signum::SIGBUS, BUS_ADRERR)
    }

    fn page_fault(address: u64, error: u32, signal: i32, code: i32) -> Self {
        Self { vector: vector::PF, error, address, signal, code, si_addr: SiAddr::Fault }
    }

    /// An exception with what the machine says of it.
    pub fn from_machine(number: u64, error: u64, address: u64) -> Self {
        match number as u8 {
            vector::UD => Self::UD,
            vector::PF if error as u32 & pf::SGX != 0 => Self::sgx(address, error as u32),
            vector::PF => Self::denied(address, error as u32),
            _ => Self { error: error as u32, ..Self::GP },
        }
    }

    /// An exception as the kernel has signalled it.
    pub fn from_kernel(sig: i32, info: &SigInfo, uc: &Ucontext) -> Self {
        let number = uc.mcontext.trapno as u8;
        let (error, address) = (uc.mcontext.err as u32, uc.mcontext.cr2);
        match number {
            vector::PF => Self::page_fault(address, error, sig, info.code),
            vector::GP => Self { error, ..Self::GP },
            vector::AC => Self {
                vector: number,
                error,
                address: 0,
                signal: sig,
                code: info.code,
                si_addr: SiAddr::Zero,
            },
            // Vectors above BR other than those of the floating-point unit give no address.
            7..=15 => Self {
                vector: number,
                error,
                address: 0,
                signal: sig,
                code: info.code,
                si_addr: SiAddr::Zero,
            },
            _ => Self {
                vector: number,
                error,
                address: 0,
                signal: sig,
                code: info.code,
                si_addr: SiAddr::Instruction,
            },
        }
    }

    /// Whether Linux turns it into a return value of the vDSO function. `#DB`, `#BP` and `#CP` never.
    fn is_fixed_up(&self) -> bool {
        !matches!(self.vector, vector::DB | vector::BP | vector::CP)
    }
}

/// What the handler does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Goes on with the context as it is.
    Resume,
    /// Hands the signal that the information names to the program; information and context are what it shall see.
    Deliver,
}

/// Raises an exception at the interrupted instruction, which has not completed.
pub(super) fn raise(
    thread: &mut Thread,
    uc: &mut Ucontext,
    info: &mut SigInfo,
    exception: &Exception,
) -> Verdict {
    let was_inside = thread.enclave.is_inside();
    if was_inside {
        aex::exit(thread, uc, Some(exception));
    }
    // The processor hides which byte of an enclave's page was touched.
    let address = if was_inside { exception.address & PAGE_MASK } else { exception.address };
    if uc.mcontext.rip == vdso::enclu_address() && exception.is_fixed_up() {
        vdso::fix_up(uc, exception.vector, exception.error, address);
        return Verdict::Resume;
    }
    uc.mcontext.trapno = u64::from(exception.vector);
    uc.mcontext.err = u64::from(exception.error);
    if exception.vector == vector::PF {
        uc.mcontext.cr2 = address;
    }
    *info = SigInfo { signo: exception.signal, code: exception.code, ..SigInfo::default() };
    info.fields[0] = match exception.si_addr {
        SiAddr::Fault => address,
        SiAddr::Instruction => uc.mcontext.rip,
        SiAddr::Zero => 0,
    };
    Verdict::Deliver
}
