//! The least that it takes to give a process a page, and to take it back without losing a write.

use anyhow::Result;

use crate::measure::Activity;
use crate::raw::{PAGE_SIZE, View};

/// Pages in turn, so that no time is spent on one page's cache lines alone.
const PAGES: usize = 256;

/// Maps a page by UFFDIO_COPY. Making room again is part of the turn, but for all pages at once.
pub(crate) fn map() -> Result<Activity> {
    let view = View::new(PAGES)?;
    let content = Box::new([0x5a; PAGE_SIZE]);
    Ok(Box::new(move |times| {
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
    Ok(Box::new(move |times| {
        for _ in 0..times {
            view.copy_in(next, &content)?;
            view.write_protect(next)?;
            view.copy_out(next, &mut content)?;
            view.punch(next, 1)?;
            next = (next + 1) % PAGES;
        }
        Ok(())
    }))
}
