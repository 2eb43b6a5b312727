//! Trouble from outside: wrong command lines, machines and files that are not there or go away, a full disk, clients
//! that mean harm. Each gets a clear message, and nobody loses what an enclave holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use super::machine::{files, patience};
use super::shared::{Machine, number};
use super::{LONG, SHORT, Verdict, expect, trial};
use crate::process::{self, Process};
use crate::stage::{Link, Stage, User};

/// Options of `usgx run` that are wrong, and what the message has to say.
const WRONG: [(&str, &[&str]); 15] = [
    ("--epc 4K", &["too small", "256 KiB"]),
    ("--epc 0", &["too small", "256 KiB"]),
    ("--epc 300001", &["4 KiB pages"]),
    ("--epc 5000T", &["too large", "4 TiB"]),
    ("--epc 99999999999T", &["more than a computer has"]),
    ("--epc much", &["'much' is not a size", "64M"]),
    ("--epc -1", &["'-1' is not a size"]),
    ("--epc 1.5G", &["'1.5G' is not a size"]),
    ("--epc 64M,4K", &["too small", "256 KiB"]),
    ("--epc 3T,3T", &["too large", "4 TiB"]),
    ("--epc 1M,1M,1M,1M,1M,1M,1M,1M,1M", &["9 sections", "the most are 8"]),
    ("--cpu pentium", &["pentium", "coffee-lake", "tiger-lake", "ice-lake-sp"]),
    ("--swap /nonexistent/swap", &["--swap", "/nonexistent/swap"]),
    ("--machine /nonexistent/socket", &["/nonexistent/socket", "usgx machine start"]),
    ("--stats --machine /nonexistent/socket", &["--machine", "--stats"]),
];

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in stage.users() {
        for (options, words) in WRONG {
            let name = format!("trouble/{}/{options}", user.name());
            trials.push(trial(stage, name, move |stage| wrong(stage, user, options, words)));
        }
        let name = format!("trouble/{}/the smallest EPC works", user.name());
        trials.push(trial(stage, name, move |stage| smallest(stage, user)));
        let name = format!("trouble/{}/a kernel without userfaultfd runs what needs no enclave", user.name());
        trials.push(trial(stage, name, move |stage| no_userfaultfd(stage, user)));
        let name = format!("trouble/{}/a kernel that cannot trap CPUID runs enclaves", user.name());
        trials.push(trial(stage, name, move |stage| no_cpuid_faulting(stage, user)));
        let name = format!("trouble/{}/a state directory that cannot be is done without", user.name());
        trials.push(trial(stage, name, move |stage| no_state(stage, user)));
        let name = format!("trouble/{}/a swap directory may be relative", user.name());
        trials.push(trial(stage, name, move |stage| relative_swap(stage, user)));
    }
    type Test = fn(&Stage) -> Result<Verdict>;
    let once: [(&str, Test); 6] = [
        ("pages of files on a noexec mount cannot go into an enclave", noexec),
        ("a machine that cannot listen says where", cannot_listen),
        ("a second machine at the same socket is refused", second_machine),
        ("a socket that is removed stops only newcomers", socket_removed),
        ("a full swap directory refuses pages and loses none", full_swap),
        ("a client that means harm harms nobody", hostile),
    ];
    trials.extend(once.into_iter().map(|(name, test)| trial(stage, format!("trouble/{name}"), test)));
    trials
}

fn kit(stage: &Stage) -> PathBuf {
    stage.program("enclave_kit", Link::Dynamic).to_owned()
}

/// usgx itself fails with 125, and says what is wrong on standard error.
fn wrong(stage: &Stage, user: User, options: &str, words: &[&str]) -> Result<Verdict> {
    let options: Vec<&str> = options.split(' ').collect();
    let outcome = process::run(stage.run(user, &options, "echo").arg("started"), b"", SHORT)?;
    let verdict = expect(&outcome, 125, "")?;
    let message = outcome.errors();
    for word in words {
        ensure!(message.contains(word), "the message does not say {word:?}: {message}");
    }
    ensure!(!message.contains("panicked"), "{message}");
    Ok(verdict)
}

fn smallest(stage: &Stage, user: User) -> Result<Verdict> {
    let files = files(stage, "roomy:200", &format!("smallest-{}", user.name()))?;
    let mut command = stage.run(user, &["--epc", "256K"], kit(stage));
    let outcome = process::run(command.arg("load").args(files).args(["fill", "1", "sweep", "1"]), b"", LONG)?;
    expect(&outcome, 0, "loaded\nfilled\nswept: 200 right, 0 wrong, 0 refused, first -1\ndone\n")
}

