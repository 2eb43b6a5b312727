//! Every way in which this driver goes past Linux and a program could notice, each with a switch.
//!
//! Repairs of Linux's races and leaks have none: they are told where they are made.

use usgx_epc::Policy;

/// The switches. [`Default`] is what serves programs best, [`linux`](Self::linux) what Linux does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Behaviour {
    /// SGX2 ioctls that meet a page in reclaim, or no free EPC page, wait for the one and reclaim for the other.
    /// They fail with `EAGAIN` when a signal comes meanwhile. Default: yes. Linux: `EAGAIN` at once.
    pub ioctls_wait: bool,
    /// Page faults do the same, and the thread repeats its access when the page is there. Default: yes. Linux:
    /// the thread faults again and again, until `ksgxd` has freed a page.
    pub faults_wait: bool,
    /// One ETRACK, and one round of kicks, for all pages of an SGX2 ioctl. Default: yes. Linux: for each page.
    pub track_once: bool,
    /// How many pages after a missing one a fault adds besides (EAUG), where there are none and EPC is plenty.
    /// The enclave still has to accept each of them. Default and Linux: 0.
    pub fault_around: u32,
    /// VA pages are evicted too, and come back when a version in them is needed. Default: yes. Linux: they stay in the
    /// EPC as long as their enclave lives.
    pub evict_va: bool,
    /// An enclave that is not initialised yet leaves the EPC altogether, too; what adds pages to it or initialises it
    /// brings its SECS back. Default: yes. Linux: the SECS and VA pages stay, and who opens enclaves and never
    /// initialises them can fill the EPC for good.
    pub evict_unfinished: bool,
    /// Marks and batches of the reclaimer.
    pub reclaim: Policy,
}

impl Behaviour {
    /// Linux's behaviour in everything.
    #[must_use]
    pub const fn linux() -> Self {
        Self {
            ioctls_wait: false,
            faults_wait: false,
            track_once: false,
            fault_around: 0,
            evict_va: false,
            evict_unfinished: false,
            reclaim: Policy::linux(),
        }
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            ioctls_wait: true,
            faults_wait: true,
            track_once: true,
            fault_around: 0,
            evict_va: true,
            evict_unfinished: true,
            reclaim: Policy::default(),
        }
    }
}
