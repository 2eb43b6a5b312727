//! Where a run's numbers go: a table for people, a file for programs, and a feed for `usgx demo`.

use std::fs::File;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use crate::statistics::Statistics;

/// The numbers of a run, told once: when its first program ends, or else when all have gone.
#[derive(Debug)]
pub(crate) struct Report {
    table: bool,
    json: Option<File>,
}

impl Report {
    /// Prints a table on standard error if `table` is set, and writes to `json` if there is a file.
    pub(crate) fn new(table: bool, json: Option<File>) -> Self {
        Self { table, json }
    }

    /// Tells the numbers; nothing happens the second time.
    pub(crate) fn finish(&mut self, statistics: &Statistics) {
        if std::mem::take(&mut self.table) {
            // One write, so that nothing comes in between.
            let _ = io::stderr().write_all(statistics.table().as_bytes());
        }
        if let Some(mut file) = self.json.take() {
            let written = writeln!(file, "{}", statistics.json());
            if let Err(error) = written {
                tracing::error!(%error, "the statistics file cannot be written");
            }
        }
    }
}

/// A pipe to which the numbers are written ten times a second, one JSON object in a line.
#[derive(Debug)]
pub(crate) struct Feed {
    pipe: File,
    last: Instant,
}

const INTERVAL: Duration = Duration::from_millis(100);

impl Feed {
    pub(crate) fn new(pipe: File) -> Self {
        Self { pipe, last: Instant::now() }
    }

    /// How long to wait for other things at most.
    pub(crate) fn interval_ms(&self) -> u32 {
        let left = INTERVAL.saturating_sub(self.last.elapsed());
        u32::try_from(left.as_millis()).unwrap_or(0).max(1)
    }

    /// Writes the numbers if it is time.
    pub(crate) fn write(&mut self, statistics: &Statistics) {
        if self.last.elapsed() >= INTERVAL {
            self.last = Instant::now();
            self.write_now(statistics);
        }
    }

    /// Writes the numbers.
    pub(crate) fn write_now(&mut self, statistics: &Statistics) {
        // A reader that is gone does not matter.
        let _ = writeln!(self.pipe, "{}", statistics.json());
    }
}
