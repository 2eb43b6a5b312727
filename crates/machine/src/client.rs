//! Talking to a machine that runs elsewhere: `usgx machine status`, `shrink`, `poison` and `stop`, `usgx stats`, `events` and `top`.
//!
//! The same socket that programs come in by; a first message that is JSON is one of these.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use usgx_driver::Poisoned;
use usgx_sys::socket;

use crate::error::MachineError;
use crate::sight::event::EventRecord;
use crate::stats::StatsSnapshot;

/// Most bytes of a request or a response.
pub(crate) const MAX_MESSAGE: usize = 128 * 1024;

/// What to ask a machine.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How are you?
    Status,
    /// Tell what happens, from now on: [`Response::Events`], again and again. Only for the machine's own user, and
    /// root: which page of an enclave is touched when tells much about what is in it.
    Events,
    /// Evict all that can be evicted. Only for the machine's own user, and root.
    Shrink,
    /// Take it that this EPC page is broken, as after a machine check. Only for the machine's own user, and root.
    Poison {
        /// The page's number, over all sections.
        page: u32,
    },
    /// Stop, now; the programs' enclaves are lost. Only for the machine's own user, and root.
    Stop,
}

/// What a machine answers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// The machine at this moment. The list of clients is cut short if it is very long.
    Status {
        /// The counters.
        stats: Box<StatsSnapshot>,
    },
    /// Events, and how many the machine has dropped before them because they were not read quickly enough. Without
    /// events it is a sign of life.
    Events {
        /// How many are lost.
        lost: u64,
        /// Those that are not.
        events: Vec<EventRecord>,
    },
    /// It has evicted what it could.
    Shrunk {
        /// EPC pages that became free.
        pages: u64,
    },
    /// It has taken note that a page is broken.
    Poisoned {
        /// What became of the page.
        fate: Fate,
    },
    /// It stops.
    Stopping,
    /// It does not do that for this user.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What became of an EPC page that was reported as broken.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It was nobody's and will never be anybody's.
    Retired,
    /// Somebody has it; it is no longer evicted, and will be retired when it is given back.
    InUse,
    /// It was reported before.
    Known,
}

impl From<Poisoned> for Fate {
    fn from(poisoned: Poisoned) -> Self {
        match poisoned {
            Poisoned::Retired => Self::Retired,
            Poisoned::InUse => Self::InUse,
            Poisoned::Known => Self::Known,
        }
    }
}

/// Sends a request to the machine that listens at `path`, and waits for the response.
///
/// # Errors
/// Nobody answers, or not in this way.
pub fn control(path: &Path, request: Request) -> Result<Response, MachineError> {
    Conversation::begin(path, request)?.next().unwrap_or_else(|| Err(unanswered(path)))
}

fn unanswered(path: &Path) -> MachineError {
    MachineError::Answer { path: path.to_owned() }
}

/// A machine's answers to one request. It ends when the machine hangs up.
#[derive(Debug)]
pub struct Conversation {
    path: PathBuf,
    door: OwnedFd,
    buffer: Vec<u8>,
}

impl Conversation {
    /// Sends a request to the machine that listens at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn begin(path: &Path, request: Request) -> Result<Self, MachineError> {
        let failed = |source| MachineError::Connect { path: path.to_owned(), source };
        let door = socket::connect(path).map_err(failed)?;
        let bytes = serde_json::to_vec(&request).map_err(|_| unanswered(path))?;
        socket::send(&door, &bytes, &[]).map_err(failed)?;
        Ok(Self { path: path.to_owned(), door, buffer: vec![0; MAX_MESSAGE] })
    }
}

impl Iterator for Conversation {
    type Item = Result<Response, MachineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let received = match socket::receive_waiting(&self.door, &mut self.buffer) {
            Ok(received) if received.length == 0 => return None,
            Ok(received) => received,
            Err(source) => return Some(Err(MachineError::Connect { path: self.path.clone(), source })),
        };
        Some(serde_json::from_slice(&self.buffer[..received.length]).map_err(|_| unanswered(&self.path)))
    }
}

/// Listens to the events of the machine at `path`; each item is how many are lost, and those that come after.
///
/// # Errors
/// Nobody answers, or the machine does not tell this user.
pub fn events(
    path: &Path,
) -> Result<impl Iterator<Item = Result<(u64, Vec<EventRecord>), MachineError>> + use<>, MachineError> {
    let path = path.to_owned();
    let conversation = Conversation::begin(&path, Request::Events)?;
    Ok(conversation.map(move |response| match response? {
        Response::Events { lost, events } => Ok((lost, events)),
        Response::Refused { reason } => Err(MachineError::Refused(reason)),
        _ => Err(unanswered(&path)),
    }))
}

/// Opens a door to the machine that listens at `path`, for a program to inherit.
///
/// # Errors
/// Nobody listens there.
pub fn open_door(path: &Path) -> Result<std::os::fd::OwnedFd, MachineError> {
    socket::connect(path).map_err(|source| MachineError::Connect { path: path.to_owned(), source })
}
