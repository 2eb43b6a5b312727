//! Evicted pages in the hands of an enemy who can write to the swap file: whatever is changed or put back, the
//! processor does not take it, and nobody but its owner notices. As on Linux a page that was refused is lost.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::Trial;

use super::machine::files;
use super::shared::{Machine, number};
use super::{LONG, Verdict, expect, trial};
use crate::process::Process;
use crate::stage::{Link, Stage, User};

/// An evicted page in the swap file: ciphertext and PCMD.
const SLOT: usize = 4096 + 128;
/// PCMD.ENCLAVEID, for the operating system's use: the processor takes the enclave's number from its SECS instead.
const ENCLAVE_ID: Range<usize> = 4096 + 64..4096 + 72;

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    type Test = fn(&Stage) -> Result<Verdict>;
    let tests: [(&str, Test); 3] = [
        ("a change of any byte of ciphertext or PCMD is refused", flipped),
        ("a changed page is its enclave's own trouble", one_changed),
        ("an older copy of a page is refused", replayed),
    ];
    tests.into_iter().map(|(name, test)| trial(stage, format!("swap/{name}"), test)).collect()
}

/// A machine with a swap file, and the kit's enclave in it, which waits for a line.
struct Scene {
    machine: Machine,
    victim: Process,
    swap: PathBuf,
}

/// How a sweep over the enclave's pages ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Sweep {
    right: u64,
    wrong: u64,
    refused: u64,
}

impl Scene {
    fn set(stage: &Stage, test: &str, epc: &str, pages: u64, steps: &str) -> Result<Self> {
        let directory = stage.path(test);
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))?;
        let option = directory.display().to_string();
        let user = stage.best_user();
        let machine = Machine::start(stage, user, test, epc, &["--swap", &option])?;
        let kit = files(stage, &format!("roomy:{pages}"), test)?;
        let mut command = machine.run(stage, user, stage.program("enclave_kit", Link::Dynamic));
        let mut victim = Process::start(command.arg("load").args(kit).args(steps.split_whitespace()))?;
        victim.wait_for("holding\n", LONG)?;
        let swap = swap_file(&machine.process, &option)?;
        let mut scene = Self { machine, victim, swap };
        scene.come_to_rest(stage)?;
        Ok(scene)
    }

    /// Waits until nothing moves any more, with all in the EPC that the victim has besides its heap: it uses that
    /// whenever it is told to hold again.
    fn come_to_rest(&mut self, stage: &Stage) -> Result<()> {
        let mut passes = Vec::new();
        while passes.len() < 100 {
            self.tell("again\n", "holding\n")?;
            passes.push(number(&self.machine.rests(stage)?, "reclaim_scans"));
            if let [.., before, after] = passes[..]
                && before == after
            {
                return Ok(());
            }
        }
        bail!("the machine does not come to rest: {passes:?} reclaim passes")
    }

    /// The victim's program goes on, a newcomer is served, and nothing is left.
    fn end(self, stage: &Stage) -> Result<Verdict> {
        self.machine.still_serves_kit(stage)?;
        drop(self.victim);
        self.machine.is_empty(stage)?;
        Ok(Verdict::Passed)
    }

    /// Sends the victim a line, and waits for what it then prints.
    fn tell(&mut self, line: &str, answer: &str) -> Result<()> {
        let count = self.victim.count(answer);
        self.victim.write(line.as_bytes())?;
        self.victim.wait_for_count(answer, count + 1, LONG)
    }

    /// How many pages of the victim are evicted.
    fn evicted(&self, stage: &Stage) -> Result<u64> {
        let status = self.machine.status(stage)?;
        let clients = status["clients"].as_array().context("no list of clients")?;
        let ours =
            clients.iter().find(|client| client["pid"] == self.victim.pid()).context("no such client")?;
        Ok(number(ours, "evicted_pages"))
    }

    /// Lets the victim go on, and returns its next sweeps, when it holds again or has ended.
    fn go_on(&mut self, sweeps: usize, until: &str) -> Result<Vec<Sweep>> {
        self.tell("\n", until)?;
        let text = self.victim.text();
        let all: Vec<Sweep> = text.lines().filter_map(parse).collect();
        ensure!(all.len() >= sweeps, "{text}");
        Ok(all[all.len() - sweeps..].to_vec())
    }
}

/// "swept: N right, N wrong, N refused, first N"
fn parse(line: &str) -> Option<Sweep> {
    let mut parts = line.strip_prefix("swept: ")?.split(", ");
    let mut number = |word: &str| parts.next()?.strip_suffix(word)?.trim().parse().ok();
    let (right, wrong, refused) = (number("right")?, number("wrong")?, number("refused")?);
    Some(Sweep { right, wrong, refused })
}

/// The file below a directory that a process or a child of it has open, by its /proc name: it has no other.
fn swap_file(process: &Process, directory: &str) -> Result<PathBuf> {
    let own = std::iter::once(process.pid().to_string());
    let others = process.left_over().into_iter().filter_map(|line| line.split(' ').next().map(str::to_owned));
    for pid in own.chain(others) {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            if target.to_string_lossy().starts_with(directory) {
                return Ok(entry.path());
            }
        }
    }
    bail!("the machine has no swap file below {directory}")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn write(path: &Path, at: usize, bytes: &[u8]) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all_at(bytes, at as u64)
}

