//! The window: what the machine shows of one enclave to the processes that use it, in shared memory, so that
//! entering and leaving need no message.
//!
//! A memfd for each enclave: a [`Header`] page, [`MAX_TCS`] thread control structures, and one 32-bit word
//! for each page of ELRANGE. The machine writes; the runtime writes only [`Tcs::word`] and [`Tcs::aep`].
//! Nothing here is a secret or a promise: the machine keeps the truth for itself.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Thread control structures that a window can show at the same time.
pub const MAX_TCS: usize = 4096;
/// Offset of the first [`Tcs`].
pub const TCS_OFFSET: usize = 4096;
/// Offset of the page words.
pub const PAGES_OFFSET: usize = TCS_OFFSET + MAX_TCS * size_of::<Tcs>();

/// Bytes of the window of an enclave with `size` bytes of ELRANGE, a multiple of the page size.
#[must_use]
pub const fn window_size(size: u64) -> u64 {
    (PAGES_OFFSET as u64 + size / 4096 * 4).next_multiple_of(4096)
}

/// The enclave as a whole. All fields but `epoch` are fixed once `created` is 1.
#[repr(C, align(64))]
pub struct Header {
    /// The current tracking epoch.
    pub epoch: AtomicU64,
    /// 1 once ECREATE has succeeded.
    pub created: AtomicU32,
    /// Pages of one SSA frame.
    pub ssa_frame_pages: AtomicU32,
    /// Linear address of the enclave.
    pub base: AtomicU64,
    /// Bytes of ELRANGE.
    pub size: AtomicU64,
    /// ATTRIBUTES (flags).
    pub attributes: AtomicU64,
    /// ATTRIBUTES.XFRM.
    pub xfrm: AtomicU64,
    /// MISCSELECT.
    pub miscselect: AtomicU32,
    /// Bytes of the XSAVE area for this XFRM.
    pub xsave_size: AtomicU32,
}

/// A thread control structure that is *mapped*: the processor's cached copy of a TCS page.
///
/// The page itself is in nobody's address space (enclave code must not read it), so this is all that entry
/// and exit see of it. When the machine takes the page away it swaps `word` for 0; whoever finds a 0 there
/// asks the machine ([`crate::slot::call::FAULT`] to enter, [`crate::slot::call::STORE_TCS`] to leave).
#[repr(C, align(128))]
pub struct Tcs {
    /// STATE and CSSA: [`tcs_word`].
    pub word: AtomicU64,
    /// Linear address of the TCS page.
    pub address: AtomicU64,
    /// TCS.AEP, written at entry.
    pub aep: AtomicU64,
    /// TCS.FLAGS.
    pub flags: AtomicU64,
    /// Linear address of the first SSA frame (base + OSSA).
    pub ssa: AtomicU64,
    /// Linear address of the entry point (base + OENTRY).
    pub entry: AtomicU64,
    /// FS base inside (base + OFSBASE).
    pub fs_base: AtomicU64,
    /// GS base inside (base + OGSBASE).
    pub gs_base: AtomicU64,
    /// NSSA.
    pub nssa: AtomicU32,
    /// What EENTER would raise before it looks at CSSA and STATE: 0, or 13 for `#GP(0)` (steps 7 to 14 of its
    /// checks: an enclave that is not initialised, reserved flags, alignment).
    pub refuses: AtomicU32,
}

/// The layout of [`Tcs::word`].
pub mod tcs_word {
    /// The entry is in use.
    pub const VALID: u64 = 1 << 0;
    /// A thread executes on this TCS (STATE).
    pub const ACTIVE: u64 = 1 << 1;
    /// With ACTIVE, the runtime notes here which thread has set it, so that the thread recognises its own mark;
    /// the machine does not look at it and shows zeros.
    pub const OWNER_SHIFT: u32 = 2;
    /// Bits of the owner.
    pub const OWNER_BITS: u32 = 30;
    /// CSSA is in the upper half.
    pub const CSSA_SHIFT: u32 = 32;
}

/// Bits of a page's word.
pub mod entry {
    /// The page is in the view: its bytes can be touched.
    pub const MAPPED: u32 = 1 << 0;
    /// The EPCM lets the enclave read.
    pub const R: u32 = 1 << 1;
    /// The EPCM lets the enclave write.
    pub const W: u32 = 1 << 2;
    /// The EPCM lets the enclave execute.
    pub const X: u32 = 1 << 3;
    /// The page is a TCS that the window holds; the index of the [`super::Tcs`] is in the upper half.
    pub const TCS: u32 = 1 << 4;
    /// On Linux this page would have a page-table entry: it was mapped and has not been evicted since. Gives
    /// the P bit of error codes.
    pub const PRESENT: u32 = 1 << 5;
    /// Shift of the TCS index.
    pub const TCS_SHIFT: u32 = 16;
}

const _: () = assert!(size_of::<Header>() <= TCS_OFFSET);
const _: () = assert!(size_of::<Tcs>() == 128);
