//! What the three SGX2 ioctls share: who may call them, and the loop over a range of pages. Source: section 8.5.

use usgx_isa::LeafError;
use usgx_isa::layout::{Secinfo, SecinfoFlags};

use super::argument::EnclRange;
use crate::enclave::{Inner, Phase};
use crate::errno::Errno;
use crate::page::Prot;
use crate::paging::LoadError;
use crate::seams::Machine;
use crate::state::State;

/// How one page of a range failed.
pub(super) struct PageError {
    pub(super) errno: Errno,
    /// What the leaf returned, if it was one and returned a code.
    pub(super) code: u64,
}

impl From<Errno> for PageError {
    fn from(errno: Errno) -> Self {
        Self { errno, code: 0 }
    }
}

impl From<LeafError> for PageError {
    fn from(error: LeafError) -> Self {
        let code = match error {
            LeafError::Code(code) => code as u64,
            LeafError::Fault(_) => 0,
        };
        Self { errno: Errno::EFAULT, code }
    }
}

/// How far an ioctl came.
pub(super) struct Progress {
    /// Pages done.
    pub(super) done: u64,
    /// The error that ended it, if one did.
    pub(super) result: Result<(), PageError>,
}

impl Progress {
    /// Nothing was done because of an error.
    pub(super) fn none(errno: Errno) -> Self {
        Self { done: 0, result: Err(errno.into()) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.done * 4096
    }

    pub(super) fn code(&self) -> u64 {
        self.result.as_ref().err().map_or(0, |error| error.code)
    }

    pub(super) fn errno(&self) -> Result<(), Errno> {
        self.result.as_ref().map_err(|error| error.errno).copied()
    }
}

impl<M: Machine> Inner<M> {
    /// Whether SGX2 ioctls can be used on this enclave, yet and at all.
    pub(super) fn check_sgx2(&self) -> Result<(), Errno> {
        if !self.kernel.config.sgx2 {
            return Err(Errno::ENODEV);
        }
        if self.phase() != Phase::Initialized {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// Loads each page of the range in turn and runs `each` on it, with the lock held.
    pub(super) fn for_each_page(
        &self,
        range: EnclRange,
        mut each: impl FnMut(&mut State, u64) -> Result<(), PageError>,
    ) -> Progress {
        for done in 0..range.count {
            let index = range.first + done;
            if self.kernel.epc.is_low() {
                self.kernel.epc.reclaim_pass();
            }
            let mut state = self.lock();
            let result = match self.load(&mut state, index, Prot::empty()) {
                Ok(_) => each(&mut state, index),
                Err(LoadError::Busy) => Err(Errno::EAGAIN.into()),
                Err(_) => Err(Errno::EFAULT.into()),
            };
            if result.is_err() {
                return Progress { done, result };
            }
        }
        Progress { done: range.count, result: Ok(()) }
    }

    /// As [`for_each_page`](Self::for_each_page), for leaves whose effect must be tracked before the ioctl returns.
    pub(super) fn for_each_page_tracked(
        &self,
        range: EnclRange,
        each: impl FnMut(&mut State, u64) -> Result<(), PageError>,
    ) -> Progress {
        let mut progress = self.for_each_page(range, each);
        if progress.done > 0
            && let Err(errno) = self.track_changes()
        {
            progress.result = Err(errno.into());
        }
        progress
    }
}

/// A SECINFO for EMODPR or EMODT.
pub(super) fn secinfo(flags: SecinfoFlags) -> Secinfo {
    Secinfo { flags, ..Secinfo::default() }
}
