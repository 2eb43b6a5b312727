//! Where a thread is with respect to enclaves.
//!
//! A thread is `OUTSIDE`, `ENTERING` or `INSIDE`. `ENTERING` exists only in the vDSO function, which enters
//! without a trap and can therefore be interrupted half way ([`super::interrupted`] undoes it); in a handler,
//! entry is a single step. Inside, this record is what the processor would hold in its own registers: the
//! enclave, the TCS and its fields as they were at entry, and the outside state to go back to. The window's
//! copy of the TCS may be taken away meanwhile, so nothing needed for leaving is read from there.
//!
//! Only the thread itself uses its `Mode`: in its handlers, and in the vDSO function below them. What both
//! touch is atomic, with compiler fences where order matters to a handler.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, compiler_fence};

use usgx_wire::slot::Slot;
use usgx_wire::window;

use super::frame::Gpr;
use crate::enclaves::Enclave;

/// Values of [`Mode::phase`].
pub(super) const OUTSIDE: u32 = 0;
/// In the vDSO function, between looking at the TCS and the enclave's first instruction.
pub(super) const ENTERING: u32 = 1;
/// In enclave mode.
pub(super) const INSIDE: u32 = 2;

/// [`Mode::selector`]: system calls go to the kernel.
pub(super) const SELECTOR_ALLOW: u8 = 0;
/// [`Mode::selector`]: system calls raise SIGSYS.
pub(super) const SELECTOR_BLOCK: u8 = 1;

/// State of a thread. The default is outside.
#[repr(C)]
pub struct Mode {
    /// One of [`OUTSIDE`], [`ENTERING`], [`INSIDE`].
    pub(super) phase: AtomicU32,
    /// CSSA; while inside, this is the truth, whatever the window shows.
    pub(super) cssa: AtomicU32,
    /// 1 while this thread's mark (STATE) stands in `tcs.word`.
    pub(super) held: AtomicU32,
    /// 1 once `outside_fs` and `outside_gs` are saved and may have been replaced.
    pub(super) segments: AtomicU32,
    /// Where the vDSO function saved the registers ([`super::vdso::Block`]), while entering.
    pub(super) block: AtomicU64,
    /// The byte that the kernel's system call dispatch looks at.
    pub(super) selector: AtomicU8,
    /// Whether that dispatch is set up for this thread.
    pub(super) dispatch: bool,
    /// The TCS was entered with TF set and DBGOPTIN clear: TF comes back at exit.
    pub(super) trap_flag: bool,
    /// TCS.FLAGS.DBGOPTIN.
    pub(super) opt_in: bool,
    /// TCS.FLAGS.AEXNOTIFY.
    pub(super) notify: bool,
    /// What `held` refers to, and the word before.
    pub(super) tcs: Option<&'static window::Tcs>,
    /// Value of `tcs.word` before this thread took it, and while it has it.
    pub(super) word_before: u64,
    /// See `word_before`.
    pub(super) word_taken: u64,
    /// The slot in which `inside` is published.
    pub(super) slot: Option<&'static Slot>,
    /// The enclave.
    pub(super) enclave: Option<&'static Enclave>,
    /// Its handle.
    pub(super) handle: u64,
    /// Its window, good as long as the enclave's table entry still names it.
    pub(super) window: Option<&'static window::Header>,
    /// ELRANGE: base and size.
    pub(super) base: u64,
    /// See `base`.
    pub(super) size: u64,
    /// The TCS's linear address.
    pub(super) tcs_address: u64,
    /// Where asynchronous exits go.
    pub(super) aep: u64,
    /// Address of the first SSA frame, bytes of a frame.
    pub(super) ssa: u64,
    /// See `ssa`.
    pub(super) frame_size: u64,
    /// ATTRIBUTES.XFRM, MISCSELECT, bytes of the XSAVE area.
    pub(super) xfrm: u64,
    /// See `xfrm`.
    pub(super) miscselect: u32,
    /// See `xfrm`.
    pub(super) xsave_size: u32,
    /// RSP at entry, in case the SSA frame cannot be read at exit.
    pub(super) entry_rsp: u64,
    /// RBP at entry.
    pub(super) entry_rbp: u64,
    /// Segment bases to go back to.
    pub(super) outside_fs: u64,
    /// See `outside_fs`.
    pub(super) outside_gs: u64,
}

