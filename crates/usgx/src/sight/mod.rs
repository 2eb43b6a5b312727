//! Looking at a machine that runs: its numbers, its events, and a live view of both.

pub(crate) mod events;
mod names;
pub(crate) mod stats;
pub(crate) mod top;

use std::io;
use std::process::ExitCode;

use anyhow::Result;

/// What printing came to: that nobody reads any more, as in `usgx events | head`, is no failure.
fn printed(result: io::Result<()>) -> Result<ExitCode> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}
