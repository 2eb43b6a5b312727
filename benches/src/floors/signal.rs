//! The least that an intercepted instruction costs: the signal that it raises, and the return.

use anyhow::{Result, ensure};

use crate::measure::Activity;
use crate::raw::IllegalInstruction;

/// Raises SIGILL, and a handler skips the instruction.
pub(crate) fn trap() -> Result<Activity> {
    let trap = IllegalInstruction::install()?;
    Ok(Box::new(move |times| {
        let before = trap.handled();
        for _ in 0..times {
            trap.raise();
        }
        ensure!(trap.handled() - before == u64::from(times), "a trap was not handled");
        Ok(())
    }))
}
