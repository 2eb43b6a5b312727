//! The least that an intercepted instruction costs: the signal that it raises, and the return.

use anyhow::{Result, ensure};

use crate::measure::Activity;
use crate::raw::{IllegalInstruction, thread_time};

/// Raises SIGILL so many times for each, and a handler on an alternate stack skips the instruction.
pub(crate) fn traps(each: u32) -> Result<Activity> {
    let trap = IllegalInstruction::install()?;
    Ok(Box::new(move |times| {
        // Of the thread, as for the work: neighbours do not count.
        let (start, before) = (thread_time()?, trap.handled());
        for _ in 0..times * each {
            trap.raise();
        }
        ensure!(trap.handled() - before == u64::from(times * each), "a trap was not handled");
        Ok(thread_time()? - start)
    }))
}
