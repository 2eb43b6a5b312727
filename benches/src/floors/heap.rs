//! The least that it takes to let an enclave's heap grow and shrink: intercepted instructions, questions to the machine
//! and their answers, and the mapping or unmapping of memory that two processes share.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::floors::raw::{Partner, asked};
use crate::measure::Activity;
use crate::raw::{ForeignView, IllegalInstruction, PAGE_SIZE, View};

/// Pages in turn.
const PAGES: usize = 256;

/// What one page takes at least, beside mapping or unmapping it.
#[derive(Clone, Copy)]
pub(crate) struct PerPage {
    /// Instructions that are intercepted: ENCLU, an ioctl.
    pub(crate) traps: u32,
    /// Questions to the machine, and the machine's own to the program.
    pub(crate) round_trips: u32,
}

/// `count` pages come, each by the answer to a question, which is one of the round trips, and are used.
pub(crate) fn grow(count: usize, each: PerPage) -> Result<Activity> {
    let view = View::new(PAGES)?;
    let theirs = view.try_clone()?;
    let machine = Partner::start(move |words| {
        // If this is refused, whoever uses the page ends by SIGBUS.
        let _ = theirs.copy_in(asked(words) as usize, &[0; PAGE_SIZE]);
    })?;
    let more = Overhead::new(PerPage { round_trips: each.round_trips - 1, ..each })?;
    Ok(Box::new(move |times| {
        let (mut left, mut time) = (times as usize * count, Duration::ZERO);
        while left > 0 {
            let batch = left.min(PAGES);
            let start = Instant::now();
            for page in 0..batch {
                machine.ask(page as u64);
                view.touch(page);
            }
            time += start.elapsed() + more.of(batch);
            view.punch(0, batch)?;
            left -= batch;
        }
        Ok(time)
    }))
}

/// `count` pages of another process go, so many at a time.
pub(crate) fn shrink(count: usize, each: PerPage, at_a_time: usize) -> Result<Activity> {
    let (view, overhead) = (ForeignView::new(PAGES)?, Overhead::new(each)?);
    let content = Box::new([0x5a; PAGE_SIZE]);
    let step = at_a_time.min(PAGES);
    Ok(Box::new(move |times| {
        let (mut left, mut time) = (times as usize * count, Duration::ZERO);
        while left > 0 {
            let batch = left.min(PAGES);
            (0..batch).try_for_each(|page| view.copy_in(page, &content))?;
            let start = Instant::now();
            for first in (0..batch).step_by(step) {
                let pages = step.min(batch - first);
                view.write_protect(first, pages)?;
                view.punch(first, pages)?;
            }
            time += start.elapsed() + overhead.of(batch);
            left -= batch;
        }
        Ok(time)
    }))
}

/// Traps and round trips.
struct Overhead {
    trap: IllegalInstruction,
    partner: Partner,
    each: PerPage,
}

impl Overhead {
    fn new(each: PerPage) -> Result<Self> {
        Ok(Self { trap: IllegalInstruction::install()?, partner: Partner::start(|_| {})?, each })
    }

    /// Those of so many pages.
    fn of(&self, pages: usize) -> Duration {
        let start = Instant::now();
        for _ in 0..pages {
            (0..self.each.traps).for_each(|_| self.trap.raise());
            (0..self.each.round_trips).for_each(|_| self.partner.round_trip());
        }
        start.elapsed()
    }
}
