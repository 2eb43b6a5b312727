//! Counters: what the driver has done, for the operator. All accesses are relaxed; nothing is decided by them.
//!
//! They add up, which `tests/balance.rs` holds. For each enclave, with the SECS counted as a page:
//!
//! ```text
//! 1 + pages_added - pages_removed = resident + SECS resident + evictions - loads
//! VA pages = VA pages resident + va_evictions - va_loads
//! evictions  = evictions_at_once + evictions_after_etrack + evictions_after_kick
//! epc_faults = remaps + fault_loads + fault_augments + retries + fault_failures
//! ```

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::event::{After, Event, FaultEnd};

/// Makes of one list the live counters, a reading of them, and their names.
macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident,)+) => {
        /// The live counters of an enclave, or of all.
        #[derive(Default)]
        pub(crate) struct Tally {
            $($name: AtomicU64,)+
        }

        /// A reading of the counters of an enclave, or of all; they are not read at one instant.
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
        pub struct Counts {
            $($(#[doc = $help])+ pub $name: u64,)+
        }

        impl Tally {
            pub(crate) fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Relaxed),)+ }
            }
        }

        impl Counts {
            /// The names of all counters and what they count, in the order of [`fields`](Self::fields).
            pub const NAMES: &'static [(&'static str, &'static str)] =
                &[$((stringify!($name), concat!($($help),+)),)+];

            /// All counters, each with its name.
            pub fn fields(&mut self) -> impl Iterator<Item = (&'static str, &mut u64)> {
                [$((stringify!($name), &mut self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Pages added, by EADD and EAUG.
    pages_added,
    /// Pages added by EAUG.
    pages_augmented,
    /// Pages removed at the program's wish.
    pages_removed,
    /// Page faults.
    epc_faults,
    /// Faults on a page that was in the EPC and only had to be mapped.
    remaps,
    /// Faults on a page that had to be brought back.
    fault_loads,
    /// Faults that added a page.
    fault_augments,
    /// Faults that the program had to repeat.
    retries,
    /// Faults that ended in SIGBUS.
    fault_failures,
    /// Pages written back by EWB.
    evictions,
    /// Pages that EWB took at once: tracking was complete.
    evictions_at_once,
    /// Pages that EWB took after an ETRACK.
    evictions_after_etrack,
    /// Pages that EWB took after a kick.
    evictions_after_kick,
    /// Pages brought back by ELDU.
    loads,
    /// Pages whose contents were lost.
    pages_lost,
    /// VA pages written back by EWB, which evictions do not count.
    va_evictions,
    /// VA pages brought back by ELDU, which loads do not count.
    va_loads,
    /// VA pages whose contents were lost, and with them the pages whose versions they held.
    va_lost,
    /// Tracking cycles (ETRACK).
    etracks,
    /// Times that threads were made to leave an enclave.
    kicks,
    /// Times that a fault or an ioctl waited for a page in reclaim, or reclaimed for one of its own.
    waits,
}

fn bump(counters: &[&AtomicU64]) {
    for counter in counters {
        counter.fetch_add(1, Relaxed);
    }
}

impl Tally {
    /// Counts an event.
    pub(crate) fn count(&self, event: &Event<'_>) {
        match event {
            Event::Open | Event::Create { .. } | Event::Init | Event::Destroy { .. } => {}
            Event::Add { .. } => bump(&[&self.pages_added]),
            Event::Augment { .. } => bump(&[&self.pages_added, &self.pages_augmented]),
            Event::Remove { .. } => bump(&[&self.pages_removed]),
            Event::Fault { end, .. } => {
                let end = match end {
                    FaultEnd::Remapped => &self.remaps,
                    FaultEnd::Loaded => &self.fault_loads,
                    FaultEnd::Augmented => &self.fault_augments,
                    FaultEnd::Retry => &self.retries,
                    FaultEnd::Failed => &self.fault_failures,
                };
                bump(&[&self.epc_faults, end]);
            }
            Event::Evict { after, .. } => {
                let after = match after {
                    After::Nothing => &self.evictions_at_once,
                    After::Etrack => &self.evictions_after_etrack,
                    After::Kick => &self.evictions_after_kick,
                };
                bump(&[&self.evictions, after]);
            }
            Event::Load { .. } => bump(&[&self.loads]),
            Event::Lose { .. } => bump(&[&self.pages_lost]),
            Event::EvictVa { .. } => bump(&[&self.va_evictions]),
            Event::LoadVa { .. } => bump(&[&self.va_loads]),
            Event::LoseVa { .. } => bump(&[&self.va_lost]),
            Event::Track => bump(&[&self.etracks]),
            Event::Kick => bump(&[&self.kicks]),
            Event::Wait => bump(&[&self.waits]),
        }
    }
}

/// The whole driver, and the EPC. Its counters read as its own fields.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// What has happened to enclaves, those that are gone included.
    pub counts: Counts,
    /// Enclaves that are open now.
    pub enclaves: u64,
    /// VA pages in the EPC now, root VA pages included.
    pub va_pages: u64,
    /// EPC pages in all sections.
    pub total_pages: u64,
    /// EPC pages that are free now.
    pub free_pages: u64,
    /// EPC pages that are virtual EPCs', those included that wait for another's children to go.
    pub raw_pages: u64,
    /// The most EPC pages in use at any time.
    pub peak_pages: u64,
    /// EPC pages that could not be removed, lost until a restart.
    pub leaked_pages: u64,
    /// EPC pages that are broken and were retired.
    pub poisoned_pages: u64,
    /// Reclaim passes.
    pub reclaim_scans: u64,
    /// Reclaim passes that somebody made who needed a page at once.
    pub direct_reclaims: u64,
    /// Pages that reclaim passes looked at: the sum of the next five, and of pages whose enclave was ending.
    pub pages_scanned: u64,
    /// Pages looked at that had been used since the last look.
    pub pages_young: u64,
    /// Old pages that could not be taken for want of backing store.
    pub pages_refused: u64,
    /// Old pages that can not go before others of their enclave: version arrays in use.
    pub pages_needed: u64,
    /// Old pages that could not be written back and stayed.
    pub pages_kept: u64,
    /// Old pages that were written back.
    pub pages_reclaimed: u64,
}

impl core::ops::Deref for Stats {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.counts
    }
}

/// One enclave. Its counters read as its own fields.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EnclaveStats {
    /// What has happened to it.
    pub counts: Counts,
    /// First address and bytes, once it is created.
    pub place: Option<(u64, u64)>,
    /// Whether it can be entered.
    pub initialized: bool,
    /// Pages it has, with its SECS.
    pub pages: u64,
    /// Pages of these that are in the EPC, without SECS.
    pub resident: u64,
    /// Whether its SECS is in the EPC.
    pub secs_resident: bool,
    /// VA pages.
    pub va_pages: u64,
    /// VA pages of these that are in the EPC.
    pub va_resident: u64,
}

impl EnclaveStats {
    /// EPC pages that it takes, of all kinds.
    #[must_use]
    pub fn epc_pages(&self) -> u64 {
        self.resident + self.va_resident + u64::from(self.secs_resident)
    }

    /// Pages of it that are in the backing store, or lost.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.pages.saturating_sub(self.resident + u64::from(self.secs_resident))
    }
}

impl core::ops::Deref for EnclaveStats {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.counts
    }
}
