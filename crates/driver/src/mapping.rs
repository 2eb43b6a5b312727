//! What may be mapped, and with which protection.
//!
//! The address selection and the checks that do not concern the enclave (`MAP_PRIVATE`, a read-only file,
//! READ_IMPLIES_EXEC) are the caller's. Source: Linux, arch/x86/kernel/cpu/sgx/encl.c and
//! driver.c.

use crate::enclave::{Enclave, Phase};
use crate::errno::Errno;
use crate::page::Prot;
use crate::seams::Machine;

/// Records looked at under one acquisition of the lock.
const STEP: usize = 4096;

impl<M: Machine> Enclave<M> {
    /// Checks a mapping of `len` bytes at `start`. The enclave keeps no list of mappings; the machine does.
    ///
    /// # Errors
    /// `EACCES`: outside an initialised enclave's range, or more than a page of the range allows. `EINVAL`: no
    /// range at all.
    pub fn mmap(&self, start: u64, len: u64, prot: Prot) -> Result<(), Errno> {
        self.may_map(start, len, prot)
    }

    /// Checks a new protection for a part of a mapping.
    ///
    /// # Errors
    /// As [`mmap`](Self::mmap).
    pub fn mprotect(&self, start: u64, len: u64, prot: Prot) -> Result<(), Errno> {
        self.may_map(start, len, prot)
    }

    fn may_map(&self, start: u64, len: u64, prot: Prot) -> Result<(), Errno> {
        let last = match len.checked_sub(1) {
            Some(rest) => start.checked_add(rest).ok_or(Errno::EINVAL)?,
            None => return Err(Errno::EINVAL),
        };
        let (base, size) = self.0.place();
        let inside = self.0.index(start).is_some() && self.0.index(last).is_some();
        // Before INIT an enclave can be mapped anywhere; a fault outside its range is SIGBUS then.
        if self.0.phase() == Phase::Initialized && !inside {
            return Err(Errno::EACCES);
        }
        // The last byte, not the one after it: that of an enclave at the top of all addresses is 0.
        let end = base + size.saturating_sub(1);
        if prot.is_empty() || size == 0 || last < base || start > end {
            return Ok(());
        }
        let mut next = (start.max(base) - base) / 4096;
        let last = (last.min(end) - base) / 4096;
        loop {
            let state = self.0.lock();
            let mut pages = state.pages.range(next, last);
            for (_, page) in pages.by_ref().take(STEP) {
                if !page.max_prot.contains(prot) {
                    return Err(Errno::EACCES);
                }
            }
            match pages.next() {
                Some((index, _)) => next = index,
                None => return Ok(()),
            }
        }
    }
}
