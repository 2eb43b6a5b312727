//! The machine, as the command line uses it: configured, started in this process or reached by a socket.
//!
//! With [`crate::machine`], the only file that knows how `usgx-machine` is called.

use std::env;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use usgx_machine::{Behaviour, Machine, MachineConfig, client};
use usgx_sys::attendant;

use crate::cli::Compat;
use crate::size::Size;
use crate::statistics::Statistics;

/// Below this nothing works: the reclaimer keeps 32 pages free.
const LEAST_EPC: Size = Size(256 << 10);
/// More than any processor has; a typing error rather than a wish.
const MOST_EPC: Size = Size(4 << 40);
/// Linux takes note of no more.
const MOST_SECTIONS: usize = 8;
const PAGE_SIZE: u64 = 4096;

/// What a machine is like.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Sizes of the EPC's sections; none for the default.
    pub(crate) epc: Vec<Size>,
    /// Name of the processor's profile; `None` for the default.
    pub(crate) cpu: Option<String>,
    /// Directory for evicted pages; memory if there is none.
    pub(crate) swap: Option<PathBuf>,
    /// A driver to behave like; `None` for the best that usgx can do.
    pub(crate) compat: Option<Compat>,
    /// How many pages a fault adds besides the one that is needed; `None` for the default.
    pub(crate) fault_around: Option<u32>,
}

impl Config {
    /// Checks everything that can be checked without a machine.
    ///
    /// # Errors
    ///
    /// What is wrong, and what would be right.
    pub(crate) fn check(&self) -> Result<()> {
        let (count, mut sum) = (self.epc.len(), Size(0));
        ensure!(count <= MOST_SECTIONS, "--epc: {count} sections are too many; the most are {MOST_SECTIONS}");
        for &epc in &self.epc {
            ensure!(epc >= LEAST_EPC, "--epc: {epc} is too small; the smallest EPC is {LEAST_EPC}");
            ensure!(
                epc.0.is_multiple_of(PAGE_SIZE),
                "--epc: {} bytes are not a number of 4 KiB pages",
                epc.0
            );
            sum = Size(sum.0.saturating_add(epc.0));
        }
        ensure!(sum <= MOST_EPC, "--epc: {sum} is too large; the largest EPC is {MOST_EPC}");
        if let Some(directory) = &self.swap {
            ensure!(directory.is_dir(), "--swap: {} is not a directory", directory.display());
        }
        Ok(())
    }
}

/// Builds a machine.
///
/// # Errors
///
/// Why the machine cannot be.
pub(crate) fn build(config: Config) -> Result<Machine> {
    let mut machine = MachineConfig { state_dir: state_dir(), swap: config.swap, ..MachineConfig::default() };
    if !config.epc.is_empty() {
        machine.epc_bytes = config.epc.iter().map(|section| section.0).collect();
    }
    if let Some(Compat::Linux) = config.compat {
        machine.behaviour = Behaviour::linux();
    }
    if let Some(pages) = config.fault_around {
        machine.behaviour.fault_around = pages;
    }
    if let Some(profile) = config.cpu {
        machine.profile = profile;
    }
    // The message says what the system has said; the chain behind it would say it again.
    Machine::new(machine).map_err(|error| anyhow!("{error}"))
}

/// Where the processor's fuse keys are kept, so that data sealed in one run can be unsealed in the next. The
/// machine makes the directory, and does without if it cannot.
fn state_dir() -> Option<PathBuf> {
    if usgx_sys::probe::effective_user() == 0 {
        return Some("/var/lib/usgx".into());
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    Some(absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?.join("usgx"))
}

/// A machine in this process, serving one run.
#[derive(Debug)]
pub(crate) struct Engine {
    machine: Arc<Machine>,
    /// Hangs up when the machine has nobody left to serve.
    busy: Option<OwnedFd>,
}

impl Engine {
    /// Starts a machine that serves the processes behind `door`.
    ///
    /// # Errors
    ///
    /// Why the machine cannot be.
    pub(crate) fn start(config: Config, door: OwnedFd) -> Result<Self> {
        let machine = Arc::new(build(config)?);
        machine.serve_door(door)?;
        let (busy, held) = attendant::seqpacket_pair()?;
        let waiting = Arc::clone(&machine);
        std::thread::Builder::new().name("idle".into()).spawn(move || {
            waiting.run_until_idle();
            drop(waiting);
            drop(held);
        })?;
        Ok(Self { machine, busy: Some(busy) })
    }

    /// Tells whether there is still somebody to serve.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.is_some()
    }

    /// A descriptor that becomes readable when there is nobody left.
    pub(crate) fn busy_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.busy.as_ref().map(|fd| fd.as_fd())
    }

    /// Notes that there is nobody left, which [`Self::busy_descriptor`] has told.
    pub(crate) fn rest(&mut self) {
        self.busy = None;
    }

    /// The numbers so far.
    pub(crate) fn statistics(&self) -> Statistics {
        Statistics(self.machine.stats())
    }
}

/// Connects to the machine behind a socket.
///
/// # Errors
///
/// What to do if there is none.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd> {
    client::open_door(path).map_err(|error| {
        let path = path.display();
        anyhow!("{error}; start one with 'usgx machine start --socket {path}', or leave --machine out")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_sizes_are_refused_with_the_possible_ones() {
        let refusals = |sections: &[u64]| {
            let epc = sections.iter().copied().map(Size).collect();
            let config = Config { epc, cpu: None, swap: None, compat: None, fault_around: None };
            config.check().map_err(|error| error.to_string())
        };
        let refusal = |bytes| refusals(&[bytes]);
        assert_eq!(refusals(&[]), Ok(()));
        assert_eq!(refusals(&[64 << 20; 8]), Ok(()));
        assert!(refusals(&[64 << 20; 9]).expect_err("too many").contains('8'));
        assert!(refusals(&[64 << 20, 4096]).expect_err("too small").contains("256 KiB"));
        assert!(refusals(&[3 << 40, 3 << 40]).expect_err("too large").contains("4 TiB"));
        assert_eq!(refusal(64 << 20), Ok(()));
        assert!(refusal(4096).expect_err("too small").contains("256 KiB"));
        assert!(refusal(1 << 50).expect_err("too large").contains("4 TiB"));
        assert!(refusal((1 << 20) + 1).expect_err("uneven").contains("4 KiB"));
    }
}
