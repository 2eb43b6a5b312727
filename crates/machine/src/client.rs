//! Talking to a machine that runs elsewhere: `usgx machine status` and `stop`.
//!
//! The same socket that programs come in by; a first message that is JSON is one of these.

use std::path::Path;

use serde::{Deserialize, Serialize};
use usgx_sys::socket;

use crate::error::MachineError;
use crate::stats::StatsSnapshot;

/// Most bytes of a request or a response.
pub(crate) const MAX_MESSAGE: usize = 128 * 1024;

/// What to ask a machine.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How are you?
    Status,
    /// Evict all that can be evicted. Only for the machine's own user, and root.
    Shrink,
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
    /// It has evicted what it could.
    Shrunk {
        /// EPC pages that became free.
        pages: u64,
    },
    /// It stops.
    Stopping,
    /// It does not do that for this user.
    Refused {
        /// Why.
        reason: String,
    },
}

/// Sends a request to the machine that listens at `path`, and waits for the response.
///
/// # Errors
/// Nobody answers, or not in this way.
pub fn control(path: &Path, request: Request) -> Result<Response, MachineError> {
    let failed = |source| MachineError::Connect { path: path.to_owned(), source };
    let answer = || MachineError::Answer { path: path.to_owned() };
    let door = socket::connect(path).map_err(failed)?;
    let bytes = serde_json::to_vec(&request).map_err(|_| answer())?;
    socket::send(&door, &bytes, &[]).map_err(failed)?;
    let mut bytes = vec![0; MAX_MESSAGE];
    let received = socket::receive_waiting(&door, &mut bytes).map_err(failed)?;
    serde_json::from_slice(&bytes[..received.length]).map_err(|_| answer())
}

/// Opens a door to the machine that listens at `path`, for a program to inherit.
///
/// # Errors
/// Nobody listens there.
pub fn open_door(path: &Path) -> Result<std::os::fd::OwnedFd, MachineError> {
    socket::connect(path).map_err(|source| MachineError::Connect { path: path.to_owned(), source })
}
