//! Whether the cost of a page stays the same when the EPC and the number of enclaves grow.
//!
//! A page is written back and brought in again, by driver and EPC manager, in a program that goes round more pages than
//! the EPC has. What is around them costs the same for every page (`system`): page tables that remember nothing, a store
//! that is one look-up, and a fixed set of frames as contents, so that an EPC of 16 GiB fits into any computer. With the
//! software processor this is the whole cost, cryptography included; with a processor that does nothing (`idle`) it is
//! the bookkeeping alone. No page is ever young, or laps of the reclaimer would end at different moments.

mod idle;
mod system;

use anyhow::{Context as _, Result, ensure};
use usgx_driver::{Driver, Enclave, FaultOutcome, Prot};
use usgx_isa::Encls;
use usgx_testkit::Image;

use self::idle::IdleProcessor;
use self::system::{Fixed, Parts, software};
use crate::measure::{Activity, Case, Effort, Measured, in_turn};
use crate::raw::{PAGE_SIZE, thread_time};

/// Sizes of the EPC in MiB, the first for comparison.
const SIZES: [usize; 3] = [64, 1 << 10, 16 << 10];
/// Numbers of enclaves, the first for comparison.
const ENCLAVES: [usize; 3] = [1, 100, 10_000];
/// Pages that are evicted at any time: 256 MiB, more than any cache holds, and as many as 10,000 enclaves have at least
/// beside the smallest EPC. So a page's contents are as cold in every case, and what differs is the rest.
const SURPLUS: usize = 1 << 16;
/// Pages of an enclave beside its data: SECS, VA page, TCS, and the page with which it is built.
const OWN_PAGES: usize = 4;
/// The fewest data pages of an enclave.
const LEAST_PAGES: usize = 4;

/// So many of each are made, and measured in turn: two that are alike differ by up to a tenth, by where their memory is.
const INSTANCES: usize = 3;

/// How much more a page may cost than with the smallest EPC and one enclave.
const WHOLE_BOUND: f64 = 1.2;
const BOOKS_BOUND: f64 = 2.0;

/// The whole cost of a page: each size and number against the smallest.
pub(crate) fn whole(effort: Effort) -> Result<Vec<Measured>> {
    compare("page_cost", WHOLE_BOUND, effort, software)
}

/// The same without the processor's part.
pub(crate) fn books(effort: Effort) -> Result<Vec<Measured>> {
    compare("page_books", BOOKS_BOUND, effort, |_| IdleProcessor)
}

fn compare<H: Encls + 'static>(
    name: &str,
    bound: f64,
    effort: Effort,
    processor: impl Fn(u32) -> H,
) -> Result<Vec<Measured>> {
    let sizes: &[usize] = if effort.is_small { &[4, 8] } else { &SIZES };
    let enclaves: &[usize] = if effort.is_small { &[1, 10] } else { &ENCLAVES };
    let mut results = Vec::new();
    for &size in sizes {
        for &count in enclaves {
            if (size, count) == (sizes[0], enclaves[0]) {
                continue;
            }
            let several = |size, count| -> Result<Activity> {
                let instances = (0..INSTANCES).map(|_| Paged::new(size, count, &processor)?.activity());
                Ok(in_turn(instances.collect::<Result<_>>()?))
            };
            let (floor, work) = (several(sizes[0], enclaves[0])?, several(size, count)?);
            let name = format!("{name}, {size} MiB, {count} enclaves");
            results.push(Case::floor(floor).with_work(work, bound).measure(&name, effort)?);
        }
    }
    Ok(results)
}

/// Enclaves with more pages than the EPC.
struct Paged<H: Encls + 'static> {
    driver: Driver<Fixed<H>>,
    parts: Parts,
    enclaves: Vec<Enclave<Fixed<H>>>,
    /// About as many pages are evicted at any time.
    evicted: usize,
    /// Times that ksgxd was woken and has run.
    wakes: usize,
}

impl<H: Encls + 'static> Paged<H> {
    /// Builds them: each initialised with one page, to which it adds the others.
    fn new(mebibytes: usize, count: usize, processor: impl Fn(u32) -> H) -> Result<Self> {
        let epc = mebibytes << 20 >> 12;
        let evicted = SURPLUS.min(4 * epc);
        let pages = ((epc + evicted) / count).saturating_sub(OWN_PAGES).max(LEAST_PAGES);
        let (driver, parts) = system::build(u32::try_from(epc)?, evicted, processor);
        let mut paged = Self { driver, parts, enclaves: Vec::with_capacity(count), evicted, wakes: 0 };
        let size = ((pages + 2) * PAGE_SIZE).next_power_of_two() as u64;
        let mut image = Image::data(size, 1);
        image.size = size;
        let sigstruct = image.sigstruct();
        for _ in 0..count {
            let enclave = paged.driver.open().ok().context("opening an enclave")?;
            system::load(&enclave, &image, &sigstruct).context("building an enclave")?;
            for index in 2..2 + pages as u64 {
                paged.fault(&enclave, size + index * PAGE_SIZE as u64)?;
            }
            paged.enclaves.push(enclave);
        }
        Ok(paged)
    }

    fn fault(&mut self, enclave: &Enclave<Fixed<H>>, addr: u64) -> Result<()> {
        let outcome = enclave.fault(addr, Prot::R | Prot::W);
        ensure!(outcome == FaultOutcome::Mapped, "a fault at {addr:#x} ends with {outcome:?}");
        // As ksgxd, which sleeps until free pages are few.
        let wakes = self.parts.platform.wakes();
        if wakes != self.wakes {
            self.wakes = wakes;
            while self.driver.ksgxd_should_run() {
                self.driver.ksgxd_pass();
            }
        }
        Ok(())
    }

    /// Brings in the page that was evicted first.
    fn go_on(&mut self) -> Result<()> {
        let (id, index) = self.parts.store.oldest().context("no page is evicted")?;
        let enclave = self.enclaves[system::number(id)].clone();
        let base = enclave.base_size().context("an enclave without a place")?.0;
        self.fault(&enclave, base + index * PAGE_SIZE as u64)
    }

    /// Goes round, again and again. A unit is one page written back and one brought in, whatever kind of page.
    fn activity(mut self) -> Result<Activity> {
        // Once to begin with: the first touch of memory costs more than all else.
        (0..self.evicted).try_for_each(|_| self.go_on())?;
        Ok(Box::new(move |times| {
            let (start, before) = (thread_time()?, self.parts.store.moved());
            (0..times).try_for_each(|_| self.go_on())?;
            let moved = (self.parts.store.moved() - before) as f64 / 2.0;
            ensure!(moved > 0.0 || times == 0, "no page has moved");
            Ok((thread_time()? - start).mul_f64(f64::from(times) / moved.max(1.0)))
        }))
    }
}
