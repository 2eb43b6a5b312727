//! What a program notices of usgx: nothing. Signals, threads and processes as they are natively, and an enclave's
//! exceptions and interruptions as they are on an SGX machine.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use super::selftests::{NOT_BUILT, tally};
use super::transparency::same;
use super::{LONG, SHORT, Test, Verdict, expect, may_not_trace, trial};
use crate::process::{self, Process};
use crate::stage::{Link, Stage, User};

/// C programs and their modes: each does the same directly and under `usgx run`.
const PROGRAMS: [(&str, &[&str]); 5] = [
    ("traced", &["image", "vforked", "event", "stops", "exception", "twice", "busy"]),
    (
        "handlers",
        &[
            "segv",
            "segv-altstack",
            "bus",
            "bus-altstack",
            "ill",
            "ill-altstack",
            "trap",
            "trap-altstack",
            "sys",
            "sys-altstack",
            "fpe",
            "stepping",
            "stepping-calls",
            "altstack",
            "altstack-nested",
            "autodisarm",
            "altstack-jumps",
            "altstack-errors",
            "altstack-threads",
            "jumps",
            "nodefer",
            "resethand",
            "fatal",
            "defaults",
            "exceptions",
            "cores",
            "context",
            "wide",
            "frame",
            "context-mask",
            "swapping",
            "direction",
            "errors",
        ],
    ),
    (
        "waits",
        &[
            "suspend",
            "ppoll",
            "pselect",
            "epoll",
            "timedwait",
            "waiting-thread",
            "open-thread",
            "pending",
            "signalfd",
            "queue",
            "directed",
            "restarting",
            "failing",
            "storm",
            "timers",
            "files",
            "jobs",
            "senders",
            "vforked",
        ],
    ),
    (
        "crowd",
        &[
            "thousand",
            "small",
            "cancel",
            "cancel-async",
            "robust",
            "rseq",
            "first-ends",
            "group-ends",
            "exec-ends",
            "keys",
            "detach",
            "at-fork",
            "identities",
            "timer-threads",
            "barriers",
            "under-fire",
        ],
    ),
    (
        "worlds",
        &[
            "chroot",
            "namespaces",
            "cloned",
            "limit-files",
            "close-all",
            "filters",
            "rights",
            "scripts",
            "kept",
            "spawned",
            "pidfd",
            "daemonize",
            "races",
            "subreaper",
            "huge",
            "identities",
            "dumpable",
        ],
    ),
];

