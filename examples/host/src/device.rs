//! The ioctls of `/dev/sgx_enclave`. Source: Linux, `arch/x86/include/uapi/asm/sgx.h`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;

const ENCLAVE_CREATE: libc::c_ulong = 0x4008_a400;
const ENCLAVE_ADD_PAGES: libc::c_ulong = 0xc030_a401;
const ENCLAVE_INIT: libc::c_ulong = 0x4008_a402;
/// ADD_PAGES: measure the contents.
const PAGE_MEASURE: u64 = 1;

/// SECINFO: 64 bytes, aligned to 64.
#[repr(C, align(64))]
struct Secinfo {
    flags: u64,
    reserved: [u64; 7],
}

#[repr(C)]
struct AddPages {
    source: u64,
    offset: u64,
    length: u64,
    secinfo: u64,
    flags: u64,
    count: u64,
}

/// An open enclave device: one enclave.
#[derive(Debug)]
pub(crate) struct Device(pub(crate) File);

impl Device {
    /// Opens the device, under its present name or an older one.
    pub(crate) fn open() -> io::Result<Self> {
        let open = |path| OpenOptions::new().read(true).write(true).open(path);
        open("/dev/sgx_enclave").or_else(|error| open("/dev/sgx/enclave").map_err(|_| error)).map(Self)
    }

    fn ioctl<T>(&self, number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: Each number's size field is the size of the type that its only caller passes, and pointers
        // in it are to memory that the caller keeps alive.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), number as _, argument) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Creates the enclave that `secs` describes.
    pub(crate) fn create(&self, secs: &[u8; 4096]) -> io::Result<()> {
        self.ioctl(ENCLAVE_CREATE, &mut (secs.as_ptr() as u64))
    }

    /// Adds pages from page-aligned memory. The kernel may stop half way when a signal comes; this goes on.
    ///
    /// # Safety
    ///
    /// `source` is valid for reads of `length` bytes.
    pub(crate) unsafe fn add_pages(
        &self,
        source: *const u8,
        offset: u64,
        length: u64,
        flags: u64,
        measured: bool,
    ) -> io::Result<()> {
        let secinfo = Secinfo { flags, reserved: [0; 7] };
        let mut done = 0;
        while done < length {
            let mut argument = AddPages {
                source: source as u64 + done,
                offset: offset + done,
                length: length - done,
                secinfo: &raw const secinfo as u64,
                flags: if measured { PAGE_MEASURE } else { 0 },
                count: 0,
            };
            match self.ioctl(ENCLAVE_ADD_PAGES, &mut argument) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            done += argument.count;
        }
        Ok(())
    }

    /// Checks signature and measurement; from now on the enclave can be entered.
    pub(crate) fn init(&self, sigstruct: &[u8; 1808]) -> io::Result<()> {
        self.ioctl(ENCLAVE_INIT, &mut (sigstruct.as_ptr() as u64))
    }
}
