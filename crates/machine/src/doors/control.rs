//! Requests of operators, as JSON on a door.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use usgx_isa::EpcPage;
use usgx_sys::{process, socket};

use super::stream;
use crate::client::{Fate, MAX_MESSAGE, Request, Response};
use crate::clients::Client;
use crate::stats::StatsSnapshot;
use crate::system::Host;

/// What the event loop has to do.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Wish {
    /// Answered, or being answered.
    Nothing,
    /// Stop the machine.
    Stop,
}

/// Whether a message on a door is one of these.
pub(crate) fn is_control(bytes: &[u8]) -> bool {
    bytes.first() == Some(&b'{')
}

/// Answers a request that came through `door`.
pub(crate) fn serve(host: &Arc<Host>, door: &OwnedFd, bytes: &[u8], clients: Vec<Arc<Client>>) -> Wish {
    let Ok(request) = serde_json::from_slice::<Request>(bytes) else {
        answer(door, Response::Refused { reason: "not a request of this version".into() });
        return Wish::Nothing;
    };
    match request {
        Request::Status => {
            // Reading the counters takes locks of enclaves, for which the event loop must not wait.
            let (host, door) = (Arc::clone(host), door.try_clone());
            let Ok(door) = door else { return Wish::Nothing };
            let started = std::thread::Builder::new().name("status".into()).spawn(move || {
                let stats = StatsSnapshot::read(&host, &clients);
                answer(&door, Response::Status { stats: Box::new(stats) });
            });
            if let Err(error) = started {
                tracing::warn!(%error, "cannot answer a status request");
            }
            Wish::Nothing
        }
        Request::Events => {
            match may_rule(door, "see the events of").map(|()| door.try_clone()) {
                Ok(Ok(door)) => stream::start(host, door),
                Ok(Err(error)) => tracing::warn!(%error, "cannot tell events"),
                Err(reason) => answer(door, Response::Refused { reason }),
            }
            Wish::Nothing
        }
        Request::Shrink => {
            match may_rule(door, "shrink").map(|()| door.try_clone()) {
                Ok(Ok(door)) => shrink(host, door),
                Ok(Err(error)) => tracing::warn!(%error, "cannot shrink"),
                Err(reason) => answer(door, Response::Refused { reason }),
            }
            Wish::Nothing
        }
        Request::Poison { page } => {
            let response = match may_rule(door, "break pages of").and_then(|()| poison(host, page)) {
                Ok(fate) => Response::Poisoned { fate },
                Err(reason) => Response::Refused { reason },
            };
            answer(door, response);
            Wish::Nothing
        }
        Request::Stop => match may_rule(door, "stop") {
            Ok(()) => {
                answer(door, Response::Stopping);
                Wish::Stop
            }
            Err(reason) => {
                answer(door, Response::Refused { reason });
                Wish::Nothing
            }
        },
    }
}

/// Evicts what can be evicted, in a thread, as the event loop must not wait for that.
fn shrink(host: &Arc<Host>, door: OwnedFd) {
    let host = Arc::clone(host);
    let started = std::thread::Builder::new().name("shrink".into()).spawn(move || {
        answer(&door, Response::Shrunk { pages: host.driver.shrink() as u64 });
    });
    if let Err(error) = started {
        tracing::warn!(%error, "cannot shrink");
    }
}

/// Takes it that a page is broken; why not.
fn poison(host: &Host, page: u32) -> Result<Fate, String> {
    let fate = host.driver.memory_failure(EpcPage(page)).map_err(|_| {
        format!(
            "there is no EPC page {page}: the last is {}",
            host.driver.stats().total_pages.saturating_sub(1)
        )
    })?;
    tracing::warn!(page, ?fate, "an EPC page is broken");
    Ok(fate.into())
}

/// Whether whoever is behind `door` may do to the machine what its own user may; why not.
fn may_rule(door: &OwnedFd, what: &str) -> Result<(), String> {
    let own = process::effective_uid();
    let allowed = socket::peer(door).is_ok_and(|peer| peer.uid == own || peer.uid == 0);
    let reason = || format!("only root and the user with ID {own} may {what} this machine");
    allowed.then_some(()).ok_or_else(reason)
}

pub(super) fn answer(door: &OwnedFd, mut response: Response) {
    loop {
        let Ok(bytes) = serde_json::to_vec(&response) else { return };
        if bytes.len() <= MAX_MESSAGE {
            socket::set_send_buffer(door, 2 * MAX_MESSAGE);
            if let Err(error) = socket::send(door, &bytes, &[]) {
                tracing::debug!(%error, "an operator does not read");
            }
            return;
        }
        // Only its lists can be that long.
        let Response::Status { stats } = &mut response else { return };
        if !stats.shorten() {
            return;
        }
    }
}
