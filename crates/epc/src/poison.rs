//! Pages that the hardware has reported as broken (a machine check).
//!
//! A poisoned page is never handed out again. If it is free it leaves its list at once; if somebody has it, when it is
//! given back: nobody but the owner can know what to do about its contents, and reading them, as a write-back would, may
//! cost a processor. So it is taken off the list of reclaimable pages, unless a pass has it already. What Linux does and
//! we do not: its counter of free pages counts poisoned ones among the free. Source: Linux,
//! arch/x86/kernel/cpu/sgx/main.c.
//!
//! Locks: `lru`, then `node.free`, which together hold every state but that of an owned page still.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use alloc::boxed::Box;
use usgx_isa::EpcPage;

use crate::epc::Epc;
use crate::owner::PageOwner;
use crate::platform::Platform;
use crate::state::PageState;

/// Which pages are poisoned: a bit for each.
pub(crate) struct Poison(Box<[AtomicU64]>);

impl Poison {
    pub(crate) fn new(pages: usize) -> Self {
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Relaxed, as the writer holds the locks of both lists, and who acts on the answer one of them.
    pub(crate) fn has(&self, page: EpcPage) -> bool {
        self.0[page.index() / 64].load(Relaxed) & 1 << (page.index() % 64) != 0
    }

    /// Tells whether it was not set.
    fn set(&self, page: EpcPage) -> bool {
        let bit = 1 << (page.index() % 64);
        self.0[page.index() / 64].fetch_or(bit, Relaxed) & bit == 0
    }
}

/// What became of a page that was reported as broken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Poisoned {
    /// It was nobody's and will never be anybody's.
    Retired,
    /// Somebody has it. It will be retired when it is given back.
    InUse,
    /// It was reported before.
    Known,
}

/// The page is in no section.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotEpc;

impl<P: Platform, O: PageOwner> Epc<P, O> {
    /// Takes note that `page` is broken.
    ///
    /// # Errors
    /// It is in no section.
    pub fn memory_failure(&self, page: EpcPage) -> Result<Poisoned, NotEpc> {
        if self.state(page) == PageState::Outside {
            return Err(NotEpc);
        }
        let mut lru = self.lru.lock();
        let mut free = self.nodes.free_list_of(page);
        if !self.poison.set(page) {
            return Ok(Poisoned::Known);
        }
        let state = &self.states[page.index()];
        match state.get() {
            PageState::Free => {
                free.retain(|other| *other != page);
                state.change(PageState::Free, PageState::Poisoned);
                self.counters.free.fetch_sub(1, Relaxed);
                self.counters.poisoned.fetch_add(1, Relaxed);
                Ok(Poisoned::Retired)
            }
            PageState::Active => {
                lru.remove(page);
                lru.clear_owner(page);
                state.change(PageState::Active, PageState::Owned);
                Ok(Poisoned::InUse)
            }
            // Sanitising, its owner, or the pass that has it will meet the mark.
            PageState::Dirty | PageState::Owned | PageState::Reclaiming | PageState::Raw => {
                Ok(Poisoned::InUse)
            }
            PageState::Leaked | PageState::Poisoned | PageState::Outside => Ok(Poisoned::Retired),
        }
    }
}