/// In each slot another byte is changed, and between them each byte of a slot.
fn flipped(stage: &Stage) -> Result<Verdict> {
    let pages = 6600;
    let steps = "fill 1 sweep 1 hold sweep 1 sweep 1";
    let mut scene = Scene::set(stage, "flipped", "8M", pages, steps)?;
    let evicted = scene.evicted(stage)?;
    ensure!(evicted > SLOT as u64, "only {evicted} pages are evicted, which are fewer than a slot has bytes");
    let mut bytes = read(&scene.swap)?;
    for slot in 0..bytes.len() / SLOT {
        let byte = slot % SLOT;
        let byte = if ENCLAVE_ID.contains(&byte) { SLOT - 1 } else { byte };
        bytes[slot * SLOT + byte] ^= 1 << ((slot / SLOT + slot) % 8);
    }
    write(&scene.swap, 0, &bytes)?;
    let sweeps = scene.go_on(2, "done\n")?;
    let expected = (pages - evicted, 0, evicted);
    ensure!(
        sweeps.iter().all(|sweep| (sweep.right, sweep.wrong, sweep.refused) == expected),
        "{evicted} pages were evicted and changed: {sweeps:?}"
    );
    scene.end(stage)
}

/// One changed page costs one page: of nobody else, and of this enclave no other.
fn one_changed(stage: &Stage) -> Result<Verdict> {
    let pages = 6600;
    let steps = "fill 1 sweep 1 hold sweep 1 fill 2";
    for (attempt, slot) in [1000, 2000, 3000, 500, 4000].into_iter().enumerate() {
        let mut scene = Scene::set(stage, &format!("one-changed-{attempt}"), "8M", pages, steps)?;
        let kit = files(stage, "roomy:1000", "neighbour")?;
        let mut command =
            scene.machine.run(stage, User::Ordinary, stage.program("enclave_kit", Link::Dynamic));
        let steps = ["fill", "5", "hold", "sweep", "5"];
        let mut neighbour = Process::start(command.arg("load").args(kit).args(steps))?;
        neighbour.wait_for("holding\n", LONG)?;
        scene.come_to_rest(stage)?;
        let mut bytes = read(&scene.swap)?[slot * SLOT..][..SLOT].to_vec();
        bytes[100] ^= 4;
        write(&scene.swap, slot * SLOT, &bytes)?;
        let line = "exception 14";
        scene.victim.write(b"\n")?;
        let outcome = std::mem::replace(&mut scene.victim, idle(stage)?).finish(LONG)?;
        neighbour.write(b"\n")?;
        let expected = "loaded\nfilled\nholding\nswept: 1000 right, 0 wrong, 0 refused, first -1\ndone\n";
        let text = outcome.text();
        let sweep = text.lines().filter_map(parse).next_back().context("no sweep")?;
        if sweep.refused == 0 {
            continue; // The slot is not in use, or the neighbour's.
        }
        expect(&neighbour.finish(LONG)?, 0, expected)?;
        ensure!((sweep.refused, sweep.wrong, sweep.right) == (1, 0, pages - 1), "{sweep:?}");
        // An access that does not expect it gets the exception.
        ensure!(outcome.end() == (Some(3), None) && text.contains(line), "{}", outcome.describe());
        return scene.end(stage);
    }
    bail!("no slot was in use")
}

/// Which page lies in which slot only the driver knows. So one older copy goes into every slot: for the page that it is
/// a copy of, its address, its enclave and its MAC are right, and only the version is not.
fn replayed(stage: &Stage) -> Result<Verdict> {
    let pages = 2000;
    for slot in [100, 900, 1700] {
        let steps = "fill 1 sweep 1 hold fill 2 sweep 2 hold sweep 2";
        // All but a few pages are evicted, now and then: so the copied one is too, at least once in three times.
        let mut scene = Scene::set(stage, &format!("replayed-{slot}"), "1M", pages, steps)?;
        let older = read(&scene.swap)?[slot * SLOT..][..SLOT].to_vec();
        ensure!(older.iter().any(|byte| *byte != 0), "nothing was ever in slot {slot}");
        let sweep = scene.go_on(1, "holding\n")?[0];
        scene.come_to_rest(stage)?;
        ensure!((sweep.right, sweep.wrong, sweep.refused) == (pages, 0, 0), "nothing is changed: {sweep:?}");
        let evicted = scene.evicted(stage)?;
        ensure!(evicted > pages * 8 / 10, "only {evicted} pages are evicted");
        for slot in 0..read(&scene.swap)?.len() / SLOT {
            write(&scene.swap, slot * SLOT, &older)?;
        }
        let sweep = scene.go_on(1, "done\n")?[0];
        ensure!(
            (sweep.right, sweep.wrong, sweep.refused) == (pages - evicted, 0, evicted),
            "{evicted} pages were evicted and replaced: {sweep:?}"
        );
        scene.end(stage)?;
    }
    Ok(Verdict::Passed)
}

/// A process that does nothing.
fn idle(stage: &Stage) -> Result<Process> {
    Process::start(&mut stage.command(User::Ordinary, "true"))
}

impl Machine {
    /// It serves a newcomer that needs paging itself.
    fn still_serves_kit(&self, stage: &Stage) -> Result<Verdict> {
        // A file of its own: other tests, with other machines, write theirs at the same time.
        let kit = files(stage, "roomy:2500", &format!("newcomer-{}", self.process.pid()))?;
        let mut command = self.run(stage, User::Ordinary, stage.program("enclave_kit", Link::Dynamic));
        let outcome =
            crate::process::run(command.arg("load").args(kit).args(["fill", "8", "sweep", "8"]), b"", LONG)?;
        expect(&outcome, 0, "loaded\nfilled\nswept: 2500 right, 0 wrong, 0 refused, first -1\ndone\n")
    }
}
