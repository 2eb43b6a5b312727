//! The caller of an ioctl, reached by upcalls: its memory, signals and descriptors.
//!
//! The machine never reads a client's memory itself. Called by the driver without locks.

use usgx_driver::{Caller, Efault, SourceError};
use usgx_isa::Page;
use usgx_wire::process::DATA_SIZE;
use usgx_wire::slot::upcall;

use crate::clients::worker::Link;
use crate::kernel::source::SourcePages;

/// A client's thread that makes an ioctl.
pub(crate) struct ClientCaller<'a> {
    link: &'a Link,
    source: SourcePages,
}

impl<'a> ClientCaller<'a> {
    pub(crate) fn new(link: &'a Link) -> Self {
        Self { link, source: SourcePages::default() }
    }

    /// Has the client copy up to a data area's worth of its memory there; returns how much it did.
    fn fetch(&self, addr: u64, length: u64) -> u64 {
        self.source.forget();
        let length = length.min(DATA_SIZE as u64);
        // What it says is clamped: it may say anything.
        self.link.upcall(upcall::READ, [addr, length, 0]).unwrap_or(0).min(length)
    }
}

impl Caller for ClientCaller<'_> {
    fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), Efault> {
        let mut addr = addr;
        for chunk in out.chunks_mut(DATA_SIZE) {
            let length = chunk.len() as u64;
            if self.fetch(addr, length) < length {
                return Err(Efault);
            }
            self.link.memory().read_data(0, chunk);
            addr = addr.wrapping_add(length);
        }
        Ok(())
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), Efault> {
        self.source.forget();
        let mut addr = addr;
        for chunk in bytes.chunks(DATA_SIZE) {
            let length = chunk.len() as u64;
            self.link.memory().write_data(chunk);
            if self.link.upcall(upcall::WRITE, [addr, length, 0]).is_none_or(|written| written < length) {
                return Err(Efault);
            }
            addr = addr.wrapping_add(length);
        }
        Ok(())
    }

    fn source_page(&self, addr: u64, remaining: u64, out: &mut Page) -> Result<(), SourceError> {
        self.source.read(self.link, addr, remaining, out)
    }

    fn signal_pending(&self) -> bool {
        self.link.signal_pending()
    }

    fn is_provision_fd(&self, fd: i32) -> bool {
        let Ok(fd) = u64::try_from(fd) else { return false };
        self.link
            .upcall(upcall::SOCKET_INODE, [fd, 0, 0])
            .is_some_and(|inode| inode != 0 && self.link.host.provision.lock().contains(&inode))
    }
}
