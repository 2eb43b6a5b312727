//! The books of a view: which of an enclave's pages processes can see, where, and who asked for them when.
//!
//! A view has them behind its lock. A TCS is not in the view but in the window, which has a number of entries for TCS;
//! the books deal those out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use usgx_isa::{EpcPage, Fault, LinAddr};
use usgx_sys::uffd::Userfaultfd;
use usgx_wire::window::{MAX_TCS, entry};

use crate::clients::FaultClock;
use crate::hardware::departures::Departures;
use crate::hardware::ranges::RangeSet;
use crate::hardware::window::Window;
use crate::page_map::PageMap;
use crate::system::Hw;

/// A page among the last this many that a thread faulted in is not aged: an instruction may need several.
const RECENT_FAULTS: u32 = 16;
/// How often a page is spared for that reason before it is aged all the same, so that a thread that has stopped
/// faulting does not keep its last pages for ever.
const MAX_SPARED: u8 = 2;
/// This many TCS entries of a window stay unused after they were in use, the last ones: a thread that has looked at
/// one before it was taken away then finds it empty, rather than with another TCS in it.
const RESTING_TCS: usize = 64;

/// Who asks for a page: through whose page tables it comes, and whose clock ticks.
pub(crate) struct Faulter<'a> {
    pub(crate) client: u64,
    pub(crate) clock: &'a Arc<FaultClock>,
}

/// Where the enclave is.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) base: u64,
    pub(super) size: u64,
    pub(super) window: Window,
}

/// A page that processes can see. There may be millions, so it is small.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) page: EpcPage,
    /// What the window says of it.
    pub(super) entry: u32,
    /// When a thread faulted it in, and by which clock.
    pub(super) faulted: u32,
    pub(super) clock: u32,
    /// The window's TCS, if the page is one.
    pub(super) tcs: Option<u16>,
    pub(super) spared: u8,
}

const _: () = assert!(size_of::<Option<Mapped>>() <= 24);

/// Where one process has the enclave mapped.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) uffd: Arc<Userfaultfd>,
    pub(super) ranges: RangeSet,
}

#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) mapped: PageMap<Mapped>,
    /// Their bytes may be in the view, in frames, or in both.
    pub(super) leaving: Departures,
    /// The clocks by which pages were faulted in, by number; those of threads that are gone are removed now and then.
    pub(super) clocks: HashMap<u32, Weak<FaultClock>>,
    /// By client number.
    pub(super) registrations: HashMap<u64, Registration>,
    /// TCS entries of the window that were used and are free again, and the first one never used.
    free_tcs: VecDeque<u16>,
    next_tcs: usize,
}

/// Tells whether pages are among the last that the thread faulted in that needed them. Neighbours are usually one
/// thread's.
pub(super) struct Recent<'a> {
    clocks: &'a HashMap<u32, Weak<FaultClock>>,
    /// The clock that was looked at last, and its time unless its thread is gone.
    last: Option<(u32, Option<u32>)>,
}

impl<'a> Recent<'a> {
    pub(super) fn new(clocks: &'a HashMap<u32, Weak<FaultClock>>) -> Self {
        Self { clocks, last: None }
    }

    /// Whether a page stays for that reason, once more.
    pub(super) fn spares(&mut self, mapped: &mut Mapped) -> bool {
        let spared = mapped.spared < MAX_SPARED && self.has(mapped);
        mapped.spared += u8::from(spared);
        spared
    }

    fn has(&mut self, mapped: &Mapped) -> bool {
        let now = match self.last {
            Some((clock, now)) if clock == mapped.clock => now,
            _ => {
                let clock = self.clocks.get(&mapped.clock).and_then(Weak::upgrade);
                let now = clock.map(|clock| clock.now());
                self.last = Some((mapped.clock, now));
                now
            }
        };
        now.is_some_and(|now| now.wrapping_sub(mapped.faulted) < RECENT_FAULTS)
    }
}

