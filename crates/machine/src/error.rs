//! Why a machine cannot be built or reached, in words for the person at the command line.

use std::path::PathBuf;

use usgx_sys::Errno;

/// A failure of the machine as a whole.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The EPC has an impossible size.
    #[error("an EPC of {0} bytes is not possible: use a multiple of 4096, from 256 KiB to 4 TiB")]
    EpcSize(u64),
    /// The EPC has an impossible number of sections.
    #[error("an EPC of {asked} sections is not possible: use 1 to {most}, as Linux does")]
    EpcSections {
        /// The most that there can be.
        most: usize,
        /// How many were asked for.
        asked: usize,
    },
    /// There is no such profile.
    #[error("there is no processor \"{name}\": choose one of {known}")]
    Profile {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The swap directory cannot be used.
    #[error("cannot keep evicted pages in {}: {source}; name a directory on a disk that you can write to", path.display())]
    Swap {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The socket cannot be made.
    #[error("cannot listen at {}: {source}; the directory has to be there, and you must be able to write to it", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// The metrics would be for everybody on the network.
    #[error("metrics at {0} could be read by other computers; say that you want that, or use 127.0.0.1")]
    MetricsAddress(std::net::SocketAddr),
    /// The metrics cannot be served.
    #[error("cannot serve metrics at {address}: {source}")]
    Metrics {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The machine does not do as asked.
    #[error("the machine refuses: {0}")]
    Refused(String),
    /// The other machine cannot be reached.
    #[error("no machine answers at {}: {source}", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// What came back is not an answer.
    #[error("what answers at {} is not a machine of this version", path.display())]
    Answer {
        /// Where.
        path: PathBuf,
    },
    /// The descriptor is not what it should be.
    #[error("the door is not a SOCK_SEQPACKET socket")]
    Door,
    /// Threads or memory ran out, or a system call that a machine needs failed.
    #[error("the machine cannot start: {0}")]
    System(#[from] std::io::Error),
}

impl From<Errno> for MachineError {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}
