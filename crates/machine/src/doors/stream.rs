//! Telling events to one who listens: a thread for each, which ends when the listener hangs up.
//!
//! The thread never holds events back: while the listener does not read, they stay in the ring, and what the ring
//! overwrites is lost to this listener alone, who is told how many it was.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use usgx_sys::{Errno, socket};

use super::control;
use crate::client::{MAX_MESSAGE, Response};
use crate::sight::Reader;
use crate::system::Host;

/// Most events in a message: below [`MAX_MESSAGE`] at 200 bytes each.
const MOST: usize = 512;
/// How often a listener gets a message when nothing happens: how its end is noticed.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long to wait for a listener that does not read, before another try.
const NAP: Duration = Duration::from_millis(2);

/// Starts to tell events through `door`.
pub(super) fn start(host: &Arc<Host>, door: OwnedFd) {
    let Some(reader) = host.sight.ring.reader() else {
        let reason = "too many listen already".to_owned();
        return control::answer(&door, Response::Refused { reason });
    };
    let host = Arc::clone(host);
    let spawned =
        std::thread::Builder::new().name("listener".into()).spawn(move || tell(&host, reader, &door));
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot tell events");
    }
}

fn tell(host: &Host, mut reader: Reader, door: &OwnedFd) {
    socket::set_send_buffer(door, 2 * MAX_MESSAGE);
    // At once, so that the listener knows that from now on it misses nothing untold.
    let mut batch = reader.read(MOST, Duration::ZERO);
    loop {
        let response = Response::Events { lost: batch.lost, events: std::mem::take(&mut batch.events) };
        let Ok(bytes) = serde_json::to_vec(&response) else { return };
        loop {
            match socket::send(door, &bytes, &[]) {
                Ok(()) => break,
                Err(Errno::AGAIN) if !host.platform.is_stopped() => std::thread::sleep(NAP),
                Err(error) => {
                    tracing::debug!(%error, "a listener is gone");
                    return;
                }
            }
        }
        if host.platform.is_stopped() {
            return;
        }
        batch = reader.read(MOST, HEARTBEAT);
    }
}
