//! Debuggers and tracers, in a run and beside it: what they see of a program is the program, and of its enclaves what the
//! kernel would show.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use super::invisible::printed_by;
use super::{LONG, SHORT, Test, Verdict, expect, may_not_trace, missing, trial};
use crate::process::{self, Process};
use crate::stage::{Link, Stage, User};

const GDB: &str = "/usr/bin/gdb";
const STRACE: &str = "/usr/bin/strace";

/// What `inside peeking` prints of a debug enclave on an SGX machine, and of another one.
const PEEKING: [(&str, &str); 2] = [
    (
        "a debug enclave",
        "words: 8, right 80\n\
         long: 12288, right 1\n\
         code: 16, right 1, written 16\n\
         five bytes: 5, changed 1\n\
         vector: 16, then at 16, 8, then at 24\n\
         own: 8, 77, nothing there: EIO\n\
         vm: EFAULT, with something in front 8, 77 0, without 16, written EFAULT\n\
         DBGOPTIN: 8, 8, 1\n\
         OENTRY: EIO, reserved: EIO\n\
         still works: 2\n\
         CSSA: 4, 1\n\
         RIP: 8, in the code 1\n\
         moved on: 8, leaf 4, result 2\n\
         not traced: ESRCH\n\
         peek: 0, 80, right 80; poke: 0\n\
         peek of a TCS: 0, of nothing: EIO\n\
         poked 1, status 0\n",
    ),
    (
        "a production enclave",
        "words: EIO, right 0\n\
         long: EIO, right 0\n\
         code: EIO, right 0, written EIO\n\
         five bytes: EIO, changed 0\n\
         vector: EIO, then at 0, EIO, then at 0\n\
         own: 8, 77, nothing there: EIO\n\
         vm: EFAULT, with something in front 8, 77 0, without 16, written EFAULT\n\
         DBGOPTIN: EIO, EIO, 99\n\
         OENTRY: EIO, reserved: EIO\n\
         still works: 2\n\
         CSSA: EIO, 99\n\
         RIP: EIO, in the code 0\n\
         moved on: EIO, leaf 3, result 0\n\
         not traced: ESRCH\n\
         peek: EIO, 0, right 0; poke: EIO\n\
         peek of a TCS: EIO, of nothing: EIO\n\
         poked 0, status 0\n",
    ),
];

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in stage.users() {
        for (name, output) in PEEKING {
            // The enclave has more pages than the smaller EPC.
            for epc in ["256K", "16M"] {
                let title = format!("debuggers/{}/{name} in {epc}", user.name());
                trials.push(trial(stage, title, move |stage| peeking(stage, user, epc, name, output)));
            }
        }
        let tests: [(&str, &str, Test); 5] = [
            ("gdb attaches", GDB, gdb_attaches),
            ("gdb starts a program", GDB, gdb_starts),
            ("gdb looks into enclaves", GDB, gdb_looks),
            ("strace starts programs", STRACE, strace),
            ("strace starts programs in a PID namespace", STRACE, strace_apart),
        ];
        for (name, tool, test) in tests {
            trials.push(trial(stage, format!("debuggers/{}/{name}", user.name()), move |stage| {
                missing(tool).map_or_else(|| test(stage, user), Ok)
            }));
        }
    }
    trials
}

/// By `ptrace` and `/proc/PID/mem`, from programs of the same run.
fn peeking(stage: &Stage, user: User, epc: &str, whose: &str, output: &str) -> Result<Verdict> {
    let mut command = stage.run(user, &["--epc", epc], stage.program("inside", Link::Dynamic));
    command.arg(stage.key()).arg("peeking");
    if whose == "a debug enclave" {
        command.arg("debug");
    }
    let outcome = process::run(&mut command, b"", LONG)?;
    if outcome.end() == (Some(0), None) && outcome.text().ends_with("status 0x6200\n") {
        return Ok(may_not_trace());
    }
    expect(&outcome, 0, output)
}

/// Signals by which the runtime works, which a debugger is to pass on.
const PASS_ON: &str = "handle SIGSYS SIGILL SIGSEGV SIGBUS SIGFPE nostop noprint pass";

/// A debugger in the run starts a program, by way of a shell, and stops it where it is told to. What its runtime does
/// for the program, exceptions of the enclave's included, stops nobody.
fn gdb_starts(stage: &Stage, user: User) -> Result<Verdict> {
    let mut gdb = stage.run(user, &[], "gdb");
    gdb.args(["--nx", "--batch"]);
    for line in ["break main", "run", "print argc", "continue"] {
        gdb.args(["-ex", line]);
    }
    gdb.arg("--args").arg(stage.program("inside", Link::Dynamic)).arg(stage.key()).arg("exceptions");
    let outcome = process::run(&mut gdb, b"", LONG)?;
    let text = outcome.text();
    let seen = ["Breakpoint 1, main", "$1 = 3", printed_by("exceptions"), "exited normally]"];
    ensure!(
        seen.iter().all(|part| text.contains(part)) && !text.contains("received signal"),
        "gdb did not run the program: {}",
        outcome.describe()
    );
    Ok(Verdict::Passed)
}

