//! A loaded enclave, and calls into it.

use std::arch::asm;
use std::fmt;
use std::io;
use std::sync::Mutex;

use crate::device::Device;
use crate::image::{CONTENTS, REGIONS, SIGSTRUCT};
use crate::layout;
use crate::memory::{Aligned, Range};
use crate::vdso;

const EENTER: u32 = 2;
const EEXIT: u32 = 4;
/// SECINFO.FLAGS: the page type, and that of TCS pages.
const PAGE_TYPE: u64 = 0xff00;
const TCS: u64 = 1 << 8;

/// Why there is no enclave, or no answer of it.
#[derive(Debug)]
pub enum Error {
    /// The machine has no SGX, or its kernel none.
    NoSgx(&'static str),
    /// A step of loading has failed.
    Load(&'static str, io::Error),
    /// The enclave was left by an exception: its vector and address.
    Exception(u16, u64),
    /// The vDSO function refused its arguments.
    Entry(i32),
    /// The enclave did not accept the request.
    Refused,
    /// A leaf inside the enclave failed with this code.
    Leaf(u64),
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSgx(what) => write!(out, "this machine has no SGX: {what}"),
            Self::Load(step, error) => write!(out, "loading the enclave: {step}: {error}"),
            Self::Exception(vector, address) => {
                write!(out, "the enclave was left by exception {vector} at address {address:#x}")
            }
            Self::Entry(status) => write!(out, "entering the enclave failed with {status}"),
            Self::Refused => write!(out, "the enclave has refused the request"),
            Self::Leaf(code) => write!(out, "a leaf inside the enclave has failed with code {code}"),
        }
    }
}

impl std::error::Error for Error {}

/// What the enclave is asked; see its `Request`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request {
    pub(crate) operation: u64,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) seed: u64,
    pub(crate) second: u64,
    pub(crate) status: u64,
    pub(crate) result: u64,
}

/// `struct sgx_enclave_run` of the kernel's interface.
#[repr(C)]
struct Run {
    tcs: u64,
    function: u32,
    exception_vector: u16,
    exception_error_code: u16,
    exception_addr: u64,
    user_handler: u64,
    user_data: u64,
    reserved: [u8; 216],
}

const _: () = assert!(size_of::<Run>() == 256);

/// An enclave that can be entered.
#[derive(Debug)]
pub struct Enclave {
    base: usize,
    enter: usize,
    /// TCS addresses that nobody uses just now.
    free: Mutex<Vec<usize>>,
    _device: Device,
    _range: Range,
}

