//! The EPC map: one entry for each EPC page.
//!
//! An entry is an atomic word of state, the enclave address, the tracking stamp and the page's lock word. Who
//! holds the page's lock exclusively may replace the entry; who holds less changes single bits, atomically,
//! since other leaves may be changing other bits. Every leaf reads and writes entries through this file.
//! Source: SDM volume 3D, "EPCM Entry"; the layout is ours.

use std::sync::atomic::{AtomicU64, Ordering};

use usgx_isa::layout::PageType;
use usgx_isa::{EpcPage, LinAddr};

use crate::lock::PageLock;
use crate::secinfo::{self, MODIFIED, PAGE_TYPE, PENDING, PR, R, RWX, W, X};

/// The entry is in use. Reserved in SECINFO, as is the next.
pub(crate) const VALID: u64 = 1 << 6;
/// EBLOCK was done.
pub(crate) const BLOCKED: u64 = 1 << 7;
/// What of the state EWB writes into SECINFO.FLAGS.
const SECINFO_FLAGS: u64 = RWX | PENDING | MODIFIED | PR | PAGE_TYPE;
const OWNER_SHIFT: u32 = 32;

/// The state word of an entry: SECINFO.FLAGS, VALID and BLOCKED, and the owner's SECS page in the upper half.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct State(u64);

impl State {
    /// A valid page with `flags` as in SECINFO.FLAGS (and possibly [`BLOCKED`]), and no owner.
    pub(crate) const fn valid(flags: u64) -> Self {
        Self(flags | VALID)
    }

    /// The same, owned by the enclave of `secs`.
    pub(crate) const fn owned(flags: u64, secs: EpcPage) -> Self {
        Self(flags | VALID | (secs.0 as u64) << OWNER_SHIFT)
    }

    pub(crate) const fn is_valid(self) -> bool {
        self.has(VALID)
    }

    /// Whether any of the bits `flags` is set.
    pub(crate) const fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    /// The page type, in its place in SECINFO.FLAGS.
    pub(crate) const fn page_type(self) -> u64 {
        self.0 & PAGE_TYPE
    }

    /// SECINFO.FLAGS of this page, as EWB writes them.
    pub(crate) const fn secinfo_flags(self) -> u64 {
        self.0 & SECINFO_FLAGS
    }

    /// The page's owner; meaningful for child pages only.
    pub(crate) const fn owner(self) -> EpcPage {
        EpcPage((self.0 >> OWNER_SHIFT) as u32)
    }

    /// Whether this is a valid page that belongs to an enclave: not free, not an SECS, not a VA page.
    pub(crate) const fn is_child(self) -> bool {
        self.is_valid() && matches!(self.page_type(), secinfo::PT_TCS | secinfo::PT_REG | secinfo::PT_TRIM)
    }

    /// Whether this is a child page of the enclave of `secs`.
    pub(crate) const fn is_child_of(self, secs: EpcPage) -> bool {
        self.is_child() && self.owner().0 == secs.0
    }
}

/// One entry of the EPCM, 32 bytes.
#[derive(Debug)]
pub(crate) struct Entry {
    state: AtomicU64,
    /// ENCLAVEADDRESS of a child page. An SECS has none: there it is the SECS's slot among the resident ones.
    address: AtomicU64,
    /// The epoch in which the page was last blocked, restricted or modified.
    stamp: AtomicU64,
    pub(crate) lock: PageLock,
}

const _: () = assert!(size_of::<Entry>() <= 40, "the EPCM must stay small beside the EPC");

impl Entry {
    pub(crate) const fn free() -> Self {
        Self {
            state: AtomicU64::new(0),
            address: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
            lock: PageLock::new(),
        }
    }