/// A debugger in the run reads and writes pages of a debug enclave, evicted ones as well, and of no other.
fn gdb_looks(stage: &Stage, user: User) -> Result<Verdict> {
    let look = |arguments: &[&str]| {
        let mut gdb = stage.run(user, &["--epc", "256K"], "gdb");
        gdb.args(["--nx", "--batch"]);
        let lines = [
            "break peek_tcs",
            "run",
            "x/2gx base + (DATA + 43) * PAGE",
            "set {long}(base + (DATA + 44) * PAGE) = 5",
        ];
        for line in lines.into_iter().chain(["x/gx base + (DATA + 44) * PAGE", "kill"]) {
            gdb.args(["-ex", line]);
        }
        gdb.arg("--args").arg(stage.program("inside", Link::Dynamic)).arg(stage.key()).arg("peeking");
        process::run(gdb.args(arguments), b"", LONG)
    };
    let outcome = look(&["debug"])?;
    let text = outcome.text();
    ensure!(
        text.contains("0x0000002b00000000\t0x0000002b00000008") && text.contains("0x0000000000000005"),
        "gdb did not see or change the debug enclave: {}",
        outcome.describe()
    );
    let outcome = look(&[])?;
    let text = [outcome.text(), outcome.errors()].concat();
    ensure!(
        text.contains("Cannot access memory") && !text.contains("0x0000002b"),
        "gdb was not refused: {}",
        outcome.describe()
    );
    Ok(Verdict::Passed)
}

/// A tracer in the run starts a program, and follows it from image to image and into children.
fn strace(stage: &Stage, user: User) -> Result<Verdict> {
    traced_from(stage, user, &[])
}

/// The same where processes have other numbers than outside.
fn strace_apart(stage: &Stage, user: User) -> Result<Verdict> {
    let apart = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"];
    let mut direct = stage.command(user, apart[0]);
    if process::run(direct.args(&apart[1..]).arg("true"), b"", SHORT)?.end() != (Some(0), None) {
        return Ok(Verdict::Skipped("this host gives users no namespaces of their own".to_owned()));
    }
    traced_from(stage, user, &apart)
}

fn traced_from(stage: &Stage, user: User, place: &[&str]) -> Result<Verdict> {
    let log = stage.home(user).join(format!("strace-{}.log", place.len()));
    let command = [place, &["strace", "-f", "-e", "trace=execve", "-o"]].concat();
    let mut strace = stage.run(user, &[], command[0]);
    strace.args(&command[1..]).arg(&log);
    strace.args(["/bin/sh", "-c", "/bin/echo one; exec /bin/echo two"]);
    let outcome = process::run(&mut strace, b"", LONG)?;
    if outcome.errors().contains("Operation not permitted") && !outcome.errors().contains("usgx") {
        return Ok(may_not_trace());
    }
    let images = std::fs::read_to_string(&log).unwrap_or_default();
    let seen = images.lines().filter(|line| line.contains("execve") && line.ends_with("= 0")).count();
    ensure!(seen == 3, "strace saw {seen} new images, not 3:\n{images}\n{}", outcome.describe());
    expect(&outcome, 0, "one\ntwo\n")
}

/// A debugger comes, looks at the program outside of the enclave, and goes; the program's work is right.
fn gdb_attaches(stage: &Stage, user: User) -> Result<Verdict> {
    let mut program = stage.run(user, &[], stage.program("inside", Link::Dynamic));
    let mut program = Process::start(program.arg(stage.key()).arg("debugged"))?;
    program.wait_for("ready\n", SHORT)?;
    let mut gdb = stage.command(user, "gdb");
    gdb.args(["--nx", "--batch", "--pid", &program.pid().to_string()]);
    for line in [
        "set breakpoint pending off",
        PASS_ON,
        "break between",
        "continue",
        "print round_number >= 0",
        "continue",
        "delete",
        "detach",
    ] {
        gdb.args(["-ex", line]);
    }
    let outcome = process::run(&mut gdb, b"", LONG)?;
    let text = outcome.text();
    if outcome.errors().contains("ptrace") && outcome.errors().contains("not permitted") {
        return Ok(may_not_trace());
    }
    ensure!(
        text.contains("$1 = 1") && text.matches("Breakpoint 1, between").count() == 2,
        "gdb did not stop at its breakpoint twice: {}",
        outcome.describe()
    );
    program.signal(Signal::TERM).context("the program has gone")?;
    expect(&program.finish(SHORT)?, 0, "ready\nwrong 0\n")
}