/// `usgx` on a kernel that lacks something.
fn without(stage: &Stage, user: User, what: &str, arguments: &[&str]) -> Command {
    let mut command = stage.command(user, stage.program("without", Link::Static));
    command.arg(what).arg(stage.usgx()).args(arguments);
    command
}

fn no_userfaultfd(stage: &Stage, user: User) -> Result<Verdict> {
    let files = files(stage, "plain:6", &format!("no-userfaultfd-{}", user.name()))?;
    let echo = process::run(
        &mut without(stage, user, "userfaultfd", &["run", "--", "/bin/echo", "started"]),
        b"",
        SHORT,
    )?;
    expect(&echo, 0, "started\n")?;
    let mut load = without(stage, user, "userfaultfd", &["run", "--"]);
    let load = process::run(load.arg(kit(stage)).arg("load").args(files), b"", SHORT)?;
    expect(&load, 4, "map at 0: Function not implemented\n")?;
    let message = load.errors();
    ensure!(message.contains("userfaultfd") && message.contains("usgx doctor"), "{message}");
    let doctor = process::run(&mut without(stage, user, "userfaultfd", &["doctor"]), b"", SHORT)?;
    ensure!(
        doctor.end() == (Some(1), None) && doctor.text().contains("FAIL  userfaultfd: refused"),
        "{}",
        doctor.describe()
    );
    Ok(Verdict::Passed)
}

fn no_cpuid_faulting(stage: &Stage, user: User) -> Result<Verdict> {
    let files = files(stage, "plain:6", &format!("no-faulting-{}", user.name()))?;
    let mut cpuid = without(stage, user, "cpuid-faulting", &["run", "--"]);
    let cpuid = process::run(cpuid.arg(stage.program("cpuid", Link::Dynamic)), b"", SHORT)?;
    ensure!(cpuid.text().contains("SGX 1, launch control 1\n"), "{}", cpuid.describe());
    let mut load = without(stage, user, "cpuid-faulting", &["run", "--"]);
    expect(&process::run(load.arg(kit(stage)).arg("load").args(files), b"", SHORT)?, 0, "loaded\ndone\n")?;
    let doctor = process::run(&mut without(stage, user, "cpuid-faulting", &["doctor"]), b"", SHORT)?;
    ensure!(
        doctor.end() == (Some(0), None) && doctor.text().contains("note  CPUID faulting: not offered"),
        "{}",
        doctor.describe()
    );
    Ok(Verdict::Passed)
}

fn no_state(stage: &Stage, user: User) -> Result<Verdict> {
    let files = files(stage, "plain:6", &format!("no-state-{}", user.name()))?;
    let mut command = stage.run(user, &[], kit(stage));
    // For root it is always the system's own.
    command.env("XDG_STATE_HOME", "/proc/nowhere");
    expect(&process::run(command.arg("load").args(files), b"", SHORT)?, 0, "loaded\ndone\n")
}

fn relative_swap(stage: &Stage, user: User) -> Result<Verdict> {
    let files = files(stage, "roomy:1000", &format!("relative-{}", user.name()))?;
    let mut command = stage.run(user, &["--epc", "1M", "--swap", "."], kit(stage));
    let outcome = process::run(command.arg("load").args(files).args(["fill", "1", "sweep", "1"]), b"", LONG)?;
    expect(&outcome, 0, "loaded\nfilled\nswept: 1000 right, 0 wrong, 0 refused, first -1\ndone\n")
}

fn second_machine(stage: &Stage) -> Result<Verdict> {
    let machine = Machine::start(stage, stage.best_user(), "second", "4M", &[])?;
    let mut command = stage.command(stage.best_user(), stage.usgx());
    command.args(["machine", "start", "--foreground", "--socket"]).arg(&machine.socket);
    let outcome = process::run(&mut command, b"", SHORT)?;
    let verdict = expect(&outcome, 125, "")?;
    ensure!(outcome.errors().contains("usgx machine status"), "{}", outcome.describe());
    machine.status(stage)?;
    Ok(verdict)
}

