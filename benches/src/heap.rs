//! A heap of 64 MiB that grows while its enclave runs, and goes again: page by page as Linux does it, and in batches.
//!
//! To grow is to accept each page and to use it. One by one, every page costs a fault; in batches a fault adds many of
//! them (`--fault-around`). To shrink is to have pages trimmed, to accept that, and to have them removed: by two ioctls
//! for each page, or by two for all. EACCEPT itself knows no batches.

use anyhow::Result;

use crate::floors::heap::{self as floors, PerPage};
use crate::guest::image::Image;
use crate::measure::{Activity, Case, Effort};
use crate::product::{Machine, Program};

/// How a heap changes.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Way {
    OneByOne,
    Batched,
}

/// Pages that a fault adds in a batch, the touched one included: 1 MiB.
const AROUND: usize = 256;

/// What a way may take at most, in floors, which know nothing of EAUG, EACCEPT and the driver's books; and batches, in
/// one by ones: the half.
const BOUND: f64 = 2.5;
const HALF: f64 = 0.5;

/// Pages of the heap.
fn pages(effort: Effort) -> usize {
    if effort.is_small { 128 } else { 1 << 14 }
}

/// A program with an enclave whose heap can grow to `pages`.
fn program(pages: usize, way: Way) -> Result<Program> {
    let around = (AROUND - 1).to_string();
    let options: &[&str] = if way == Way::Batched { &["--fault-around", &around] } else { &[] };
    let machine = Machine::start_with(pages + pages / 16 + 1024, options)?;
    let mut program = machine.program()?;
    program.prepare("heap", Image { data_pages: 1, measured: false, heap_pages: pages })?;
    program.step("load heap")?;
    Ok(program)
}

/// Growing from nothing. A unit is the whole heap.
fn grow(pages: usize, way: Way) -> Result<Activity> {
    let mut program = program(pages, way)?;
    Ok(Box::new(move |times| {
        (0..times).try_fold(std::time::Duration::ZERO, |time, _| {
            let grown = program.step(&format!("grow heap {pages}"))?;
            program.step(&format!("shrink heap {pages} {pages}"))?;
            Ok(time + grown)
        })
    }))
}

/// Giving all of it back. A unit is the whole heap.
fn shrink(pages: usize, way: Way) -> Result<Activity> {
    let mut program = program(pages, Way::Batched)?;
    let chunk = if way == Way::Batched { pages } else { 1 };
    Ok(Box::new(move |times| {
        (0..times).try_fold(std::time::Duration::ZERO, |time, _| {
            program.step(&format!("grow heap {pages}"))?;
            Ok(time + program.step(&format!("shrink heap {pages} {chunk}"))?)
        })
    }))
}

/// What each page takes at least. To grow one by one: an EACCEPT that finds no page, its fault, and the EACCEPT again, all
/// for one intercepted instruction; in batches the page is there. To shrink: an EACCEPT, and one by one two ioctls, whose argument the machine asks for
/// and gives back.
fn least(grows: bool, way: Way) -> PerPage {
    let (traps, round_trips) = match (grows, way) {
        (_, Way::Batched) => (1, 1),
        (true, Way::OneByOne) => (1, 3),
        (false, Way::OneByOne) => (3, 7),
    };
    PerPage { traps, round_trips }
}

/// Growing, against its floor.
pub(crate) fn grow_case(effort: Effort, way: Way) -> Result<Case> {
    let pages = pages(effort);
    let floor = floors::grow(pages, least(true, way))?;
    Ok(Case::floor(floor).with_work(grow(pages, way)?, BOUND))
}

/// Shrinking, against its floor.
pub(crate) fn shrink_case(effort: Effort, way: Way) -> Result<Case> {
    let pages = pages(effort);
    let floor = floors::shrink(pages, least(false, way), if way == Way::Batched { pages } else { 1 })?;
    Ok(Case::floor(floor).with_work(shrink(pages, way)?, BOUND))
}

/// Growing in batches against growing page by page.
pub(crate) fn grow_in_batches(effort: Effort) -> Result<Case> {
    let pages = pages(effort);
    Ok(Case::floor(grow(pages, Way::OneByOne)?).with_work(grow(pages, Way::Batched)?, HALF))
}

/// Shrinking in batches against shrinking page by page.
pub(crate) fn shrink_in_batches(effort: Effort) -> Result<Case> {
    let pages = pages(effort);
    Ok(Case::floor(shrink(pages, Way::OneByOne)?).with_work(shrink(pages, Way::Batched)?, HALF))
}
