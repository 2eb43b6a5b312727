//! Making the EPC usable at start: EREMOVE on every page, twice.
//!
//! The EPC may still hold enclaves of whoever had it before. An SECS can only be removed after its children,
//! so what refuses in a first round is tried once more; what then refuses is never used. It is work for a thread in the
//! background: each page can be used as soon as it is clean, and who needs one meanwhile waits. (On Linux that is
//! `ENOMEM`, which early users of a large EPC get to see.)

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use usgx_isa::Encls;

use crate::epc::{Epc, SectionConfig};
use crate::owner::PageOwner;
use crate::platform::Platform;
use crate::state::PageState;

/// Pages between two looks at who waits.
const STEP: usize = 1024;

impl<P: Platform, O: PageOwner> Epc<P, O> {
    /// Cleans and frees all dirty pages; returns how many stay unusable. For one thread, once, at start;
    /// allocations by other threads succeed as soon as there are free pages.
    pub fn sanitize<H: Encls>(&self, hw: &H) -> usize {
        for _round in 0..2 {
            let pages = self.nodes.sections().iter().flat_map(SectionConfig::iter);
            for (count, page) in pages.enumerate().filter(|(_, page)| self.state(*page) == PageState::Dirty) {
                // A broken page is better not touched.
                if self.poison.has(page) || hw.eremove(page).is_ok() {
                    // Counted first, so that an allocation which takes the page at once does not count below 0.
                    self.counters.free.fetch_add(1, Relaxed);
                    let put = core::iter::once(page);
                    let retired = self.nodes.put(put, PageState::Dirty, &self.states, &self.poison);
                    self.counters.note_retired(retired);
                }
                if count % STEP == 0 {
                    self.platform.wake_waiters();
                }
            }
            self.platform.yield_now();
        }
        let mut left = 0;
        for cell in self.states.iter().filter(|cell| cell.get() == PageState::Dirty) {
            cell.change(PageState::Dirty, PageState::Leaked);
            self.counters.leaked.fetch_add(1, Relaxed);
            left += 1;
        }
        // Release: pairs with the Acquire in `is_sanitized`, so that who sees it finds every page that there is.
        self.counters.sanitized.store(true, Release);
        self.platform.wake_waiters();
        left
    }

    /// Whether no page is dirty any more.
    pub fn is_sanitized(&self) -> bool {
        self.counters.sanitized.load(Acquire)
    }
}
