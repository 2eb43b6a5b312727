//! Measurements of usgx: each is the ratio of some work and its floor, measured in turns in the same run.
//!
//! A *floor* is what nobody can do without: the bare signal under a fault, the bare AES-GCM under an eviction, the
//! bare round trip under a call. A number of nanoseconds says something about one computer on one day; the ratio
//! says what usgx adds, and can be compared and bounded. `cargo xtask bench` starts this.
//!
//! - `cases` lists what is measured against which: `floors/` are the floors, `work` is what the product does;
//! - `product` starts a machine and a program under it, `guest/` is that program;
//! - `measure` takes turns, `statistics` makes medians and intervals of the rounds, `report` prints them;
//! - `flat/` asks whether a page costs the same in every EPC, without a machine;
//! - `scaling` asks whether two reclaiming threads are faster than one;
//! - `raw` has the system calls.

mod cases;
mod flat;
mod floors;
mod guest;
mod heap;
mod measure;
mod product;
mod raw;
mod report;
mod scaling;
mod statistics;
mod work;

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::cases::Make;
use crate::measure::Effort;

/// Measures work against its floor.
#[derive(Parser)]
#[command(name = "usgx-bench")]
struct Arguments {
    /// Also writes the results as JSON into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Runs everything once, on small input: does it still work?
    #[arg(long)]
    smoke: bool,
    /// Is the program that is measured
    #[arg(long, hide = true)]
    guest: bool,
    /// Only measurements whose name contains this
    filter: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.guest {
        return guest::run();
    }
    let effort = if arguments.smoke { Effort::SMOKE } else { Effort::FULL };
    let mut results = Vec::new();
    for (name, make) in cases::ALL {
        if arguments.filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        if matches!(make, Make::Large(_)) && arguments.filter.is_none() && !arguments.smoke {
            println!("by hand: {name}");
            continue;
        }
        let needs_product = !matches!(make, Make::Floor(_) | Make::Large(_));
        if arguments.smoke
            && needs_product
            && let Err(reason) = product::binary()
        {
            println!("skipped: {name}: {reason}");
            continue;
        }
        let measure = |case: Result<measure::Case>| {
            let mut case = case.with_context(|| format!("preparing {name}"))?;
            case.measure(name, effort).with_context(|| format!("measuring {name}"))
        };
        match make {
            Make::Floor(make) => results.push(measure(make())?),
            Make::Work(make) => results.push(measure(make(effort))?),
            Make::Sizes(make) | Make::Large(make) => {
                results.extend(make(effort).with_context(|| format!("measuring {name}"))?);
            }
        }
    }
    ensure!(!results.is_empty(), "no measurement has such a name");
    print!("{}", report::table(&results));
    if let Some(path) = &arguments.json {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        serde_json::to_writer_pretty(file, &results)?;
    }
    let slow: Vec<_> =
        results.iter().filter(|result| result.exceeds_bound()).map(|r| r.name.clone()).collect();
    ensure!(arguments.smoke || slow.is_empty(), "slower than they may be: {}", slow.join(", "));
    Ok(())
}