impl Books {
    /// Counts a fault; the clock's number, and the fault's.
    pub(super) fn tick(&mut self, faulter: &Faulter<'_>) -> (u32, u32) {
        let id = faulter.clock.id();
        if !self.clocks.contains_key(&id) {
            self.clocks.retain(|_, clock| clock.strong_count() > 0);
            self.clocks.insert(id, Arc::downgrade(faulter.clock));
        }
        (id, faulter.clock.tick())
    }

    /// Where processes have mapped what is between two addresses.
    pub(super) fn ranges(&self, start: u64, end: u64) -> Vec<(Arc<Userfaultfd>, u64, u64)> {
        let of = |registration: &Registration| {
            let uffd = Arc::clone(&registration.uffd);
            let ranges = registration.ranges.intersect(start, end);
            ranges.map(move |(start, end)| (Arc::clone(&uffd), start, end)).collect::<Vec<_>>()
        };
        self.registrations.values().flat_map(of).collect()
    }

    /// The userfaultfd of a process, if it has registered the page at `addr`.
    pub(super) fn uffd(&self, client: u64, addr: u64) -> Option<Arc<Userfaultfd>> {
        let registration = self.registrations.get(&client)?;
        registration.ranges.has_page(addr).then(|| Arc::clone(&registration.uffd))
    }

    /// Puts a TCS into the window.
    pub(super) fn show_tcs(
        &mut self,
        place: &Place,
        hw: &Hw,
        index: u32,
        addr: u64,
        page: EpcPage,
        faulter: Option<&Faulter<'_>>,
    ) {
        // No clock has the number 0.
        let (clock, faulted) = faulter.map_or((0, 0), |faulter| self.tick(faulter));
        if let Some(mapped) = self.mapped.get_mut(index.into()) {
            (mapped.clock, mapped.faulted) = (clock, faulted);
            return;
        }
        let address = LinAddr(addr);
        let tcs = match hw.tcs(page, address) {
            Ok(tcs) => Some(tcs),
            Err(Fault::Gp) => None,
            // Not a TCS that anybody can enter through; whoever asked will look at the EPCM.
            Err(Fault::Pf(_) | Fault::Ud) => return,
        };
        let slot = self.take_tcs_slot(place, hw);
        place.window.show_tcs(slot, address, tcs.as_ref());
        let entry = entry::TCS | entry::PRESENT | u32::from(slot) << entry::TCS_SHIFT;
        let mapped = Mapped { page, entry, faulted, clock, tcs: Some(slot), spared: 0 };
        self.mapped.insert(index.into(), mapped);
        place.window.set_entry(index, entry);
    }

    /// A free TCS entry of the window; takes one from another TCS if there is none.
    fn take_tcs_slot(&mut self, place: &Place, hw: &Hw) -> u16 {
        loop {
            let is_full = self.next_tcs == MAX_TCS;
            if let Some(slot) =
                (is_full || self.free_tcs.len() > RESTING_TCS).then(|| self.free_tcs.pop_front()).flatten()
            {
                return slot;
            }
            if !is_full {
                self.next_tcs += 1;
                return u16::try_from(self.next_tcs - 1).expect("MAX_TCS is far below 65,536");
            }
            let victim =
                self.mapped.iter().find(|(_, mapped)| mapped.tcs.is_some()).map(|(index, _)| index as u32);
            self.hide_tcs(
                place,
                hw,
                victim.expect("all entries are in use, so there is one"),
                entry::PRESENT,
            );
        }
    }

    /// Takes a TCS out of the window and stores what became of it.
    pub(super) fn hide_tcs(&mut self, place: &Place, hw: &Hw, index: u32, rest: u32) {
        let Some(mapped) = self.mapped.remove(index.into()) else { return };
        let Some(slot) = mapped.tcs else { return };
        // The entry first: whoever finds it gone asks; whoever still follows it finds the word gone.
        place.window.set_entry(index, rest);
        let taken = place.window.take_tcs(slot);
        self.free_tcs.push_back(slot);
        hw.store_tcs(mapped.page, u64::from(taken.active), taken.cssa, taken.aep);
    }
}
