//! What an operation does about an obstacle that it cannot remove with the enclave's lock held.
//!
//! An *attempt* runs with the lock. If it meets an obstacle it changes nothing and says which; the lock is
//! dropped, the obstacle worked on, and the attempt made again. EPC pages that were reclaimed for an attempt stay
//! in its hand ([`Supply`]), so another thread cannot take them away and every round comes nearer to the end.
//! Called by faults, SGX2 ioctls and debuggers; their switches are in [`Behaviour`](crate::Behaviour).

use alloc::vec::Vec;

use usgx_epc::{AllocError, Platform, Reclaim};
use usgx_isa::EpcPage;

use crate::driver::Kernel;
use crate::enclave::Inner;
use crate::event::Event;
use crate::paging::LoadError;
use crate::seams::Machine;
use crate::state::State;

/// Rounds after which an operation gives up, in which nothing but bad luck is left as a reason.
const ROUNDS: usize = 1000;
/// How often an operation finds that the EPC is exhausted before it believes it.
const MAX_EXHAUSTED: u32 = 32;

/// Why an attempt could not be completed just now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Obstacle {
    /// A reclaim pass has the page.
    InReclaim,
    /// No EPC page is free.
    NoFreePage,
    /// Threads that are inside may still use what is to be changed.
    NotTracked,
}

/// An error that may be an obstacle.
pub(crate) trait Obstructed: From<LoadError> {
    fn obstacle(&self) -> Option<Obstacle>;
}

impl Obstructed for LoadError {
    fn obstacle(&self) -> Option<Obstacle> {
        match self {
            Self::Busy(obstacle) => Some(*obstacle),
            // All pages may be on their way: whether there is hope is for whoever reclaims to find out.
            Self::NoMemory => Some(Obstacle::NoFreePage),
            Self::Missing | Self::Denied | Self::Failed => None,
        }
    }
}

/// The EPC pages that an operation may use.
pub(crate) struct Supply<'a, M: Machine> {
    kernel: &'a Kernel<M>,
    /// Pages in hand: owned, and invalid to the processor.
    hand: Vec<EpcPage>,
    /// How often no page was free and none could be reclaimed.
    exhausted: u32,
}

impl<'a, M: Machine> Supply<'a, M> {
    pub(crate) fn new(kernel: &'a Kernel<M>) -> Self {
        Self { kernel, hand: Vec::new(), exhausted: 0 }
    }

    /// Takes a page, without reclaiming.
    pub(crate) fn take(&mut self) -> Result<EpcPage, AllocError> {
        self.hand.pop().map_or_else(|| self.kernel.epc.alloc(Reclaim::Forbidden), Ok)
    }

    /// Gives back a page that was not used after all, for the next attempt.
    pub(crate) fn put_back(&mut self, page: EpcPage) {
        self.hand.push(page);
    }

    /// Takes one more page into the hand, by reclaiming if need be. No lock may be held.
    fn refill(&mut self) -> Result<(), AllocError> {
        match self.kernel.epc.alloc(Reclaim::Allowed) {
            Ok(page) => self.hand.push(page),
            // In an EPC of few pages all of them may be in hands, or on their way in: neither free nor reclaimable.
            // Others may be short of just those in this hand.
            Err(AllocError::Exhausted) if self.exhausted < MAX_EXHAUSTED => {
                self.exhausted += 1;
                self.put_all();
                self.kernel.platform.yield_now();
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn put_all(&mut self) {
        self.hand.drain(..).for_each(|page| self.kernel.epc.free(page));
    }
}

impl<M: Machine> Drop for Supply<'_, M> {
    fn drop(&mut self) {
        self.put_all();
    }
}

impl<M: Machine> Inner<M> {
    /// Makes `attempt`, with the lock held, until nothing is in its way; without `patience` only once. Ends with
    /// [`LoadError::Busy`] when it is `interrupted`. No lock may be held.
    pub(crate) fn persist<T, E: Obstructed>(
        &self,
        patience: bool,
        interrupted: impl Fn() -> bool,
        mut attempt: impl FnMut(&mut State, &mut Supply<'_, M>) -> Result<T, E>,
    ) -> Result<T, E> {
        let epc = &self.kernel.epc;
        let mut supply = Supply::new(&self.kernel);
        let mut round = 0;
        loop {
            // Before the attempt: the pass that it meets is then one that has not ended.
            let seen = epc.passes_ended();
            let result = attempt(&mut self.lock(), &mut supply);
            let Some(obstacle) = result.as_ref().err().and_then(Obstructed::obstacle) else { return result };
            if !patience {
                return result;
            }
            round += 1;
            if round == ROUNDS || interrupted() {
                return Err(LoadError::Busy(obstacle).into());
            }
            if obstacle != Obstacle::NotTracked {
                self.note(Event::Wait);
            }
            match obstacle {
                Obstacle::InReclaim => epc.wait_for_pass(seen),
                Obstacle::NotTracked => self.kick(),
                Obstacle::NoFreePage => match supply.refill() {
                    Ok(()) => {}
                    Err(AllocError::Exhausted) => return Err(LoadError::NoMemory.into()),
                    Err(AllocError::Busy | AllocError::Interrupted) => {
                        return Err(LoadError::Busy(obstacle).into());
                    }
                },
            }
        }
    }
}
