//! A processor that refuses a leaf when a test says so, as hardware may for reasons that nobody foresees.
//!
//! A refused leaf has changed nothing and raises `#GP`. The leaves that the driver uses for paging can be refused; all
//! others are the processor's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use usgx_isa::layout::{Einittoken, Secinfo, Sigstruct};
use usgx_isa::{Encls, EpcPage, EvictedPage, Fault, LeafError, LinAddr, Page, VaSlot};

use crate::system::SimHw;

/// A leaf that can be refused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Refusable {
    /// EPA.
    Epa,
    /// EBLOCK.
    Eblock,
    /// ETRACK.
    Etrack,
    /// EWB.
    Ewb,
    /// ELDU.
    Eldu,
    /// EREMOVE.
    Eremove,
}

#[derive(Debug, Default)]
struct Plan {
    /// How often each leaf has run.
    calls: BTreeMap<Refusable, u64>,
    /// Which of its runs are refused.
    refused: BTreeMap<Refusable, BTreeSet<u64>>,
}

/// What will be refused. Cloning gives another reference.
#[derive(Clone, Default)]
pub struct Refusals {
    plan: Arc<Mutex<Plan>>,
    before_evicting: Arc<OnceLock<Step>>,
}

type Step = Box<dyn Fn(Refusable) + Send + Sync>;

impl Refusals {
    /// Has each EBLOCK and EWB run `step` first. Of child pages the driver runs them without a lock, so a test can let
    /// other threads go on there, or do what they might do.
    ///
    /// # Panics
    /// If something is run there already.
    pub fn before_evicting(&self, step: impl Fn(Refusable) + Send + Sync + 'static) {
        assert!(self.before_evicting.set(Box::new(step)).is_ok(), "one step for a system");
    }

    fn pass_evicting(&self, leaf: Refusable) -> Result<(), Fault> {
        if let Some(step) = self.before_evicting.get() {
            step(leaf);
        }
        self.pass(leaf)
    }

    /// Refuses `leaf` the `nth` time from now, counted from 1.
    pub fn refuse(&self, leaf: Refusable, nth: u64) {
        let mut plan = self.plan.lock();
        let run = plan.calls.get(&leaf).copied().unwrap_or(0) + nth;
        plan.refused.entry(leaf).or_default().insert(run);
    }

    /// Counts a run of `leaf`, and refuses it if that was asked for.
    fn pass(&self, leaf: Refusable) -> Result<(), Fault> {
        let mut plan = self.plan.lock();
        let run = plan.calls.entry(leaf).or_default();
        *run += 1;
        let run = *run;
        let refused = plan.refused.get(&leaf).is_some_and(|runs| runs.contains(&run));
        if refused { Err(Fault::Gp) } else { Ok(()) }
    }
}

/// The processor of a simulated system, as its driver sees it.
pub struct Refusing {
    hw: Arc<SimHw>,
    refusals: Refusals,
}

impl Refusing {
    pub(crate) fn new(hw: Arc<SimHw>, refusals: Refusals) -> Self {
        Self { hw, refusals }
    }
}

impl Encls for Refusing {
    fn ecreate(&self, target: EpcPage, secs: &Page, secinfo: &Secinfo) -> Result<(), Fault> {
        self.hw.ecreate(target, secs, secinfo)
    }

    fn eadd(
        &self,
        target: EpcPage,
        secs: EpcPage,
        linaddr: LinAddr,
        contents: &Page,
        secinfo: &Secinfo,
    ) -> Result<(), Fault> {
        self.hw.eadd(target, secs, linaddr, contents, secinfo)
    }

    fn eextend(&self, secs: EpcPage, target: EpcPage, offset: u16) -> Result<(), Fault> {
        self.hw.eextend(secs, target, offset)
    }

    fn eextend_page(&self, secs: EpcPage, target: EpcPage) -> Result<(), Fault> {
        self.hw.eextend_page(secs, target)
    }

    fn einit(
        &self,
        secs: EpcPage,
        sigstruct: &Sigstruct,
        token: &Einittoken,
        launch_hash: [u64; 4],
    ) -> Result<(), LeafError> {
        self.hw.einit(secs, sigstruct, token, launch_hash)
    }

    fn eremove(&self, page: EpcPage) -> Result<(), LeafError> {
        self.refusals.pass(Refusable::Eremove)?;
        self.hw.eremove(page)
    }

    fn edbgrd(&self, page: EpcPage, offset: u16) -> Result<u64, LeafError> {
        self.hw.edbgrd(page, offset)
    }

    fn edbgwr(&self, page: EpcPage, offset: u16, value: u64) -> Result<(), LeafError> {
        self.hw.edbgwr(page, offset, value)
    }

    fn epa(&self, page: EpcPage) -> Result<(), Fault> {
        self.refusals.pass(Refusable::Epa)?;
        self.hw.epa(page)
    }

    fn eblock(&self, page: EpcPage) -> Result<(), LeafError> {
        self.refusals.pass_evicting(Refusable::Eblock)?;
        self.hw.eblock(page)
    }

    fn etrack(&self, secs: EpcPage) -> Result<(), LeafError> {
        self.refusals.pass(Refusable::Etrack)?;
        self.hw.etrack(secs)
    }

    fn ewb(&self, page: EpcPage, slot: VaSlot, out: &mut EvictedPage) -> Result<LinAddr, LeafError> {
        self.refusals.pass_evicting(Refusable::Ewb)?;
        self.hw.ewb(page, slot, out)
    }

    fn eldu(
        &self,
        target: EpcPage,
        slot: VaSlot,
        linaddr: LinAddr,
        secs: Option<EpcPage>,
        evicted: &EvictedPage,
    ) -> Result<(), LeafError> {
        self.refusals.pass(Refusable::Eldu)?;
        self.hw.eldu(target, slot, linaddr, secs, evicted)
    }

    fn eldb(
        &self,
        target: EpcPage,
        slot: VaSlot,
        linaddr: LinAddr,
        secs: Option<EpcPage>,
        evicted: &EvictedPage,
    ) -> Result<(), LeafError> {
        self.hw.eldb(target, slot, linaddr, secs, evicted)
    }

    fn eaug(&self, target: EpcPage, secs: EpcPage, linaddr: LinAddr) -> Result<(), Fault> {
        self.hw.eaug(target, secs, linaddr)
    }

    fn emodpr(&self, page: EpcPage, secinfo: &Secinfo) -> Result<(), LeafError> {
        self.hw.emodpr(page, secinfo)
    }

    fn emodt(&self, page: EpcPage, secinfo: &Secinfo) -> Result<(), LeafError> {
        self.hw.emodt(page, secinfo)
    }
}
