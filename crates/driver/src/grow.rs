//! Allocating and giving back version array pages. Source: Linux, arch/x86/kernel/cpu/sgx/ioctl.c.

use core::sync::atomic::Ordering::Relaxed;

use usgx_epc::Reclaim;
use usgx_isa::{Encls, EpcPage, LeafError};

use crate::enclave::Inner;
use crate::errno::Errno;
use crate::seams::Machine;
use crate::state::State;

impl<M: Machine> Inner<M> {
    /// Makes a VA page of a page that is the caller's; frees it if the processor refuses.
    pub(crate) fn make_va_page(&self, page: EpcPage) -> Result<(), LeafError> {
        let kernel = &self.kernel;
        kernel.hw.epa(page).inspect_err(|_| kernel.release(page))?;
        kernel.va_pages.fetch_add(1, Relaxed);
        Ok(())
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
            let page = self.kernel.epc.alloc(Reclaim::Allowed)?;
            self.make_va_page(page).map_err(|_| Errno::EFAULT)?;
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