    pub(crate) fn state(&self) -> State {
        // Pairs with the `Release` in `publish`. Beyond that, the page's lock orders what leaves do.
        State(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn address(&self) -> u64 {
        self.address.load(Ordering::Relaxed)
    }

    pub(crate) fn stamp(&self) -> u64 {
        self.stamp.load(Ordering::Relaxed)
    }

    /// Makes the page valid. Preconditions: its lock is held exclusively; its bytes are written.
    pub(crate) fn publish(&self, state: State, address: u64) {
        self.address.store(address, Ordering::Relaxed);
        self.stamp.store(crate::tracking::NO_STAMP, Ordering::Relaxed);
        self.state.store(state.0, Ordering::Release);
    }

    /// Frees the page. Preconditions: its lock is held exclusively.
    pub(crate) fn invalidate(&self) {
        self.state.store(0, Ordering::Release);
    }

    /// Sets the bits `flags`, and returns the state before.
    pub(crate) fn set(&self, flags: u64) -> State {
        State(self.state.fetch_or(flags, Ordering::SeqCst))
    }

    /// Clears the bits `flags`.
    pub(crate) fn clear(&self, flags: u64) {
        self.state.fetch_and(!flags, Ordering::SeqCst);
    }

    /// Clears the bits `clear`, then sets the bits `set`, in one step.
    pub(crate) fn change(&self, clear: u64, set: u64) {
        let change = |state| Some(state & !clear | set);
        self.state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, change)
            .expect("the change is never refused");
    }

    /// Records the epoch of a change that threads have to be tracked for.
    pub(crate) fn set_stamp(&self, epoch: u64) {
        self.stamp.store(epoch, Ordering::Relaxed);
    }

    /// What the entry says, if the page is valid. Takes no lock, so the answer may be old at once.
    pub(crate) fn snapshot(&self) -> Option<EpcmEntry> {
        loop {
            let state = self.state();
            let address = self.address();
            if self.state() == state {
                return state.is_valid().then(|| EpcmEntry::new(state, address));
            }
        }
    }
}

/// A kind of access by enclave code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// What the EPCM says of a valid page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EpcmEntry {
    /// The page's type.
    pub page_type: PageType,
    /// The enclave may read it.
    pub r: bool,
    /// The enclave may write it.
    pub w: bool,
    /// The enclave may fetch from it.
    pub x: bool,
    /// EBLOCK was done: no new translations.
    pub blocked: bool,
    /// EAUG was done, EACCEPT or EACCEPTCOPY is outstanding.
    pub pending: bool,
    /// EMODT was done, EACCEPT is outstanding.
    pub modified: bool,
    /// EMODPR was done, EACCEPT is outstanding.
    pub pr: bool,
    /// The only address at which the enclave may use the page; 0 for SECS and VA pages.
    pub linaddr: LinAddr,
    /// The SECS of the enclave that owns the page; `None` for SECS and VA pages.
    pub secs: Option<EpcPage>,
}

impl EpcmEntry {
    fn new(state: State, address: u64) -> Self {
        let page_type = match state.page_type() {
            secinfo::PT_SECS => PageType::Secs,
            secinfo::PT_TCS => PageType::Tcs,
            secinfo::PT_REG => PageType::Reg,
            secinfo::PT_VA => PageType::Va,
            // The only other type that a leaf can make.
            _ => PageType::Trim,
        };
        let child = state.is_child();
        Self {
            page_type,
            r: state.has(R),
            w: state.has(W),
            x: state.has(X),
            blocked: state.has(BLOCKED),
            pending: state.has(PENDING),
            modified: state.has(MODIFIED),
            pr: state.has(PR),
            linaddr: LinAddr(if child { address } else { 0 }),
            secs: child.then(|| state.owner()),
        }
    }

    /// Whether a thread inside the enclave of `secs` may make this access at `addr`. If not, it gets a `#PF`
    /// with the SGX bit. PR does not matter. Source: SDM volume 3D, "Access-control Requirements".
    #[must_use]
    pub fn permits(&self, secs: EpcPage, addr: LinAddr, access: Access) -> bool {
        let allowed = match access {
            Access::Read => self.r,
            Access::Write => self.w,
            Access::Fetch => self.x,
        };
        self.page_type == PageType::Reg
            && self.secs == Some(secs)
            && self.linaddr == addr.page()
            && !(self.blocked || self.pending || self.modified)
            && allowed
    }
}
