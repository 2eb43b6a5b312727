//! The least that a question to another process and its answer cost.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::Result;

use crate::measure::Activity;
use crate::raw::{Partner, Wake};

/// Through a word in shared memory.
pub(crate) fn shared(wake: Wake) -> Result<Activity> {
    let partner = Partner::start(wake)?;
    Ok(Box::new(move |times| {
        for _ in 0..times {
            partner.round_trip()?;
        }
        Ok(())
    }))
}

/// Through a pair of sockets, one byte each way.
pub(crate) fn socket() -> Result<Activity> {
    let (mut near, far) = UnixStream::pair()?;
    let partner = Partner::echo(far)?;
    Ok(Box::new(move |times| {
        // Lives as long as it is asked.
        let _partner = &partner;
        for _ in 0..times {
            near.write_all(&[1])?;
            near.read_exact(&mut [0])?;
        }
        Ok(())
    }))
}
