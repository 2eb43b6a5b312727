//! A machine that several programs share, as the tests of it need one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::machine::{MOST, worker};
use super::{LONG, SHORT, Verdict, expect};
use crate::process::{self, Outcome, Process};
use crate::stage::{Stage, User};

/// How long a machine may need to notice that a client has gone, however slow the computer is.
const SETTLED: Duration = Duration::from_secs(60);

/// A machine that several programs share.
pub(super) struct Machine {
    pub(super) process: Process,
    pub(super) socket: PathBuf,
}

impl Machine {
    /// `usgx machine start` with an EPC of this size, in a directory of this test's own, open to all users.
    pub(super) fn start(stage: &Stage, user: User, test: &str, epc: &str, options: &[&str]) -> Result<Self> {
        let directory = stage.path(&format!("machine-{test}"));
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let socket = directory.join("socket");
        let mut command = stage.command(user, stage.usgx());
        command
            .args(["machine", "start", "--foreground", "--shared", "--epc", epc, "--socket"])
            .arg(&socket)
            .args(options);
        let mut process = Process::start(&mut command)?;
        let deadline = Instant::now() + LONG;
        while !socket.exists() {
            if Instant::now() >= deadline || process.has_ended()? {
                let outcome = process.finish(Duration::from_secs(1))?;
                bail!("no socket at {}: {}", socket.display(), outcome.describe());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { process, socket })
    }

    pub(super) fn worker(&self, stage: &Stage, user: User, pages: &str, steps: &str) -> Command {
        let socket = self.socket.display().to_string();
        worker(stage, user, &["--machine", &socket], pages, steps)
    }

    /// It still serves a newcomer.
    pub(super) fn still_serves(&self, stage: &Stage, user: User) -> Result<Verdict> {
        let mut command = self.worker(stage, user, MOST, "fill 3 verify 3");
        expect(&process::run(&mut command, b"", LONG)?, 0, "built\nfilled\nverified\ndone\n")
    }

    /// `usgx run --machine ... -- PROGRAM`.
    pub(super) fn run(&self, stage: &Stage, user: User, program: impl AsRef<Path>) -> Command {
        stage.run(user, &["--machine", &self.socket.display().to_string()], program)
    }

    /// What `usgx machine status --json` says.
    pub(super) fn status(&self, stage: &Stage) -> Result<Value> {
        let mut command = stage.command(User::Ordinary, stage.usgx());
        command.args(["machine", "status", "--json", "--socket"]).arg(&self.socket);
        let outcome = process::run(&mut command, b"", SHORT)?;
        ensure!(outcome.end() == (Some(0), None), "status: {}", outcome.describe());
        serde_json::from_slice(&outcome.stdout).with_context(|| format!("status: {}", outcome.describe()))
    }

    /// `usgx machine WISH`, such as `shrink`, of a user.
    pub(super) fn ask(&self, stage: &Stage, user: User, wish: &[&str]) -> Result<Outcome> {
        let mut command = stage.command(user, stage.usgx());
        command.arg("machine").args(wish).arg("--socket").arg(&self.socket);
        process::run(&mut command, b"", LONG)
    }

    /// Waits until the status is as it should be.
    pub(super) fn settles(
        &self,
        stage: &Stage,
        wanted: &str,
        is_good: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + SETTLED;
        loop {
            let status = self.status(stage)?;
            if is_good(&status) {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "not {wanted} within {SETTLED:?}: {status}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the reclaimer rests, and returns the status then.
    pub(super) fn rests(&self, stage: &Stage) -> Result<Value> {
        self.settles(stage, "at rest", |status| status["ksgxd_busy"] == false)
    }

    /// Waits until one process with one thread is left, and every page of the EPC and of the backing store is its own or free.
    pub(super) fn holds_only(&self, stage: &Stage, pid: u32) -> Result<()> {
        self.settles(stage, &format!("left with process {pid} alone"), |status| {
            let (Some([client]), Some([enclave])) = (
                status["clients"].as_array().map(Vec::as_slice),
                status["enclave_list"].as_array().map(Vec::as_slice),
            ) else {
                return false;
            };
            let used = number(status, "epc_total_pages").saturating_sub(number(status, "epc_free_pages"));
            // The machine's own: a root VA page is at hand for enclaves that become idle.
            let roots = number(status, "va_pages").saturating_sub(number(enclave, "va_resident_pages"));
            // A page is mapped or in a frame; the one thread control structure that it has entered is both.
            let placed = number(status, "frames").saturating_add(number(status, "mapped_pages"));
            client["pid"] == pid
                && enclave["pid"] == pid
                && roots <= 1
                && used == number(enclave, "epc_pages") + roots
                && placed == used + 1
                && number(status, "backing_pages") == number(enclave, "evicted_pages")
                && number(status, "leaked_pages") == 0
        })
        .map(drop)
    }

    /// Waits until nobody and nothing is left.
    pub(super) fn is_empty(&self, stage: &Stage) -> Result<()> {
        let status = self.settles(stage, "empty", |status| {
            let zero = ["enclaves", "va_pages", "mapped_pages", "frames", "backing_pages", "backing_bytes"];
            zero.iter().all(|name| number(status, name) == 0)
                && status["epc_free_pages"] == status["epc_total_pages"]
                && status["clients"].as_array().is_some_and(Vec::is_empty)
        })?;
        ensure!(number(&status, "leaked_pages") == 0, "pages were lost: {status}");
        ensure!(!self.process.has_panicked(), "the machine has panicked");
        Ok(())
    }

    /// Waits until the machine's process has at most so many descriptors and threads.
    pub(super) fn has_at_most(&self, resources: [usize; 2]) -> Result<()> {
        let deadline = Instant::now() + SETTLED;
        loop {
            let now = self.resources()?;
            if now.iter().zip(resources).all(|(now, most)| *now <= most) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{now:?} descriptors and threads, at most {resources:?} expected"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Descriptors and threads of the machine's process.
    pub(super) fn resources(&self) -> Result<[usize; 2]> {
        let count = |what: &str| {
            Ok::<_, io::Error>(fs::read_dir(format!("/proc/{}/{what}", self.process.pid()))?.count())
        };
        Ok([count("fd")?, count("task")?])
    }
}

/// A counter of a status.
pub(super) fn number(status: &Value, name: &str) -> u64 {
    // A counter that is not there must not look like a zero.
    status[name].as_u64().unwrap_or(u64::MAX)
}
