//! The window of an enclave: what the processes that use it may see of the machine's books.
//!
//! Typed access to the shared memory that [`usgx_wire::window`] lays out. The machine writes; what it reads back
//! is a client's word ([`Window::take_tcs`]) and is used for the client's own TCS only. Called by the view, with
//! its lock held.

use std::mem::offset_of;
use std::sync::atomic::Ordering::{Relaxed, Release, SeqCst};

use usgx_cpu::{EnclaveState, TcsState};
use usgx_isa::LinAddr;
use usgx_sys::Errno;
use usgx_sys::memfd::Memfd;
use usgx_sys::shared::SharedMemory;
use usgx_wire::window::{Header, PAGES_OFFSET, TCS_OFFSET, Tcs, tcs_word, window_size};

/// `#GP`, as a vector.
const GP: u32 = 13;

/// What a process did to a TCS while it was in the window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TakenTcs {
    /// A thread executes on it.
    pub(crate) active: bool,
    /// CSSA.
    pub(crate) cssa: u32,
    /// AEP of the last entry.
    pub(crate) aep: u64,
}

/// The machine's mapping of a window.
#[derive(Debug)]
pub(crate) struct Window(SharedMemory);

impl Window {
    /// Gives the window's file its size, and maps it.
    pub(crate) fn map(file: &Memfd, size: u64) -> Result<Self, Errno> {
        let bytes = window_size(size);
        file.seal_size(bytes)?;
        SharedMemory::map(file, usize::try_from(bytes).map_err(|_| Errno::FBIG)?).map(Self)
    }

    /// Describes the enclave, once.
    pub(crate) fn describe(&self, state: &EnclaveState) {
        let memory = &self.0;
        memory.word32(offset_of!(Header, ssa_frame_pages)).store(state.ssaframesize, Relaxed);
        memory.word64(offset_of!(Header, base)).store(state.base.0, Relaxed);
        memory.word64(offset_of!(Header, size)).store(state.size, Relaxed);
        memory.word64(offset_of!(Header, attributes)).store(state.attributes, Relaxed);
        memory.word64(offset_of!(Header, xfrm)).store(state.xfrm, Relaxed);
        memory.word32(offset_of!(Header, miscselect)).store(state.miscselect, Relaxed);
        memory.word32(offset_of!(Header, xsave_size)).store(state.xsave_size, Relaxed);
        // Release: whoever sees `created` sees the fields above.
        memory.word32(offset_of!(Header, created)).store(1, Release);
    }

    /// Shows ATTRIBUTES, which EINIT changes.
    pub(crate) fn set_attributes(&self, attributes: u64) {
        self.0.word64(offset_of!(Header, attributes)).store(attributes, Release);
    }

    /// Shows the epoch that entries carry from now on.
    pub(crate) fn set_epoch(&self, epoch: u64) {
        // SeqCst: the processor looks for threads inside after this, threads look here before they are inside.
        self.0.word64(offset_of!(Header, epoch)).store(epoch, SeqCst);
    }

    /// Shows the state of the page with number `index`.
    pub(crate) fn set_entry(&self, index: u32, entry: u32) {
        self.0.word32(PAGES_OFFSET + index as usize * 4).store(entry, Release);
    }

    /// Shows a TCS. `None` is one through which every entry is refused.
    pub(crate) fn show_tcs(&self, slot: u16, address: LinAddr, tcs: Option<&TcsState>) {
        let memory = &self.0;
        let at = |field: usize| TCS_OFFSET + usize::from(slot) * size_of::<Tcs>() + field;
        memory.word64(at(offset_of!(Tcs, address))).store(address.0, Relaxed);
        let mut word = tcs_word::VALID;
        match tcs {
            Some(tcs) => {
                let relative = |offset: u64| tcs.base.0.wrapping_add(offset);
                memory.word64(at(offset_of!(Tcs, aep))).store(tcs.aep, Relaxed);
                memory.word64(at(offset_of!(Tcs, flags))).store(tcs.flags, Relaxed);
                memory.word64(at(offset_of!(Tcs, ssa))).store(relative(tcs.ossa), Relaxed);
                memory.word64(at(offset_of!(Tcs, entry))).store(relative(tcs.oentry), Relaxed);
                memory.word64(at(offset_of!(Tcs, fs_base))).store(relative(tcs.ofsbase), Relaxed);
                memory.word64(at(offset_of!(Tcs, gs_base))).store(relative(tcs.ogsbase), Relaxed);
                memory.word32(at(offset_of!(Tcs, nssa))).store(tcs.nssa, Relaxed);
                memory.word32(at(offset_of!(Tcs, refuses))).store(0, Relaxed);
                word |= u64::from(tcs.cssa) << tcs_word::CSSA_SHIFT;
                if tcs.state != 0 {
                    word |= tcs_word::ACTIVE;
                }
            }
            None => memory.word32(at(offset_of!(Tcs, refuses))).store(GP, Relaxed),
        }
        // Release: whoever sees the word sees the fields above.
        memory.word64(at(offset_of!(Tcs, word))).store(word, Release);
    }

    /// Takes a TCS out of the window: from here on, entries and exits find a 0. Returns what became of it.
    pub(crate) fn take_tcs(&self, slot: u16) -> TakenTcs {
        let at = |field: usize| TCS_OFFSET + usize::from(slot) * size_of::<Tcs>() + field;
        let word = self.0.word64(at(offset_of!(Tcs, word))).swap(0, SeqCst);
        TakenTcs {
            active: word & tcs_word::ACTIVE != 0,
            cssa: (word >> tcs_word::CSSA_SHIFT) as u32,
            aep: self.0.word64(at(offset_of!(Tcs, aep))).load(SeqCst),
        }
    }
}
