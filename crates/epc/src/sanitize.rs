//! Making the EPC usable at start: EREMOVE on every page, twice.
//!
//! The EPC may still hold enclaves of whoever had it before. An SECS can only be removed after its children,
//! so what refuses in a first round is tried once more; what then refuses is never used.

use core::sync::atomic::Ordering::Relaxed;

use usgx_isa::Encls;

use crate::epc::{Epc, SectionConfig};
use crate::owner::PageOwner;
use crate::platform::Platform;
use crate::state::PageState;

impl<P: Platform, O: PageOwner> Epc<P, O> {
    /// Cleans and frees all dirty pages; returns how many stay unusable. For one thread, once, at start;
    /// allocations by other threads succeed as soon as there are free pages.
    pub fn sanitize<H: Encls>(&self, hw: &H) -> usize {
        for _round in 0..2 {
            for page in self.nodes.sections().iter().flat_map(SectionConfig::iter) {
                if self.state(page) == PageState::Dirty && hw.eremove(page).is_ok() {
                    // Counted first, so that an allocation which takes the page at once does not count below 0.
                    self.counters.free.fetch_add(1, Relaxed);
                    self.nodes.put(page, PageState::Dirty, &self.states);
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
        left
    }
}
