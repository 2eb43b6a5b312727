//! The least that it takes to give a process a page, and to take it back without losing a write.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, Result};
use usgx_sys::arena::{Arena, Frame};

use crate::floors::crypto::{page_key, seal_page};
use crate::floors::raw::FaultingMemory;
use crate::measure::{Activity, timed};
use crate::raw::{ForeignView, PAGE_SIZE, View, thread_time};
use crate::work::RECLAIM_EPC;

/// Pages in turn, so that no time is spent on one page's cache lines alone.
const PAGES: usize = 256;

/// Maps a page by UFFDIO_COPY. Making room again is part of the turn, but for all pages at once.
pub(crate) fn map() -> Result<Activity> {
    let view = View::new(PAGES)?;
    let content = Box::new([0x5a; PAGE_SIZE]);
    Ok(timed(move |times| {
        let mut left = times as usize;
        while left > 0 {
            let batch = left.min(PAGES);
            for page in 0..batch {
                view.copy_in(page, &content)?;
            }
            view.punch(0, batch)?;
            left -= batch;
        }
        Ok(())
    }))
}

/// Maps a page, then write-protects it, copies it out and punches a hole, as an eviction does.
pub(crate) fn map_and_take_back() -> Result<Activity> {
    let view = View::new(PAGES)?;
    let mut content = Box::new([0x5a; PAGE_SIZE]);
    let mut next = 0;
    Ok(timed(move |times| {
        for _ in 0..times {
            view.copy_in(next, &content)?;
            view.write_protect(next, 1)?;
            view.copy_out(next, &mut content[..])?;
            view.punch(next, 1)?;
            next = (next + 1) % PAGES;
        }
        Ok(())
    }))
}

/// The least of a fault on an evicted page: SIGBUS, a question through a slot to another process, which decrypts (here:
/// encrypts, which takes as long) and puts the page there, the answer, and the return from the handler.
pub(crate) fn fault() -> Result<Activity> {
    let key = page_key()?;
    let mut count = 0;
    let memory = FaultingMemory::new(PAGES, move || {
        let mut page = [0x5a; PAGE_SIZE];
        count += 1;
        // A refusal shows at the other side: the page is not encrypted, which it does not look at, but never happens.
        let _ = seal_page(&key, count, &mut page);
        page
    })?;
    Ok(Box::new(move |times| {
        let (mut left, mut time) = (times as usize, Duration::ZERO);
        while left > 0 {
            let batch = left.min(PAGES);
            time += memory.touch(batch)?;
            left -= batch;
        }
        Ok(time)
    }))
}

/// Pages that are taken away together in a pass of the product: what is missing to the high mark of such an EPC when
/// ksgxd wakes.
pub(crate) const BATCH: usize = 128;
/// Pages that are mapped before the first is taken away: as many as the EPC has while the work is measured, so that
/// caches hold as little of them.
const RESIDENT: usize = RECLAIM_EPC;
/// Pages that are taken away before one is encrypted: with its second chance, a page rests unmapped in the EPC.
const RESTING: usize = RESIDENT / 2;

/// The least of a reclaim: pages that another process has mapped and touched are write-protected, copied into frames and
/// punched, `batch` of them by each system call, and encrypted when they have rested. The frames are the product's. Time
/// of the thread, as for the work.
pub(crate) fn reclaim(batch: usize) -> Result<Activity> {
    let (view, key) = (ForeignView::new(RESIDENT)?, page_key()?);
    let arena = Arena::new(RESIDENT, RESIDENT)?;
    let mut resting: VecDeque<Vec<Frame>> = (0..RESTING / batch).map(|_| arena.take_many(batch)).collect();
    let (mut count, mut next) = (0, RESIDENT);
    Ok(Box::new(move |times| {
        let mut time = Duration::ZERO;
        for _ in 0..times.div_ceil(batch as u32) {
            if next == RESIDENT {
                view.map_all()?;
                next = 0;
            }
            let mut frames = arena.take_many(batch);
            let mut rested = resting.pop_front().context("some always rest")?;
            let before = thread_time()?;
            view.write_protect(next, batch)?;
            view.copy_to(next, &mut frames)?;
            view.punch(next, batch)?;
            for page in &mut rested {
                count += 1;
                seal_page(&key, count, &mut page[..])?;
            }
            time += thread_time()? - before;
            resting.push_back(frames);
            next += batch;
        }
        Ok(time.mul_f64(f64::from(times) / f64::from(times.next_multiple_of(batch as u32))))
    }))
}
