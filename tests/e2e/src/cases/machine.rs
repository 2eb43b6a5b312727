//! Enclaves bigger than the EPC, and several programs on one machine: whatever happens to one of them, the
//! others go on, and no enclave ever reads anything but what was written into it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use super::{LONG, SHORT, Verdict, expect, trial};
use crate::process::{self, Process};
use crate::stage::{Link, Stage, User};

/// The EPC of these tests, and numbers of heap pages that it does and does not hold.
const EPC: &str = "16M";
const FEW: &str = "500";
const MOST: &str = "3000";
const TOO_MANY: &str = "8192";

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    type Test = fn(&Stage, User) -> Result<Verdict>;
    let for_each_user: [(&str, Test); 3] = [
        ("an enclave twice as big as the EPC keeps its contents", twice_the_epc),
        ("a fork shares an enclave that is paged out", fork_shares),
        ("an enclave in constant motion keeps its contents", constant_motion),
    ];
    let shared: [(&str, Test); 5] = [
        ("two users share one EPC", two_users),
        ("kill -9 gives everything back", killed),
        ("a stopped program holds up nobody", stopped),
        ("tampering with evicted pages is noticed", tampered),
        ("a machine that ends leaves no program hanging", machine_ends),
    ];
    let mut trials = Vec::new();
    for user in stage.users() {
        for (name, test) in for_each_user {
            let name = format!("paging/{}/{name}", user.name());
            trials.push(trial(stage, name, move |stage| needs_image(stage, user, test)));
        }
    }
    for (name, test) in shared {
        let user = if stage.users().contains(&User::Root) { User::Root } else { User::Ordinary };
        trials.push(trial(stage, format!("machine/{name}"), move |stage| needs_image(stage, user, test)));
    }
    trials
}

fn needs_image(stage: &Stage, user: User, test: fn(&Stage, User) -> Result<Verdict>) -> Result<Verdict> {
    if stage.selftests().is_none() {
        return Ok(Verdict::Skipped("needs the kernel selftests' enclave: cargo xtask selftests".to_owned()));
    }
    test(stage, user)
}

/// `usgx run OPTIONS -- enclave_worker run ... PAGES STEPS`.
fn worker(stage: &Stage, user: User, options: &[&str], pages: &str, steps: &str) -> Command {
    let mut command = stage.run(user, options, stage.program("enclave_worker", Link::Dynamic));
    command.arg("run").arg(stage.path("selftests/test_encl.elf")).arg(stage.key()).arg(pages);
    command.args(steps.split_whitespace());
    command
}

fn twice_the_epc(stage: &Stage, user: User) -> Result<Verdict> {
    let mut command = worker(stage, user, &["--epc", EPC], TOO_MANY, "fill 1 verify 1 verify 1");
    expect(&process::run(&mut command, b"", LONG)?, 0, "built\nfilled\nverified\nverified\ndone\n")
}

fn fork_shares(stage: &Stage, user: User) -> Result<Verdict> {
    let mut command = worker(stage, user, &["--epc", EPC], TOO_MANY, "fill 1 fork 1 verify 2");
    expect(&process::run(&mut command, b"", LONG)?, 0, "built\nfilled\nshared\nverified\ndone\n")
}

fn constant_motion(stage: &Stage, user: User) -> Result<Verdict> {
    let mut command = worker(stage, user, &["--epc", "2M"], "1000", "loop 5 7");
    let rounds: String = (0..5).map(|i| format!("round {i}\n")).collect();
    expect(&process::run(&mut command, b"", LONG)?, 0, &format!("built\n{rounds}done\n"))
}

/// A machine that several programs share.
struct Machine {
    process: Process,
    socket: PathBuf,
}

impl Machine {
    /// `usgx machine start`, in a directory of this test's own, open to all users.
    fn start(stage: &Stage, user: User, test: &str, options: &[&str]) -> Result<Self> {
        let directory = stage.path(&format!("machine-{test}"));
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let socket = directory.join("socket");
        let mut command = stage.command(user, stage.usgx());
        command
            .args(["machine", "start", "--foreground", "--shared", "--epc", EPC, "--socket"])
            .arg(&socket)
            .args(options);
        let process = Process::start(&mut command)?;
        let deadline = Instant::now() + SHORT;
        while !socket.exists() {
            if Instant::now() >= deadline || process.left_over().is_empty() {
                let outcome = process.finish(Duration::from_secs(1))?;
                bail!("no socket at {}: {}", socket.display(), outcome.describe());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { process, socket })
    }

    fn worker(&self, stage: &Stage, user: User, pages: &str, steps: &str) -> Command {
        let socket = self.socket.display().to_string();
        worker(stage, user, &["--machine", &socket], pages, steps)
    }

    /// It still serves a newcomer.
    fn still_serves(&self, stage: &Stage, user: User) -> Result<Verdict> {
        let mut command = self.worker(stage, user, MOST, "fill 3 verify 3");
        expect(&process::run(&mut command, b"", LONG)?, 0, "built\nfilled\nverified\ndone\n")
    }
}

fn two_users(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "two-users", &[])?;
    let first = Process::start(&mut machine.worker(stage, user, MOST, "loop 3 10"))?;
    let second = Process::start(&mut machine.worker(stage, User::Ordinary, MOST, "loop 3 20"))?;
    let output = "built\nround 0\nround 1\nround 2\ndone\n";
    expect(&first.finish(LONG)?, 0, output)?;
    expect(&second.finish(LONG)?, 0, output)
}