impl Default for Mode {
    fn default() -> Self {
        Self {
            phase: AtomicU32::new(OUTSIDE),
            cssa: AtomicU32::new(0),
            held: AtomicU32::new(0),
            segments: AtomicU32::new(0),
            block: AtomicU64::new(0),
            selector: AtomicU8::new(SELECTOR_ALLOW),
            dispatch: false,
            trap_flag: false,
            opt_in: false,
            notify: false,
            tcs: None,
            word_before: 0,
            word_taken: 0,
            slot: None,
            enclave: None,
            handle: 0,
            window: None,
            base: 0,
            size: 0,
            tcs_address: 0,
            aep: 0,
            ssa: 0,
            frame_size: 0,
            xfrm: 0,
            miscselect: 0,
            xsave_size: 0,
            entry_rsp: 0,
            entry_rbp: 0,
            outside_fs: 0,
            outside_gs: 0,
        }
    }
}

impl Mode {
    /// Whether the thread is in enclave mode.
    pub fn is_inside(&self) -> bool {
        self.phase() == INSIDE
    }

    pub(super) fn phase(&self) -> u32 {
        self.phase.load(Ordering::Relaxed)
    }

    pub(super) fn set_phase(&self, phase: u32) {
        // Handlers of this thread must find everything that came before in memory.
        compiler_fence(Ordering::SeqCst);
        self.phase.store(phase, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    pub(super) fn cssa(&self) -> u32 {
        self.cssa.load(Ordering::Relaxed)
    }

    /// Whether `address` lies in the ELRANGE of the enclave that the thread is inside of.
    pub(super) fn in_elrange(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < self.size
    }

    /// Address of SSA frame `index`.
    pub(super) fn frame(&self, index: u32) -> u64 {
        self.ssa.wrapping_add(u64::from(index) * self.frame_size)
    }

    /// Whether the enclave wants to be told, at the ERESUME from SSA frame `index`, that it was left; `None` if
    /// the frame cannot be read now.
    pub(super) fn is_notified(&self, index: u32) -> Option<bool> {
        if !self.notify {
            return Some(false);
        }
        Gpr::aexnotify(Gpr::address(self.frame(index), self.frame_size))
    }

    /// The window, unless the enclave has been forgotten in this process since the entry.
    pub(super) fn live_window(&self) -> Option<&'static window::Header> {
        let (enclave, window) = (self.enclave?, self.window?);
        let same =
            enclave.handle() == self.handle && enclave.window().is_some_and(|now| core::ptr::eq(now, window));
        same.then_some(window)
    }

    /// The window's copy of the TCS, if it still is one: its word carries this thread's mark.
    pub(super) fn live_tcs(&self) -> Option<&'static window::Tcs> {
        self.live_window()?;
        self.tcs.filter(|tcs| tcs.word.load(Ordering::Acquire) == self.word_taken)
    }

    /// Tells the machine which enclave the thread is inside of, and since when.
    pub(super) fn publish(&self) {
        let (Some(slot), Some(window)) = (self.slot, self.window) else { return };
        slot.inside.epoch.store(window.epoch.load(Ordering::SeqCst), Ordering::SeqCst);
        slot.inside.enclave.store(self.handle, Ordering::SeqCst);
    }

    /// Counts as having left and come back: what the thread touches next, it touches by page tables as they
    /// are now. Does nothing outside.
    pub(super) fn refresh(&self) {
        let (Some(slot), Some(window)) = (self.slot, self.live_window()) else { return };
        if slot.inside.enclave.load(Ordering::Relaxed) != 0 {
            slot.inside.epoch.store(window.epoch.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    /// Tells the machine that the thread is outside.
    pub(super) fn unpublish(&self) {
        if let Some(slot) = self.slot {
            slot.inside.enclave.store(0, Ordering::SeqCst);
        }
    }
}
