//! Enclaves bigger than the EPC, and several programs on one machine: whatever happens to one of them, the
//! others go on, and no enclave ever reads anything but what was written into it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal};

use super::shared::Machine;
use super::{LONG, SHORT, Test, Verdict, expect, trial};
use crate::process::{self, Process};
use crate::stage::{Link, Stage, User};

/// The EPC of these tests, and numbers of heap pages that it does and does not hold.
const EPC: &str = "16M";
const FEW: &str = "500";
pub(super) const MOST: &str = "3000";
const TOO_MANY: &str = "8192";

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let for_each_user: [(&str, Test); 4] = [
        ("a mapping that is moved can be used when it is back", mapping_moves),
        ("an enclave twice as big as the EPC keeps its contents", twice_the_epc),
        ("a fork shares an enclave that is paged out", fork_shares),
        ("an enclave in constant motion keeps its contents", constant_motion),
    ];
    let shared: [(&str, Test); 4] = [
        ("two users share one EPC", two_users),
        ("kill -9 gives everything back", killed),
        ("a stopped program holds up nobody", stopped),
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

pub(super) fn needs_image(
    stage: &Stage,
    user: User,
    test: fn(&Stage, User) -> Result<Verdict>,
) -> Result<Verdict> {
    if stage.selftests().is_none() {
        return Ok(Verdict::Skipped("needs the kernel selftests' enclave: cargo xtask selftests".to_owned()));
    }
    test(stage, user)
}

/// `usgx run OPTIONS -- enclave_worker run ... PAGES STEPS`.
pub(super) fn worker(stage: &Stage, user: User, options: &[&str], pages: &str, steps: &str) -> Command {
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

fn mapping_moves(stage: &Stage, user: User) -> Result<Verdict> {
    let kit = files(stage, "roomy:200", &format!("moves-{}", user.name()))?;
    let mut command = stage.run(user, &["--epc", "256K"], stage.program("enclave_kit", Link::Dynamic));
    command.arg("load").args(kit).args(["fill", "7", "move", "7"]);
    let all = "swept: 200 right, 0 wrong, 0 refused, first -1\n";
    let output = format!(
        "loaded\nfilled\ngrown: EFAULT, copied: EFAULT, kept: EINVAL\n{all}moved: fine\n\
         swept: 196 right, 0 wrong, 4 refused, first 2\nmoved back: fine\n{all}done\n"
    );
    expect(&process::run(&mut command, b"", LONG)?, 0, &output)
}

fn constant_motion(stage: &Stage, user: User) -> Result<Verdict> {
    let mut command = worker(stage, user, &["--epc", "2M"], "1000", "loop 5 7");
    let rounds: String = (0..5).map(|i| format!("round {i}\n")).collect();
    expect(&process::run(&mut command, b"", LONG)?, 0, &format!("built\n{rounds}done\n"))
}

fn two_users(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "two-users", EPC, &[])?;
    let first = Process::start(&mut machine.worker(stage, user, MOST, "loop 3 10"))?;
    let second = Process::start(&mut machine.worker(stage, User::Ordinary, MOST, "loop 3 20"))?;
    let output = "built\nround 0\nround 1\nround 2\ndone\n";
    expect(&first.finish(LONG)?, 0, output)?;
    expect(&second.finish(LONG)?, 0, output)
}

/// The least part of its speed that a program has to keep beside stopped ones, on a busy computer. They cost something:
/// their pages have to be evicted, and each of their threads that is inside is waited for, once, for 10 ms.
const FULL_SPEED: f64 = 0.6;

/// Numbers that are the same in every run, and nobody's choice.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// How often or how long, from the environment, for a more patient run by hand.
pub(super) fn patience(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Kills at random moments: while pages are added, in calls, in faults, in a fork's child. After each one not one page
/// of it is left in the machine, and the other user's program reads what it wrote, all the time.
fn killed(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "killed", EPC, &[])?;
    let mut witness = Process::start(&mut machine.worker(stage, user, FEW, "forever 5"))?;
    witness.wait_for("round 1\n", LONG)?;
    let kit = files(stage, "roomy:1000", "killed")?;
    let mut chance = Chance(20_240_229);
    for round in 0..patience("USGX_E2E_KILLS", 40) {
        let mut command = match round % 4 {
            0 => {
                let mut command =
                    machine.run(stage, User::Ordinary, stage.program("enclave_kit", Link::Dynamic));
                command.arg("load").args(&kit).args(["fill", "1", "spin"]);
                command
            }
            1 => machine.worker(stage, User::Ordinary, FEW, "fill 1 fork 1 fork 2 fork 3 forever 4"),
            2 => machine.worker(stage, User::Ordinary, MOST, "forever 1"),
            _ => machine.worker(stage, User::Ordinary, TOO_MANY, "forever 1"),
        };
        let rounds = witness.count("round");
        let victim = Process::start(&mut command)?;
        let (pid, mark) = (victim.pid(), victim.mark());
        thread::sleep(Duration::from_micros(chance.below(700_000)));
        victim.signal(Signal::KILL)?;
        // Its children, if it had any, as well: `finish` would wait for them. An error means that all have ended.
        for other in victim.left_over() {
            if let Some(pid) =
                other.split(' ').next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw)
            {
                let _ended = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        end_by_kill(victim)?;
        machine
            .holds_only(stage, witness.pid())
            .with_context(|| format!("process {pid} was killed in round {round}"))?;
        let deadline = Instant::now() + SHORT;
        while !process::left_over(&mark).is_empty() {
            ensure!(Instant::now() < deadline, "left: {}", process::left_over(&mark).join(", "));
            thread::sleep(Duration::from_millis(5));
        }
        witness.wait_for_count("round", rounds + 1, LONG)?;
    }
    end_by_kill(witness)?;
    machine.is_empty(stage)?;
    machine.still_serves(stage, user)
}

/// A stream of the kit and its signature.
pub(super) fn files(stage: &Stage, layout: &str, test: &str) -> Result<[String; 2]> {
    let kit = stage.program("enclave_kit", Link::Dynamic);
    let user = stage.best_user();
    let name = |extension| stage.home(user).join(format!("{test}.{extension}")).display().to_string();
    let files = [name("sgxs"), name("sig")];
    expect(&process::run(stage.command(user, kit).args(["stream", layout, &files[0]]), b"", SHORT)?, 0, "")?;
    let mut sign = stage.command(user, kit);
    expect(
        &process::run(sign.args(["sign", &files[0]]).arg(stage.key()).arg(&files[1]), b"", SHORT)?,
        0,
        "",
    )?;
    for file in &files {
        stage.open_to_all(Path::new(file))?;
    }
    Ok(files)
}

/// A thread is stopped while it counts inside an enclave, and so is a program that fills most of the EPC. A third one,
/// which needs all of the EPC, works as fast as without them; and the counter goes on from where it was.
fn stopped(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "stopped", "2M", &[])?;
    let kit = files(stage, "roomy:60", "stopped")?;
    // Twice the EPC: each of its rounds moves every page.
    let mut other = Process::start(&mut machine.worker(stage, User::Ordinary, "1000", "forever 9"))?;
    let mut ratios = Vec::new();
    // Other work of the computer can spoil a few rounds, and seldom many.
    while ratios.len() < 15 || ratios.len() < 60 && median(&ratios) < FULL_SPEED {
        let without = time_of_rounds(&mut other, || Ok(()))?;
        let mut counter = machine.run(stage, user, stage.program("enclave_kit", Link::Dynamic));
        let steps = ["fill", "3", "sweep", "3", "spin"];
        let mut counter = Process::start(counter.arg("load").args(&kit).args(steps))?;
        let mut sleeper = Process::start(&mut machine.worker(stage, user, "380", "forever 1"))?;
        counter.wait_for("counted", LONG)?;
        sleeper.wait_for("round 0\n", LONG)?;
        let beside = time_of_rounds(&mut other, || {
            [&counter, &sleeper].into_iter().try_for_each(|process| process.signal(Signal::STOP))
        })?;
        for process in [&counter, &sleeper] {
            process.signal(Signal::CONT)?;
        }
        let (counts, rounds) = (counter.count("counted"), sleeper.count("round"));
        counter.wait_for_count("counted", counts + 1, LONG)?;
        sleeper.wait_for_count("round", rounds + 2, LONG)?;
        for process in [counter, sleeper] {
            end_by_kill(process)?;
        }
        ratios.push(without.as_secs_f64() / beside.as_secs_f64());
    }
    end_by_kill(other)?;
    machine.is_empty(stage)?;
    ensure!(
        median(&ratios) >= FULL_SPEED,
        "its speed beside stopped ones, as parts of that without: {ratios:.2?}"
    );
    Ok(Verdict::Passed)
}

fn median(numbers: &[f64]) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// How long a worker needs for some rounds, after something is done between two rounds.
fn time_of_rounds(worker: &mut Process, change: impl FnOnce() -> Result<()>) -> Result<Duration> {
    const ROUNDS: usize = 2;
    worker.wait_for_count("round", worker.count("round") + 1, LONG)?;
    let before = worker.count("round");
    change()?;
    let start = Instant::now();
    worker.wait_for_count("round", before + ROUNDS, LONG)?;
    Ok(start.elapsed())
}

fn end_by_kill(process: Process) -> Result<()> {
    process.signal(Signal::KILL)?;
    let outcome = process.finish(SHORT)?;
    ensure!(outcome.end() == (None, Some(9)), "killed, it ended with {}", outcome.describe());
    Ok(())
}

fn machine_ends(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "ends", EPC, &[])?;
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
