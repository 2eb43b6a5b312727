//! Whether two reclaiming threads reclaim faster than one by as much as the system calls and the cryptography allow.
//!
//! The reclaiming threads are the machine's own, one for each request to shrink; they share the list of all pages and
//! take 16 pages at a time from it, since no page is missing. The floor's threads take away as many pages of as many
//! processes in the same way: 16 pages at a time, from one list, by the same system calls, and encrypt them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use ring::aead::LessSafeKey;
use usgx_sys::arena::Arena;

use crate::floors::crypto::{page_key, seal_page};
use crate::guest::image::Image;
use crate::measure::{Effort, Measured};
use crate::product::{Machine, Program};
use crate::raw::ForeignView;
use crate::statistics::median;

/// Pages of all enclaves together.
const PAGES: usize = 8192;
/// Pages that a thread takes at a time.
const BATCH: usize = 16;
/// The speed-up of the work is at least nine tenths of the floor's.
const BOUND: f64 = 1.0 / 0.9;

/// One enclave, and two.
pub(crate) fn measure(effort: Effort) -> Result<Vec<Measured>> {
    let pages = if effort.is_small { 256 } else { PAGES };
    [1, 2].into_iter().map(|enclaves| compare(enclaves, pages, effort)).collect()
}

fn compare(enclaves: usize, pages: usize, effort: Effort) -> Result<Measured> {
    let floor = Floor::new(enclaves, pages)?;
    let mut work = Work::new(enclaves, pages)?;
    let (mut floors, mut works, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        // Who goes first changes from round to round.
        let (floor, work) = if round % 2 == 0 {
            let floor = floor.run(1)?.as_secs_f64() / floor.run(2)?.as_secs_f64();
            (floor, work.run(1)? / work.run(2)?)
        } else {
            let (two, one) = (work.run(2)?, work.run(1)?);
            let (floor_two, floor_one) = (floor.run(2)?, floor.run(1)?);
            (floor_one.as_secs_f64() / floor_two.as_secs_f64(), one / two)
        };
        floors.push(floor);
        works.push(work);
        ratios.push(floor / work);
    }
    let middle = |samples: &[f64]| median(samples).map(|median| median.middle).context("no rounds");
    let ratio = median(&ratios).context("no rounds")?;
    Ok(Measured {
        name: format!("reclaim_scaling, {enclaves} enclaves (speed-up)"),
        unit: "times",
        value_ns: Some(middle(&works)?),
        floor_ns: middle(&floors)?,
        ratio: Some(ratio.middle),
        ratio_low: Some(ratio.low),
        ratio_high: Some(ratio.high),
        bound: Some(BOUND),
    })
}

/// Pages of other processes.
struct Floor {
    views: Vec<ForeignView>,
    arena: Arc<Arena>,
    key: LessSafeKey,
    pages: usize,
}

impl Floor {
    fn new(processes: usize, pages: usize) -> Result<Self> {
        let views = (0..processes).map(|_| ForeignView::new(pages / processes)).collect::<Result<_>>()?;
        Ok(Self { views, arena: Arena::new(pages, pages)?, key: page_key()?, pages })
    }

    /// Takes all pages away with so many threads; how long that took.
    fn run(&self, threads: usize) -> Result<Duration> {
        self.views.iter().try_for_each(ForeignView::map_all)?;
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.take_away(&next))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a panic"))?)
        })?;
        Ok(start.elapsed())
    }

    /// A thread's share: batches of the processes in turn.
    fn take_away(&self, next: &AtomicUsize) -> Result<()> {
        loop {
            let batch = next.fetch_add(1, Relaxed);
            if batch * BATCH >= self.pages {
                return Ok(());
            }
            let (view, page) = (&self.views[batch % self.views.len()], batch / self.views.len() * BATCH);
            let mut frames = self.arena.take_many(BATCH);
            view.write_protect(page, BATCH)?;
            view.copy_to(page, &mut frames)?;
            view.punch(page, BATCH)?;
            for (number, frame) in (batch * BATCH..).zip(&mut frames) {
                seal_page(&self.key, number as u64, &mut frame[..])?;
            }
        }
    }
}

/// Programs with an enclave each, whose pages are all mapped, and then all evicted.
struct Work {
    machine: std::rc::Rc<Machine>,
    programs: Vec<Program>,
    pages: usize,
}

impl Work {
    fn new(enclaves: usize, pages: usize) -> Result<Self> {
        let machine = Machine::start(2 * pages)?;
        let mut programs = Vec::new();
        for _ in 0..enclaves {
            let mut program = machine.program()?;
            let image = Image { data_pages: pages / enclaves, measured: false, heap_pages: 0 };
            program.prepare("measured", image)?;
            program.step("load measured")?;
            programs.push(program);
        }
        Ok(Self { machine, programs, pages })
    }

    /// Evicts all pages with so many threads; seconds for each page.
    fn run(&mut self, threads: usize) -> Result<f64> {
        // In turns, so that the list of all pages has batches of the enclaves in turn.
        for first in (0..self.pages / self.programs.len()).step_by(BATCH) {
            for program in &mut self.programs {
                program.step(&format!("touch measured {first} {BATCH}"))?;
            }
        }
        let before = self.machine.stats()?.evictions;
        let (socket, start) = (self.machine.socket(), Instant::now());
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| Machine::shrink(&socket))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a panic"))?)
        })?;
        let time = start.elapsed();
        let evictions = self.machine.stats()?.evictions - before;
        ensure!(evictions >= self.pages as u64, "{evictions} of {} pages evicted", self.pages);
        Ok(time.as_secs_f64() / evictions as f64)
    }
}