fn killed(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "killed", &[])?;
    let mut witness = Process::start(&mut machine.worker(stage, user, FEW, "fill 5 hold verify 5"))?;
    witness.wait_for("holding\n", LONG)?;
    for round in 0..8 {
        let mut victim = Process::start(&mut machine.worker(stage, User::Ordinary, MOST, "forever 1"))?;
        victim.wait_for(if round % 2 == 0 { "built\n" } else { "round 0\n" }, LONG)?;
        victim.signal(Signal::KILL)?;
        let outcome = victim.finish(SHORT)?;
        ensure!(outcome.end() == (None, Some(9)), "killed, it ended with {}", outcome.describe());
    }
    witness.write(b"\n")?;
    expect(&witness.finish(LONG)?, 0, "built\nfilled\nholding\nverified\ndone\n")?;
    machine.still_serves(stage, user)
}

fn stopped(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "stopped", &[])?;
    let mut sleeper = Process::start(&mut machine.worker(stage, user, MOST, "forever 1"))?;
    sleeper.wait_for("round 0\n", LONG)?;
    for seed in 0..3 {
        sleeper.signal(Signal::STOP)?;
        // The other one needs the EPC that the stopped one fills.
        let mut other = machine.worker(stage, User::Ordinary, MOST, &format!("fill {seed} verify {seed}"));
        expect(&process::run(&mut other, b"", LONG)?, 0, "built\nfilled\nverified\ndone\n")?;
        sleeper.signal(Signal::CONT)?;
        let rounds = sleeper.count("round");
        sleeper.wait_for_count("round", rounds + 2, LONG)?;
    }
    Ok(Verdict::Passed)
}

fn tampered(stage: &Stage, user: User) -> Result<Verdict> {
    let swap = stage.path("swap");
    fs::create_dir(&swap)?;
    fs::set_permissions(&swap, fs::Permissions::from_mode(0o777))?;
    let option = swap.display().to_string();
    let machine = Machine::start(stage, user, "tampered", &["--swap", &option])?;
    let mut worker =
        Process::start(&mut machine.worker(stage, user, TOO_MANY, "fill 1 verify 1 hold verify 1"))?;
    worker.wait_for("holding\n", LONG)?;
    let mut changed = 0;
    for path in open_files_below(&machine.process, &option)? {
        changed += invert(&path).with_context(|| format!("tampering with {}", path.display()))?;
    }
    ensure!(changed >= 16 << 20, "only {changed} bytes were in the swap file of an enclave of 32 MiB");
    worker.write(b"\n")?;
    let outcome = worker.finish(LONG)?;
    ensure!(
        outcome.end().0 != Some(0) && outcome.text().matches("verified").count() == 1,
        "tampered pages were taken: {}",
        outcome.describe()
    );
    ensure!(!outcome.text().contains("instead of"), "wrong contents came back: {}", outcome.describe());
    machine.still_serves(stage, user)
}

/// Files below a directory that a process and its children have open, by their /proc names: swap files have
/// no other.
fn open_files_below(process: &Process, directory: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let own = std::iter::once(process.pid().to_string());
    let others = process.left_over().into_iter().filter_map(|line| line.split(' ').next().map(str::to_owned));
    let mut pids: Vec<String> = own.chain(others).collect();
    pids.dedup();
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            if target.to_string_lossy().starts_with(directory) {
                found.push(entry.path());
            }
        }
        if !found.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// Inverts a file's bytes and returns how many were there.
fn invert(path: &std::path::Path) -> io::Result<u64> {
    let file = File::options().read(true).write(true).open(path)?;
    let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let length = file.read_at(&mut buffer, at)?;
        if length == 0 {
            return Ok(at);
        }
        buffer[..length].iter_mut().for_each(|byte| *byte = !*byte);
        file.write_all_at(&buffer[..length], at)?;
        at += length as u64;
    }
}

fn machine_ends(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "ends", &[])?;
    let mut worker = Process::start(&mut machine.worker(stage, user, TOO_MANY, "fill 1 hold verify 1"))?;
    worker.wait_for("holding\n", LONG)?;
    machine.process.signal(Signal::KILL)?;
    drop(machine);
    worker.write(b"\n")?;
    // Half of the enclave is in no view, and nobody can load it any more.
    let outcome = worker.finish(SHORT)?;
    ensure!(
        outcome.end().0 != Some(0) && !outcome.text().contains("verified"),
        "evicted pages outlived their machine: {}",
        outcome.describe()
    );
    Ok(Verdict::Passed)
}
