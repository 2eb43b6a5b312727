//! Pages on their way: buffers between the processor and the backing store.
//!
//! As many as there are threads that move pages at once, not one for each enclave: with thousands of enclaves, a buffer
//! of its own would be cold whenever an enclave's turn comes, and memory that is never given back. The lock is held to
//! take a buffer or to lay it back, and nothing is taken meanwhile.

use alloc::boxed::Box;
use alloc::vec::Vec;

use usgx_epc::{OrderedMutex, Platform};
use usgx_isa::EvictedPage;

use crate::driver::rank;

/// The buffers that nobody uses now.
pub(crate) struct Transits<P: Platform>(OrderedMutex<P, Vec<Box<EvictedPage>>>);

impl<P: Platform> Default for Transits<P> {
    fn default() -> Self {
        Self(OrderedMutex::new(rank::TRANSITS, Vec::new()))
    }
}

impl<P: Platform> Transits<P> {
    /// Runs `f` with a buffer that has anything in it.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut EvictedPage) -> T) -> T {
        let unused = self.0.lock().pop();
        let mut transit = unused.unwrap_or_default();
        let result = f(&mut transit);
        self.0.lock().push(transit);
        result
    }
}