/// Modes of `inside`, and what they print on an SGX machine.
const INSIDE: [(&str, &str); 22] = [
    ("ticking", "interrupted inside 1, contexts wrong 0, results wrong 0\n"),
    ("ticking-raw", "interrupted inside 1, contexts wrong 0, results wrong 0\n"),
    ("visiting", "ticks 1, contexts wrong 0, results wrong 0\n"),
    ("reentering", "interrupted inside 1, contexts wrong 0, results wrong 0\n"),
    (
        "exceptions",
        "ud2: leaf 3, vector 6, error 0, address none; handler: leaf 4, frame 1; resumed: leaf 4, done 1\n\
         division: leaf 3, vector 0, error 0, address none; handler: leaf 4, frame 1; resumed: leaf 4, done 1\n\
         hlt: leaf 3, vector 13, error 0, address none; handler: leaf 4, frame 1; resumed: leaf 4, done 1\n\
         system call: leaf 3, vector 6, error 0, address none; handler: leaf 4, frame 1; resumed: leaf 4, done 1\n\
         store to code: leaf 3, vector 14, error 0x7, address right; handler: leaf 4, frame 1; resumed: leaf 4, done 1\n\
         load from a TCS: leaf 3, vector 14, error 0x8005, address right; handler: leaf 4, frame 1; resumed: leaf 4, done 1\n\
         load where nothing is: leaf 3, vector 14, error 0x4, address right; handler: leaf 4, frame 1; resumed: leaf 4, done 1\n\
         jump to data: leaf 3, vector 14, error 0x15, address right\n",
    ),
    (
        "signals",
        "ud2: signal 4, code 2, trap 6, error 0, address of the AEP, at the AEP 1; handler: frame 1; resumed: done 1\n\
         division: signal 8, code 1, trap 0, error 0, address of the AEP, at the AEP 1; handler: frame 1; resumed: done 1\n\
         breakpoint: signal 4, code 2, trap 6, error 0, address of the AEP, at the AEP 1; handler: frame 1; resumed: done 1\n\
         hlt: signal 11, code 128, trap 13, error 0, address none, at the AEP 1; handler: frame 1; resumed: done 1\n\
         system call: signal 4, code 2, trap 6, error 0, address of the AEP, at the AEP 1; handler: frame 1; resumed: done 1\n\
         store to code: signal 11, code 2, trap 14, error 0x7, address right, at the AEP 1; handler: frame 1; resumed: done 1\n\
         load from a TCS: signal 11, code 2, trap 14, error 0x8005, address right, at the AEP 1; handler: frame 1; resumed: done 1\n\
         load where nothing is: signal 11, code 1, trap 14, error 0x4, address right, at the AEP 1; handler: frame 1; resumed: done 1\n\
         jump to data: signal 11, code 2, trap 14, error 0x15, address right, at the AEP 1\n\
         contexts wrong 0\n",
    ),
    ("repairing", "200 repaired, contexts wrong 0\n"),
    (
        "nesting",
        "frame 0: leaf 3, vector 6\n\
         frame 1: leaf 3, vector 6, error 0\n\
         frame 2: leaf 3, vector 6, error 0\n\
         frame 99: leaf 2, vector 13, error 0\n\
         resumed: leaf 3, vector 6\n",
    ),
    ("user-handler", "called 200 times\n"),
    (
        "one-tcs",
        "second on a TCS: leaf 2, vector 13, error 0\n\
         resume of it: leaf 3, vector 13\n\
         thread 1: leaf 4, result 10\n\
         afterwards 7\n",
    ),
    (
        "forking",
        "10 children right\n\
         thread 1: leaf 4, result 10\n\
         thread 2: leaf 4, result 10\n",
    ),
    (
        "spawning",
        "10 spawned\n\
         thread 1: leaf 4, result 10\n\
         thread 2: leaf 4, result 10\n\
         thread 3: leaf 4, result 10\n",
    ),
    (
        "ends",
        "exit: status 0x1400\n\
         _exit: status 0x1400\n\
         SIGKILL: status 0x9\n\
         SIGTERM: status 0xf\n\
         exec: status 0x1500\n\
         exec from a thread: status 0x1500\n\
         first thread ends: status 0\n\
         still here 2\n",
    ),
    (
        "cancelling",
        "cancelled 1, cleaned up 1\n\
         entered: leaf 4, frame 1\n",
    ),
    ("jumping", "20 jumped out of and resumed, contexts wrong 0\n"),
    (
        "signalled",
        "handled inside 1, contexts wrong 0\n\
         thread 1: leaf 4, result 10\n\
         thread 2: leaf 4, result 10\n\
         thread 3: leaf 4, result 10\n",
    ),
    (
        "stopping",
        "stopped 1\n\
         stopped 1\n\
         stopped 1\n\
         ended with 30\n",
    ),
    ("wide", "kept\n"),
    (
        "deadly",
        "handled: status 0x2800\n\
         blocked: status 0x4\n\
         ignored: status 0x4\n",
    ),
    (
        "passed",
        "read 0x200000010, 8\n\
         child 0, mine 9\n",
    ),
    (
        "closing",
        "close 0\n\
         2\n\
         3\n\
         in a child 4\n\
         another 5\n",
    ),
    ("crowd", "results wrong 0, contexts wrong 0\n"),
];

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in stage.users() {
        for (program, modes) in PROGRAMS {
            for &mode in modes {
                for link in Link::ALL {
                    let name = format!("same/{}/{}/{program} {mode}", user.name(), link.name());
                    trials.push(trial(stage, name, move |stage| {
                        same(stage, user, stage.program(program, link), &[mode])
                    }));
                }
            }
        }
        for (mode, output) in INSIDE {
            let name = format!("inside/{}/{mode}", user.name());
            trials.push(trial(stage, name, move |stage| inside(stage, user, mode, output)));
        }
        let tests: [(&str, Test); 3] = [
            ("selftests under a timer of 1 kHz", ticking_selftests),
            ("a signal at each instruction of an ECALL", |stage, user| stepped(stage, user, &[])),
            ("a signal at each instruction of an exception and a resume", |stage, user| {
                stepped(stage, user, &["exceptions"])
            }),
        ];
        for (name, test) in tests {
            trials.push(trial(stage, format!("interrupted/{}/{name}", user.name()), move |stage| {
                test(stage, user)
            }));
        }
    }
    trials
}

fn inside(stage: &Stage, user: User, mode: &str, output: &str) -> Result<Verdict> {
    let mut command = stage.run(user, &[], stage.program("inside", Link::Dynamic));
    expect(&process::run(command.arg(stage.key()).arg(mode), b"", LONG)?, 0, output)
}

/// What `inside` prints in a mode.
pub(super) fn printed_by(mode: &str) -> &'static str {
    INSIDE.iter().find(|(name, _)| *name == mode).map_or("", |(_, output)| output)
}

fn ticking_selftests(stage: &Stage, user: User) -> Result<Verdict> {
    let Some(directory) = stage.selftests() else { return Ok(Verdict::Skipped(NOT_BUILT.to_owned())) };
    let library = stage.home(user).join("ticker.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/ticker.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source);
    let compiled = process::run(&mut gcc, b"", SHORT)?;
    ensure!(compiled.status.success(), "ticker.c cannot be compiled as a library: {}", compiled.describe());
    let mut command = stage.run(user, &["--epc", "16M"], "env");
    command.arg(format!("LD_PRELOAD={}", library.display())).arg("./test_sgx").current_dir(directory);
    let outcome = process::run(&mut command, b"", LONG)?;
    let text = outcome.text();
    let (passed, _) = tally(&text);
    ensure!(outcome.end() == (Some(0), None) && passed == 16, "{}", outcome.describe());
    Ok(Verdict::Passed)
}

/// Single-steps through one round of the program, and then sends it a signal at each place of such a round.
fn stepped(stage: &Stage, user: User, more: &[&str]) -> Result<Verdict> {
    let mut program = stage.run(user, &[], stage.program("inside", Link::Dynamic));
    let mut program = Process::start(program.arg(stage.key()).arg("stepped").args(more))?;
    program.wait_for("\n", SHORT)?;
    let line = program.text();
    let mut stepper = stage.command(user, stage.program("stepper", Link::Static));
    stepper.arg(program.pid().to_string()).args(line.split_whitespace());
    let outcome = process::run(&mut stepper, b"", LONG)?;
    if outcome.text().starts_with("seize: Operation not permitted") {
        return Ok(may_not_trace());
    }
    expect(&outcome, 0, "reached 1, in the enclave 1\n")?;
    let verdict = "handled 1, inside 1, results wrong 0, contexts wrong 0, in between 0\n";
    expect(&program.finish(SHORT)?, 0, &format!("{line}{verdict}"))
}
