//! Measurements of usgx: each is the ratio of some work and its floor, measured in turns in the same run.
//!
//! A *floor* is what nobody can do without: the bare signal under a fault, the bare AES-GCM under an eviction, the
//! bare round trip under a call. A number of nanoseconds says something about one computer on one day; the ratio
//! says what usgx adds, and can be compared and bounded. `cargo xtask bench` starts this.
//!
//! - `floors/` are the floors, `cases` lists what is measured against which;
//! - `measure` takes turns, `statistics` makes medians and intervals of the rounds, `report` prints them;
//! - `raw` has the system calls.

mod cases;
mod floors;
mod measure;
mod raw;
mod report;
mod statistics;

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

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
    /// Only measurements whose name contains this
    filter: Option<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let effort = if arguments.smoke { Effort::SMOKE } else { Effort::FULL };
    let mut results = Vec::new();
    for (name, make) in cases::ALL {
        if arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())) {
            let mut case = make().with_context(|| format!("preparing {name}"))?;
            results.push(case.measure(name, effort).with_context(|| format!("measuring {name}"))?);
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