fn cannot_listen(stage: &Stage) -> Result<Verdict> {
    let mut command = stage.command(stage.best_user(), stage.usgx());
    command.args(["machine", "start", "--foreground", "--socket", "/nonexistent/usgx/socket"]);
    let outcome = process::run(&mut command, b"", SHORT)?;
    let verdict = expect(&outcome, 125, "")?;
    let message = outcome.errors();
    ensure!(message.contains("/nonexistent/usgx/socket") && message.contains("directory"), "{message}");
    Ok(verdict)
}

fn socket_removed(stage: &Stage) -> Result<Verdict> {
    let user = stage.best_user();
    let machine = Machine::start(stage, user, "removed", "4M", &[])?;
    let files = files(stage, "roomy:2000", "removed")?;
    let start = |steps: &[&str]| -> Result<Process> {
        let mut command = machine.run(stage, User::Ordinary, kit(stage));
        Process::start(command.arg("load").args(&files).args(steps))
    };
    let mut running = start(&["fill", "1", "hold", "sweep", "1", "fill", "2", "sweep", "2"])?;
    running.wait_for("holding\n", LONG)?;
    fs::remove_file(&machine.socket)?;
    let late = start(&[])?.finish(SHORT)?;
    ensure!(
        late.end() == (Some(125), None) && late.errors().contains("usgx machine start"),
        "a newcomer without a socket: {}",
        late.describe()
    );
    running.write(b"\n")?;
    let swept = "swept: 2000 right, 0 wrong, 0 refused, first -1\n";
    expect(&running.finish(LONG)?, 0, &format!("loaded\nfilled\nholding\n{swept}filled\n{swept}done\n"))
}

/// A small file system, while it is there.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(stage: &Stage, name: &str, options: &str) -> Result<Option<Self>> {
        let place = stage.path(name);
        fs::create_dir(&place)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size=4M,mode=777,{options}"), "none"]).arg(&place);
        let mounted = process::run(&mut mount, b"", SHORT)?.end().0 == Some(0);
        Ok(mounted.then_some(Self(place)))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The machine on it has ended; if that takes a moment, the file system goes when it has.
        let _ended = process::run(Command::new("umount").arg("--lazy").arg(&self.0), b"", SHORT);
    }
}

fn full_swap(stage: &Stage) -> Result<Verdict> {
    let Some(disk) = SmallDisk::mount(stage, "small-disk", "rw")? else {
        return Ok(Verdict::Skipped("mounting is not allowed here".to_owned()));
    };
    let user = stage.best_user();
    let option = disk.0.display().to_string();
    let machine = Machine::start(stage, user, "full", "4M", &["--swap", &option])?;
    let load = |layout: &str, steps: &[&str]| -> Result<Process> {
        let files = files(stage, layout, &format!("full-{}", layout.replace(':', "-")))?;
        let mut command = machine.run(stage, user, kit(stage));
        Process::start(command.arg("load").args(files).args(steps))
    };
    // EPC and swap together hold some 1750 pages.
    let mut witness = load("roomy:900", &["fill", "1", "hold", "sweep", "1", "sweep", "1"])?;
    witness.wait_for("holding\n", LONG)?;
    for _ in 0..3 {
        let greedy = load("roomy:3000", &["fill", "1"])?.finish(LONG)?;
        ensure!(
            greedy.end() == (Some(4), None) && greedy.text().ends_with(": Cannot allocate memory\n"),
            "too many pages for EPC and swap: {}",
            greedy.describe()
        );
        machine.settles(stage, "rid of who asked too much", |status| number(status, "enclaves") == 1)?;
    }
    // Just as many as there is room for, give or take some: either it is told at once, or all goes well.
    for pages in [700, 780, 800, 820, 840, 860] {
        let outcome =
            load(&format!("roomy:{pages}"), &["fill", "2", "sweep", "2", "sweep", "2"])?.finish(LONG)?;
        let swept = format!("swept: {pages} right, 0 wrong, 0 refused, first -1\n");
        let well = outcome.end() == (Some(0), None)
            && outcome.text() == format!("loaded\nfilled\n{swept}{swept}done\n");
        let told = outcome.end() == (Some(4), None) && outcome.text().contains("Cannot allocate memory");
        ensure!(well || told, "{pages} pages: {}", outcome.describe());
        ensure!(well || pages > 700, "there was room for {pages}: {}", outcome.describe());
    }
    witness.write(b"\n")?;
    let swept = "swept: 900 right, 0 wrong, 0 refused, first -1\n";
    let verdict =
        expect(&witness.finish(LONG)?, 0, &format!("loaded\nfilled\nholding\n{swept}{swept}done\n"))?;
    machine.is_empty(stage)?;
    Ok(verdict)
}

