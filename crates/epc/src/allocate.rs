//! Handing out pages: the allocation policies.
//!
//! Every allocation that could be served by reclaiming wakes `ksgxd` when free pages are few. An allocation
//! that *may* reclaim works for itself when there is no free page at all, batch by batch, until there is
//! one, nothing is left to reclaim, or a signal ends it.

use core::sync::atomic::Ordering::Relaxed;

use usgx_isa::EpcPage;

use crate::epc::Epc;
use crate::owner::PageOwner;
use crate::platform::Platform;
use crate::reclaim::BATCH;

/// Whether an allocation may run reclaim passes, for which its caller may hold no lock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reclaim {
    /// It may.
    Allowed,
    /// It may not, and fails as [`AllocError::Busy`] where it would have to.
    Forbidden,
}

/// Why there is no page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AllocError {
    /// No page is free and none can be reclaimed, or nobody has room for their contents. `ENOMEM`.
    Exhausted,
    /// No page is free just now, but pages can be reclaimed. `EBUSY`.
    Busy,
    /// A signal came while waiting for a page. `ERESTARTSYS`.
    Interrupted,
}

impl<P: Platform, O: PageOwner> Epc<P, O> {
    /// Whether passes went over the whole list, and more, and every old page was refused.
    ///
    /// Linux goes round until its out-of-memory killer makes room; here nobody else would.
    fn is_stuck(&self) -> bool {
        self.counters.refused_in_vain.load(Relaxed) > 2 * self.lru.lock().len() + BATCH
    }

    /// Takes a free page, near the calling thread if possible.
    ///
    /// # Errors
    /// As listed at [`AllocError`].
    pub fn alloc(&self, reclaim: Reclaim) -> Result<EpcPage, AllocError> {
        let result = loop {
            let clean = self.is_sanitized();
            let seen = self.passes_ended();
            if let Some(page) = self.nodes.take(self.platform.current_node(), &self.states) {
                self.counters.note_allocated();
                break Ok(page);
            }
            if !clean && self.policy.wait_for_sanitizing {
                if reclaim == Reclaim::Forbidden {
                    break Err(AllocError::Busy);
                }
                if self.platform.signal_pending() {
                    break Err(AllocError::Interrupted);
                }
                self.platform.wait_until(&|| self.is_sanitized() || self.free_pages() != 0);
                continue;
            }
            // In an EPC of few pages a pass may have all of them. (Linux calls that out of memory.)
            let all_in_reclaim = !self.can_reclaim();
            if all_in_reclaim && self.is_quiet_since(seen) || self.is_stuck() {
                return Err(AllocError::Exhausted);
            }
            if reclaim == Reclaim::Forbidden {
                break Err(AllocError::Busy);
            }
            if self.platform.signal_pending() {
                break Err(AllocError::Interrupted);
            }
            if all_in_reclaim {
                self.wait_for_pass(seen);
                continue;
            }
            self.counters.direct.fetch_add(1, Relaxed);
            self.reclaim_pass();
            self.platform.yield_now();
        };
        if self.is_low() {
            self.platform.wake_ksgxd();
        }
        result
    }
}
