//! What is measured: a name, and how to prepare it.

use anyhow::Result;

use crate::flat;
use crate::floors::{crypto, paging, round_trip, signal};
use crate::heap::{self, Way};
use crate::measure::{Case, Effort, Measured};
use crate::raw::Wake;
use crate::{scaling, work};

/// How something is measured.
pub(crate) enum Make {
    /// A floor alone; needs nothing of the product.
    Floor(fn() -> Result<Case>),
    /// Work and its floor, in turns.
    Work(fn(Effort) -> Result<Case>),
    /// Sizes, once.
    Sizes(fn(Effort) -> Result<Vec<Measured>>),
    /// Several measurements that take long: only where their name is asked for. Needs nothing of the product.
    Large(fn(Effort) -> Result<Vec<Measured>>),
}

/// All of them, in the order in which they are reported.
pub(crate) const ALL: [(&str, Make); 25] = [
    ("trap and return by signal", Make::Floor(|| Ok(Case::floor(signal::traps(1)?)))),
    ("round trip by slot", Make::Floor(|| Ok(Case::floor(round_trip::slot()?)))),
    ("round trip by futex", Make::Floor(|| Ok(Case::floor(round_trip::shared(Wake::Futex)?)))),
    ("round trip by socket", Make::Floor(|| Ok(Case::floor(round_trip::socket()?)))),
    ("round trip by spinning", Make::Floor(|| Ok(Case::floor(round_trip::shared(Wake::Spin)?)))),
    ("AES-128-GCM of a page", Make::Floor(|| Ok(Case::floor(crypto::encrypt_page()?)))),
    ("SHA-256 of an added page", Make::Floor(|| Ok(Case::floor(crypto::measure_page())))),
    ("map a page", Make::Floor(|| Ok(Case::floor(paging::map()?)))),
    ("map and take back a page", Make::Floor(|| Ok(Case::floor(paging::map_and_take_back()?)))),
    ("ecall_vdso", Make::Work(|_| Ok(Case::floor(signal::traps(1)?).with_work(work::ecall("ecalls")?, 1.3)))),
    (
        "ecall_raw",
        Make::Work(|_| Ok(Case::floor(signal::traps(2)?).with_work(work::ecall("raw-ecalls")?, 1.3))),
    ),
    (
        "epc_fault",
        Make::Work(|effort| Ok(Case::floor(paging::fault()?).with_work(work::fault(effort)?, 1.5))),
    ),
    (
        "reclaim",
        Make::Work(|effort| Ok(Case::floor(paging::reclaim(1)?).with_work(work::reclaim(effort)?, 1.3))),
    ),
    (
        "reclaim, against a floor in batches",
        Make::Work(|effort| {
            Ok(Case::floor(paging::reclaim(paging::BATCH)?).with_work(work::reclaim(effort)?, 2.5))
        }),
    ),
    ("load_256m", Make::Work(load)),
    ("grow_64m, one by one", Make::Work(|effort| heap::grow_case(effort, Way::OneByOne))),
    ("grow_64m, batched", Make::Work(|effort| heap::grow_case(effort, Way::Batched))),
    ("shrink_64m, one by one", Make::Work(|effort| heap::shrink_case(effort, Way::OneByOne))),
    ("shrink_64m, batched", Make::Work(|effort| heap::shrink_case(effort, Way::Batched))),
    ("grow_64m, batched against one by one", Make::Work(heap::grow_in_batches)),
    ("shrink_64m, batched against one by one", Make::Work(heap::shrink_in_batches)),
    ("memory_per_page", Make::Sizes(work::memory)),
    ("reclaim_scaling", Make::Sizes(scaling::measure)),
    ("page_cost", Make::Large(flat::whole)),
    ("page_books", Make::Large(flat::books)),
];

/// On small input: 4 MiB.
fn load(effort: Effort) -> Result<Case> {
    let pages = if effort.is_small { 1 << 10 } else { 1 << 16 };
    Ok(Case::floor(crypto::copy_and_measure(pages)).with_work(work::load(pages)?, 1.5))
}