/// Also when the file is mapped private and without PROT_EXEC, as loaders of enclaves do.
fn noexec(stage: &Stage) -> Result<Verdict> {
    let Some(selftests) = stage.selftests() else {
        return Ok(Verdict::Skipped("needs the kernel selftests' enclave: cargo xtask selftests".to_owned()));
    };
    let Some(disk) = SmallDisk::mount(stage, "noexec-disk", "noexec")? else {
        return Ok(Verdict::Skipped("mounting is not allowed here".to_owned()));
    };
    let image = selftests.join("test_encl.elf");
    let copy = disk.0.join("test_encl.elf");
    fs::copy(&image, &copy)?;
    stage.open_to_all(&copy)?;
    for user in stage.users() {
        let build = |image: &Path| {
            let mut command = stage.run(user, &[], stage.program("enclave_worker", Link::Dynamic));
            command.arg("run").arg(image).arg(stage.key()).args(["10", "fill", "1", "verify", "1"]);
            process::run(&mut command, b"", SHORT)
        };
        expect(&build(&copy)?, 2, "add pages at 0: Permission denied\n")?;
        expect(&build(&image)?, 0, "built\nfilled\nverified\ndone\n")?;
    }
    Ok(Verdict::Passed)
}

/// A client that speaks the protocol wrongly, for ten seconds (by hand a minute), beside one that checks its bytes.
fn hostile(stage: &Stage) -> Result<Verdict> {
    let user = stage.best_user();
    let machine = Machine::start(stage, user, "hostile", "4M", &[])?;
    let files = files(stage, "roomy:1500", "hostile")?;
    // Without paging, and always in motion.
    let steps: Vec<String> =
        std::iter::once("fill 1 hold".to_owned()).chain((0..20_000).map(|_| "sweep 1".to_owned())).collect();
    let mut command = machine.run(stage, user, kit(stage));
    let mut victim =
        Process::start(command.arg("load").args(files).args(steps.join(" ").split_whitespace()))?;
    victim.wait_for("holding\n", LONG)?;
    let (before, resources) = (machine.status(stage)?, machine.resources()?);
    victim.write(b"\n")?;
    let seconds = patience("USGX_E2E_HOSTILE_SECONDS", 10).to_string();
    let mut enemies = Vec::new();
    for seed in ["1", "2"] {
        let mut enemy = stage.command(User::Ordinary, stage.program("hostile", Link::Static));
        enemies.push(Process::start(enemy.arg(&machine.socket).args([seed, &seconds]))?);
    }
    for enemy in enemies {
        let outcome = enemy.finish(LONG)?;
        let attached = outcome.text().split(' ').nth(4).and_then(|text| text.parse::<u64>().ok());
        ensure!(
            outcome.end() == (Some(0), None) && attached.is_some_and(|count| count > 10),
            "it did not come far: {}",
            outcome.describe()
        );
    }
    let after = machine.settles(stage, "as before", |status| {
        let same = ["enclaves", "epc_total_pages", "leaked_pages"];
        same.iter().all(|name| status[name] == before[name])
            && status["clients"].as_array().is_some_and(|clients| clients.len() == 1)
    })?;
    let sweeps = victim.count("swept: ");
    victim.wait_for_count("swept: ", sweeps + 2, LONG)?;
    machine
        .has_at_most(resources.map(|before| before + 4))
        .with_context(|| format!("afterwards: {after}"))?;
    victim.signal(Signal::KILL)?;
    let outcome = victim.finish(SHORT)?;
    let (text, right) = (outcome.text(), "swept: 1500 right, 0 wrong, 0 refused, first -1");
    ensure!(
        outcome.end() == (None, Some(9))
            && text.lines().all(|line| line == right || ["loaded", "filled", "holding"].contains(&line)),
        "the victim: {}",
        outcome.describe()
    );
    machine.is_empty(stage)?;
    // No message of a panic either.
    machine.process.signal(Signal::TERM)?;
    let ended = machine.process.finish(SHORT)?;
    ensure!(!ended.errors().contains("panicked"), "the machine: {}", ended.describe());
    Ok(Verdict::Passed)
}
