//! Allocating and giving back version array pages. Source: `linux-driver.md`, section 9.

use core::sync::atomic::Ordering::Relaxed;

use usgx_epc::Reclaim;
use usgx_isa::{Encls, EpcPage};

use crate::enclave::Inner;
use crate::errno::Errno;
use crate::seams::Machine;
use crate::state::State;

impl<M: Machine> Inner<M> {
    /// Makes a VA page. With [`Reclaim::Allowed`] no lock may be held.
    pub(crate) fn new_va_page(&self, reclaim: Reclaim) -> Result<EpcPage, Errno> {
        let kernel = &self.kernel;
        let page = kernel.epc.alloc(reclaim)?;
        if kernel.hw.epa(page).is_err() {
            kernel.release(page);
            return Err(Errno::EFAULT);
        }
        kernel.va_pages.fetch_add(1, Relaxed);
        Ok(page)
    }

    /// Adds a VA page, by reclaiming if need be, if one more page needs it; tells whether it did.
    ///
    /// Only for ioctls before INIT: no other thread adds pages then, so the answer holds without the lock.
    pub(crate) fn grow(&self) -> Result<bool, Errno> {
        let must_grow = {
            let state = self.lock();
            state.va.must_grow(state.page_count)
        };
        if must_grow {
            let page = self.new_va_page(Reclaim::Allowed)?;
            self.lock().va.grow(page);
        }
        Ok(must_grow)
    }

    /// Takes back the VA page that was added last, for a page that then could not be added.
    pub(crate) fn shrink(&self, state: &mut State) {
        if let Some(page) = state.va.shrink() {
            self.kernel.release_va(page);
        }
    }
}
