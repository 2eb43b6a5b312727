//! The least that a question to another process and its answer cost.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::Result;

use crate::floors::raw;
use crate::measure::{Activity, timed};
use crate::raw::{Partner, Wake};

/// Through a slot, as the product's calls go.
pub(crate) fn slot() -> Result<Activity> {
    let partner = raw::Partner::start(|_| {})?;
    Ok(timed(move |times| {
        (0..times).for_each(|_| partner.round_trip());
        Ok(())
    }))
}

/// Through a word in shared memory.
pub(crate) fn shared(wake: Wake) -> Result<Activity> {
    let partner = Partner::start(wake)?;
    Ok(timed(move |times| {
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
    Ok(timed(move |times| {
        // Lives as long as it is asked.
        let _partner = &partner;
        for _ in 0..times {
            near.write_all(&[1])?;
            near.read_exact(&mut [0])?;
        }
        Ok(())
    }))
}