impl Enclave {
    /// Loads the example enclave.
    ///
    /// # Errors
    ///
    /// If there is no SGX, or a step fails.
    pub fn load() -> Result<Self, Error> {
        let enter = vdso::enter_function();
        let enter = enter.ok_or(Error::NoSgx("the vDSO has no __vdso_sgx_enter_enclave"))?;
        let device = Device::open().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoSgx("there is no /dev/sgx_enclave"),
            _ => Error::Load("opening /dev/sgx_enclave", error),
        })?;
        // An enclave's base is a multiple of its size.
        let range =
            Range::reserve(2 * layout::SIZE).map_err(|error| Error::Load("reserving addresses", error))?;
        let base = range.aligned(layout::SIZE);
        device.create(&secs(base as u64)).map_err(|error| Error::Load("ECREATE", error))?;
        let contents = Aligned::copy(CONTENTS);
        let longest = REGIONS.iter().map(|region| region.length).max().unwrap_or_default();
        let zeros = Range::zeros(longest).map_err(|error| Error::Load("mapping zeros", error))?;
        for region in REGIONS {
            let source = match region.contents {
                Some(offset) => contents.as_ptr().wrapping_add(offset),
                None => zeros.as_ptr(),
            };
            let (offset, length) = (region.offset as u64, region.length as u64);
            // SAFETY: The contents of a region are as long as it is, and no region is longer than the zeros.
            let added = unsafe { device.add_pages(source, offset, length, region.flags, region.measured) };
            added.map_err(|error| Error::Load("EADD", error))?;
        }
        device.init(SIGSTRUCT).map_err(|error| Error::Load("EINIT", error))?;
        for region in REGIONS {
            range
                .map_enclave(&device, base + region.offset, region.length, protection(region.flags))
                .map_err(|error| Error::Load("mapping the enclave", error))?;
        }
        let tcs =
            (0..layout::NR_THREADS).map(|thread| base + layout::THREADS + thread * layout::THREAD_STRIDE);
        Ok(Self { base, enter, free: Mutex::new(tcs.collect()), _device: device, _range: range })
    }

    /// The enclave's first address.
    #[must_use]
    pub fn base(&self) -> usize {
        self.base
    }

    /// Sends the enclave a request and waits for its result.
    pub(crate) fn call(&self, mut request: Request) -> Result<u64, Error> {
        // Should the request never be written to, it counts as refused.
        request.status = u64::MAX;
        let tcs = self.free.lock().ok().and_then(|mut free| free.pop()).ok_or(Error::Refused)?;
        let outcome = self.enter(tcs, &raw mut request as u64);
        if let Ok(mut free) = self.free.lock() {
            free.push(tcs);
        }
        outcome?;
        // SAFETY: `request` is alive; the enclave has written to it through the address it was given.
        let Request { status, result, .. } = unsafe { (&raw const request).read_volatile() };
        match status {
            0 => Ok(result),
            2 => Err(Error::Leaf(result)),
            _ => Err(Error::Refused),
        }
    }

    fn enter(&self, tcs: usize, argument: u64) -> Result<(), Error> {
        let mut run = Run {
            tcs: tcs as u64,
            function: 0,
            exception_vector: 0,
            exception_error_code: 0,
            exception_addr: 0,
            user_handler: 0,
            user_data: 0,
            reserved: [0; 216],
        };
        let status: i32;
        // SAFETY: The function is the kernel's; it takes its seventh argument on the stack and preserves RBX,
        // RBP and RSP. Everything else is declared lost, because an exception inside leaves no register whole.
        // The enclave reads and writes this process's memory only where the request says.
        unsafe {
            asm!(
                "sub rsp, 8",
                "push {run}",
                "call {enter}",
                "add rsp, 16",
                run = in(reg) &raw mut run,
                enter = in(reg) self.enter,
                inout("rdi") argument => _,
                inout("rsi") 0u64 => _,
                inout("rdx") 0u64 => _,
                inout("ecx") EENTER => _,
                inout("r8") 0u64 => _,
                inout("r9") 0u64 => _,
                lateout("eax") status,
                lateout("r12") _,
                lateout("r13") _,
                lateout("r14") _,
                lateout("r15") _,
                clobber_abi("C"),
            );
        }
        match (status, run.function) {
            (0, EEXIT) => Ok(()),
            (0, _) => Err(Error::Exception(run.exception_vector, run.exception_addr)),
            _ => Err(Error::Entry(status)),
        }
    }
}

/// SECS: size, base, SSA frames of one page, attributes DEBUG and MODE64BIT, XFRM of x87 and SSE.
fn secs(base: u64) -> [u8; 4096] {
    let mut secs = [0; 4096];
    secs[0..8].copy_from_slice(&(layout::SIZE as u64).to_le_bytes());
    secs[8..16].copy_from_slice(&base.to_le_bytes());
    secs[16..20].copy_from_slice(&1u32.to_le_bytes());
    secs[48..56].copy_from_slice(&6u64.to_le_bytes());
    secs[56..64].copy_from_slice(&3u64.to_le_bytes());
    secs
}

/// The protection with which pages are mapped. The processor itself writes to TCS pages.
fn protection(flags: u64) -> i32 {
    if flags & PAGE_TYPE == TCS {
        return libc::PROT_READ | libc::PROT_WRITE;
    }
    [(1, libc::PROT_READ), (2, libc::PROT_WRITE), (4, libc::PROT_EXEC)]
        .into_iter()
        .filter(|(bit, _)| flags & bit != 0)
        .fold(libc::PROT_NONE, |all, (_, protection)| all | protection)
}
