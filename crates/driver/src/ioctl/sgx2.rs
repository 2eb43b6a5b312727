//! What the three SGX2 ioctls share: who may call them, and the loop over a range of pages.
//!
//! Linux fails with `EAGAIN` at a page that a reclaim pass has, and as the list of reclaimable pages is in order of
//! use, `ksgxd` runs just ahead of such a loop when EPC is short: a program would have to repeat the ioctl
//! for nearly every page. Here the ioctl waits ([`Behaviour::ioctls_wait`](crate::Behaviour::ioctls_wait)). Source:
//! Linux, arch/x86/kernel/cpu/sgx/ioctl.c.

use alloc::vec::Vec;

use usgx_isa::LeafError;
use usgx_isa::layout::{Secinfo, SecinfoFlags};

use super::argument::EnclRange;
use crate::enclave::{Inner, Phase};
use crate::errno::Errno;
use crate::page::{EnclPage, PageKind, Place, Prot};
use crate::paging::LoadError;
use crate::patience::{Obstacle, Obstructed};
use crate::seams::{AddressSpaces, Caller, Machine};
use crate::state::State;

/// Pages that are hidden together, with the enclave locked: 1 MiB.
const HIDDEN_AT_ONCE: u64 = 256;

/// How one page of a range failed.
#[derive(Clone, Copy)]
pub(super) struct PageError {
    pub(super) errno: Errno,
    /// What the leaf returned, if it was one and returned a code.
    code: u64,
    /// What is in the way, if that does not stay.
    obstacle: Option<Obstacle>,
}

impl PageError {
    /// A reclaim pass has the page, which Linux reports as `errno`.
    pub(super) fn in_reclaim(errno: Errno) -> Self {
        Self { obstacle: Some(Obstacle::InReclaim), ..errno.into() }
    }
}

impl From<Errno> for PageError {
    fn from(errno: Errno) -> Self {
        Self { errno, code: 0, obstacle: None }
    }
}

impl From<LoadError> for PageError {
    fn from(error: LoadError) -> Self {
        let errno = if matches!(error, LoadError::Busy(_)) { Errno::EAGAIN } else { Errno::EFAULT };
        Self { obstacle: error.obstacle(), ..errno.into() }
    }
}

impl Obstructed for PageError {
    fn obstacle(&self) -> Option<Obstacle> {
        self.obstacle
    }
}

impl From<LeafError> for PageError {
    fn from(error: LeafError) -> Self {
        let code = match error {
            LeafError::Code(code) => code as u64,
            LeafError::Fault(_) => 0,
        };
        Self { code, ..Errno::EFAULT.into() }
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

    /// Loads each page of the range in turn and runs `each` on it, with the lock held. `each` changes nothing when it
    /// reports an obstacle, and may be called again.
    pub(super) fn for_each_page(
        &self,
        range: EnclRange,
        caller: &dyn Caller,
        mut each: impl FnMut(&mut State, u64) -> Result<(), PageError>,
    ) -> Progress {
        let patience = self.kernel.config.behaviour.ioctls_wait;
        for done in 0..range.count {
            let index = range.first + done;
            if self.kernel.epc.is_low() {
                self.kernel.epc.reclaim_pass();
            }
            let result = self.persist(
                patience,
                || caller.signal_pending(),
                |state, supply| {
                    self.load(state, index, Prot::empty(), supply)?;
                    each(state, index)
                },
            );
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
        caller: &dyn Caller,
        mut each: impl FnMut(&mut State, u64) -> Result<(), PageError>,
    ) -> Progress {
        let step = if self.kernel.config.behaviour.track_once { range.count } else { 1 };
        let mut done = 0;
        while done < range.count {
            let part = EnclRange { first: range.first + done, count: step };
            let mut progress = self.for_each_page_hidden(part, caller, &mut each);
            if progress.done > 0
                && let Err(errno) = self.track_changes()
            {
                progress.result = Err(errno.into());
            }
            done += progress.done;
            if progress.result.is_err() {
                return Progress { done, ..progress };
            }
        }
        Progress { done, result: Ok(()) }
    }

    /// As [`for_each_page`](Self::for_each_page), where each page will be hidden: many at a time, which costs much less
    /// than one by one. Whoever touches a page in between has it hidden again.
    fn for_each_page_hidden(
        &self,
        range: EnclRange,
        caller: &dyn Caller,
        mut each: impl FnMut(&mut State, u64) -> Result<(), PageError>,
    ) -> Progress {
        let mut done = 0;
        while done < range.count {
            let part = EnclRange { first: range.first + done, count: HIDDEN_AT_ONCE.min(range.count - done) };
            self.hide_regular(part);
            let progress = self.for_each_page(part, caller, &mut each);
            done += progress.done;
            if progress.result.is_err() {
                return Progress { done, ..progress };
            }
        }
        Progress { done, result: Ok(()) }
    }

    /// Hides the regular pages of a range that are in the EPC. A TCS stays until it is its turn: it may be in use.
    fn hide_regular(&self, range: EnclRange) {
        let state = self.lock();
        let pages: Vec<_> = (range.first..range.first + range.count)
            .filter_map(|index| match state.pages.get(index)? {
                EnclPage { place: Place::Resident(page), kind: PageKind::Reg, .. } => {
                    Some((self.addr(index), *page))
                }
                _ => None,
            })
            .collect();
        self.kernel.spaces.hide(self.id, &pages);
    }
}

/// A SECINFO for EMODPR or EMODT.
pub(super) fn secinfo(flags: SecinfoFlags) -> Secinfo {
    Secinfo { flags, ..Secinfo::default() }
}
