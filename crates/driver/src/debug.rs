//! A debugger's look into a debug enclave, eight bytes at a time (EDBGRD, EDBGWR).
//!
//! Source: Linux, arch/x86/kernel/cpu/sgx/encl.c. A write is a read, a change and a write of whole words, and like
//! there it needs no readable or writable mapping, only one that does not allow more than the page does.

use usgx_epc::Platform;
use usgx_isa::{Encls, LeafError};

use crate::enclave::Enclave;
use crate::errno::Errno;
use crate::page::Prot;
use crate::paging::LoadError;
use crate::seams::Machine;

/// Bytes that one leaf moves.
const WORD: u64 = 8;

impl<M: Machine> Enclave<M> {
    /// Reads into `buf`, or writes from it, at `addr` through a mapping with protection `vma`. Returns the number
    /// of bytes, which are all.
    ///
    /// # Errors
    /// `EFAULT`: not a debug enclave, or no page there. `EIO`: the processor refuses. `ENOMEM`: no EPC. `EINTR`:
    /// a signal came while waiting for EPC (Linux goes on trying). Some words may have been moved already.
    pub fn access(&self, addr: u64, vma: Prot, buf: &mut [u8], write: bool) -> Result<usize, Errno> {
        if !self.is_debug() {
            return Err(Errno::EFAULT);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = addr.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let skip = (at % WORD) as usize;
            let count = (WORD as usize - skip).min(buf.len() - done);
            self.access_word(at - skip as u64, vma, skip, &mut buf[done..done + count], write)?;
            done += count;
        }
        Ok(done)
    }

    /// Moves bytes `skip..` of the word at `word`.
    fn access_word(
        &self,
        word: u64,
        vma: Prot,
        skip: usize,
        bytes: &mut [u8],
        write: bool,
    ) -> Result<(), Errno> {
        let (inner, hw) = (&self.0, &self.0.kernel.hw);
        let index = inner.index(word).ok_or(Errno::EFAULT)?;
        let offset = (word % 4096) as u16;
        let mut move_word = |page| -> Result<(), LeafError> {
            let mut value = hw.edbgrd(page, offset)?.to_le_bytes();
            let part = &mut value[skip..skip + bytes.len()];
            if !write {
                bytes.copy_from_slice(part);
                return Ok(());
            }
            part.copy_from_slice(bytes);
            hw.edbgwr(page, offset, u64::from_le_bytes(value))
        };
        let signal = || inner.kernel.platform.signal_pending();
        loop {
            let result = inner.persist(true, signal, |state, supply| {
                let page = inner.load(state, index, vma, supply)?;
                Ok::<_, LoadError>(move_word(page))
            });
            match result {
                Ok(moved) => return moved.map_err(|_| Errno::EIO),
                Err(LoadError::Busy(_)) if signal() => return Err(Errno::EINTR),
                Err(LoadError::Busy(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
