//! Programs that need no SGX do under `usgx run` exactly what they do without it: same output, same end.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use super::{SHORT, Verdict, trial, without_notices};
use crate::process;
use crate::stage::{Link, Stage, User};

/// C programs and the arguments to run them with, each a test of its own.
const PROGRAMS: [(&str, &[&str]); 7] = [
    (
        "exits",
        &[
            "status 0",
            "status 7",
            "return 255",
            "thread 9",
            "abort",
            "signal 9",
            "signal 11",
            "signal 15",
            "signal 31",
        ],
    ),
    ("arguments", &["", "one two --help -- -x", "* $HOME \\"]),
    ("identity", &["relations"]),
    ("threads", &["basic", "signals", "fork", "exec", "many"]),
    (
        "processes",
        &[
            "fork",
            "vfork",
            "vfork-fails",
            "spawn",
            "spawn-fails",
            "chain 10",
            "daemon",
            "storm",
            "missing",
            "fexecve",
            "shell",
            "environment",
            "stopped",
            "deep",
            "clone",
        ],
    ),
    (
        "signals",
        &[
            "siginfo",
            "faults",
            "registers",
            "altstack",
            "mask",
            "restart",
            "nested",
            "reset",
            "actions",
            "waiting",
            "forced",
            "inherited",
            "after-exec",
            "threads",
            "timers",
        ],
    ),
    ("descriptors", &["close-range", "close-all", "lowest", "duplicates", "look"]),
];

/// More of the same: memory and clocks.
const MORE_PROGRAMS: [(&str, &[&str]); 2] =
    [("memory", &["fixed", "shared", "mremap", "protect", "advice", "heap", "child"]), ("vdso", &["time"])];

/// Programs of the system, where they are installed.
const SYSTEM: [(&str, &str, &[&str]); 6] = [
    ("pipeline", "/bin/sh", &["-c", "ls / | sort | head -n 3; echo $?"]),
    ("broken-pipe", "/bin/sh", &["-c", "yes | head -n 2; trap 'echo trapped' USR1; kill -USR1 $$; exit 4"]),
    ("jobs", "/bin/sh", &["-c", "sleep 0.1 & wait $!; echo $?; (exit 3) & wait $!; echo $?; kill -9 $$"]),
    (
        "bash",
        "/bin/bash",
        &["-c", "echo {1..3}; x=$(cat <(echo inner)); echo $x ${PIPESTATUS[@]}; ulimit -c"],
    ),
    (
        "perl",
        "/usr/bin/perl",
        &["-e", "local $| = 1; print `echo sub`; if (!fork) { exit 3 } wait; print $? >> 8"],
    ),
    (
        "python",
        "/usr/bin/python3",
        &[
            "-c",
            "import subprocess, threading, mmap, signal\n\
             t = [threading.Thread(target=lambda: None) for _ in range(20)]\n\
             [x.start() for x in t]; [x.join() for x in t]\n\
             print(subprocess.run(['true']).returncode, len(mmap.mmap(-1, 4096)))\n",
        ],
    ),
];

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in stage.users() {
        for (program, lines) in PROGRAMS.into_iter().chain(MORE_PROGRAMS) {
            for line in lines {
                for link in Link::ALL {
                    let dashed = line.split_whitespace().collect::<Vec<_>>().join("-");
                    let name = format!("same/{}/{}/{program} {dashed}", user.name(), link.name());
                    trials.push(trial(stage, name, move |stage| {
                        let arguments: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
                        same(stage, user, stage.program(program, link), &arguments)
                    }));
                }
            }
        }
        for (name, program, arguments) in SYSTEM {
            let name = format!("same/{}/system/{name}", user.name());
            trials.push(trial(stage, name, move |stage| {
                if !Path::new(program).is_file() {
                    return Ok(Verdict::Skipped(format!("{program} is not installed")));
                }
                same(stage, user, Path::new(program), arguments)
            }));
        }
    }
    trials
}

/// Runs a program directly and under `usgx run`, and compares.
pub(super) fn same(stage: &Stage, user: User, program: &Path, arguments: &[&str]) -> Result<Verdict> {
    let variables = [("E2E_PLAIN", "value"), ("E2E_EMPTY", ""), ("E2E_ODD", "a=b c\td")];
    let mut direct = stage.command(user, program);
    let direct = process::run(direct.args(arguments).envs(variables), b"", SHORT)?;
    let mut under = stage.run(user, &[], program);
    let under = process::run(under.args(arguments).envs(variables), b"", SHORT)?;
    ensure!(
        under.status == direct.status
            && under.stdout == direct.stdout
            && without_notices(&under.errors()) == direct.errors(),
        "=== directly: {}\n=== under usgx run: {}",
        direct.describe(),
        under.describe()
    );
    Ok(Verdict::Passed)
}
