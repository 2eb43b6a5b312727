//! What a program notices of usgx: nothing. Signals, threads and processes as they are natively, and an enclave's
//! exceptions and interruptions as they are on an SGX machine.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use super::selftests::{NOT_BUILT, tally};
use super::transparency::same;
use super::{LONG, SHORT, Verdict, expect, trial};
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

/// Runtimes of other languages: their own program, and one that starts a program with an enclave.
const LANGUAGES: [(&str, &str, &[&str]); 4] = [
    (
        "node",
        "/usr/bin/node",
        &[
            "-e",
            "console.log('at work');\n\
             const { execFileSync } = require('child_process');\n\
             process.stdout.write(execFileSync(process.argv[1], process.argv.slice(2)));",
        ],
    ),
    (
        "python",
        "/usr/bin/python3",
        &[
            "-c",
            "import subprocess, sys, threading\n\
             thread = threading.Thread(target=print, args=('at work',)); thread.start(); thread.join()\n\
             sys.stdout.write(subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True).stdout)\n",
        ],
    ),
    ("java", "/usr/bin/java", &["Start.java"]),
    ("go", "/usr/bin/go", &["run", "start.go"]),
];

const JAVA: &str = r#"
public class Start {
    public static void main(String[] arguments) throws Exception {
        Thread thread = new Thread(() -> System.out.println("at work"));
        thread.start();
        thread.join();
        // The collector and the checks of null references live on signals.
        String nothing = null;
        for (int i = 0; i < 100000; i++) {
            try {
                nothing.length();
            } catch (NullPointerException expected) {
            }
        }
        System.exit(new ProcessBuilder(arguments).inheritIO().start().waitFor());
    }
}
"#;

const GO: &str = r#"
package main

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
)

func main() {
	var group sync.WaitGroup
	for i := 0; i < 100; i++ {
		group.Add(1)
		go func() { defer group.Done(); defer func() { recover() }(); var p *int; *p = 1 }()
	}
	group.Wait()
	fmt.Println("at work")
	command := exec.Command(os.Args[1], os.Args[2:]...)
	command.Stdout = os.Stdout
	if command.Run() != nil {
		os.Exit(1)
	}
}
"#;

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
        for (name, output) in PEEKING {
            // The enclave has more pages than the smaller EPC.
            for epc in ["256K", "16M"] {
                let title = format!("debuggers/{}/{name} in {epc}", user.name());
                trials.push(trial(stage, title, move |stage| peeking(stage, user, epc, name, output)));
            }
        }
        for (name, program, arguments) in LANGUAGES {
            let title = format!("languages/{}/{name}", user.name());
            trials.push(trial(stage, title, move |stage| {
                language(stage, user, name, Path::new(program), arguments)
            }));
        }
        for (name, test) in [
            ("gdb starts a program", gdb_starts as Test),
            ("gdb looks into enclaves", gdb_looks),
            ("strace starts programs", strace),
            ("strace starts programs in a PID namespace", strace_apart),
        ] {
            trials.push(trial(stage, format!("debuggers/{}/{name}", user.name()), move |stage| {
                test(stage, user)
            }));
        }
        let tests: [(&str, Test); 4] = [
            ("selftests under a timer of 1 kHz", ticking_selftests),
            ("gdb attaches", gdb),
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

type Test = fn(&Stage, User) -> Result<Verdict>;

fn inside(stage: &Stage, user: User, mode: &str, output: &str) -> Result<Verdict> {
    let mut command = stage.run(user, &[], stage.program("inside", Link::Dynamic));
    expect(&process::run(command.arg(stage.key()).arg(mode), b"", LONG)?, 0, output)
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
        return Ok(Verdict::Skipped("this host does not let a user trace a program of their own".to_owned()));
    }
    expect(&outcome, 0, output)
}

fn language(stage: &Stage, user: User, name: &str, program: &Path, arguments: &[&str]) -> Result<Verdict> {
    if !program.exists() {
        return Ok(Verdict::Skipped(format!("{} is not installed", program.display())));
    }
    let home = stage.home(user);
    for (file, text) in [("Start.java", JAVA), ("start.go", GO)] {
        std::fs::write(home.join(file), text)?;
    }
    let mut command = stage.run(user, &[], program);
    command.args(arguments).arg(stage.program("inside", Link::Dynamic)).arg(stage.key()).arg("closing");
    if name == "go" {
        command.env("GOCACHE", home.join("go-cache")).env("GO111MODULE", "off");
    }
    let output = format!("at work\n{}", printed_by("closing"));
    expect(&process::run(&mut command, b"", LONG)?, 0, &output)
}

fn printed_by(mode: &str) -> &'static str {
    INSIDE.iter().find(|(name, _)| *name == mode).map_or("", |(_, output)| output)
}

fn ticking_selftests(stage: &Stage, user: User) -> Result<Verdict> {
    let Some(directory) = stage.selftests() else { return Ok(Verdict::Skipped(NOT_BUILT.to_owned())) };
    let library = stage.home(user).join("ticker.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/ticker.c");
    let compiled =
        Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status()?;
    ensure!(compiled.success(), "ticker.c cannot be compiled as a library: {compiled}");
    let mut command = stage.run(user, &["--epc", "16M"], "env");
    command.arg(format!("LD_PRELOAD={}", library.display())).arg("./test_sgx").current_dir(directory);
    let outcome = process::run(&mut command, b"", LONG)?;
    let text = outcome.text();
    let (passed, _) = tally(&text);
    ensure!(outcome.end() == (Some(0), None) && passed == 16, "{}", outcome.describe());
    Ok(Verdict::Passed)
}

/// Signals by which the runtime works, which a debugger is to pass on.
const PASS_ON: &str = "handle SIGSYS SIGILL SIGSEGV SIGBUS SIGFPE nostop noprint pass";

/// A debugger in the run starts a program, by way of a shell, and stops it where it is told to. What its runtime does
/// for the program, exceptions of the enclave's included, stops nobody.
fn gdb_starts(stage: &Stage, user: User) -> Result<Verdict> {
    if !Path::new("/usr/bin/gdb").is_file() {
        return Ok(Verdict::Skipped("gdb is not installed".to_owned()));
    }
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
    if !Path::new("/usr/bin/gdb").is_file() {
        return Ok(Verdict::Skipped("gdb is not installed".to_owned()));
    }
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
    if !Path::new("/usr/bin/strace").is_file() {
        return Ok(Verdict::Skipped("strace is not installed".to_owned()));
    }
    let log = stage.home(user).join(format!("strace-{}.log", place.len()));
    let command = [place, &["strace", "-f", "-e", "trace=execve", "-o"]].concat();
    let mut strace = stage.run(user, &[], command[0]);
    strace.args(&command[1..]).arg(&log);
    strace.args(["/bin/sh", "-c", "/bin/echo one; exec /bin/echo two"]);
    let outcome = process::run(&mut strace, b"", LONG)?;
    if outcome.errors().contains("Operation not permitted") && !outcome.errors().contains("usgx") {
        return Ok(Verdict::Skipped("this host does not let a user trace a program of their own".to_owned()));
    }
    let images = std::fs::read_to_string(&log).unwrap_or_default();
    let seen = images.lines().filter(|line| line.contains("execve") && line.ends_with("= 0")).count();
    ensure!(seen == 3, "strace saw {seen} new images, not 3:\n{images}\n{}", outcome.describe());
    expect(&outcome, 0, "one\ntwo\n")
}

/// A debugger comes, looks at the program outside of the enclave, and goes; the program's work is right.
fn gdb(stage: &Stage, user: User) -> Result<Verdict> {
    if !Path::new("/usr/bin/gdb").is_file() {
        return Ok(Verdict::Skipped("gdb is not installed".to_owned()));
    }
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
        return Ok(Verdict::Skipped("this host does not let a user trace a program of their own".to_owned()));
    }
    ensure!(
        text.contains("$1 = 1") && text.matches("Breakpoint 1, between").count() == 2,
        "gdb did not stop at its breakpoint twice: {}",
        outcome.describe()
    );
    program.signal(Signal::TERM).context("the program has gone")?;
    expect(&program.finish(SHORT)?, 0, "ready\nwrong 0\n")
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
        return Ok(Verdict::Skipped("this host does not let a user trace a program of their own".to_owned()));
    }
    expect(&outcome, 0, "reached 1, in the enclave 1\n")?;
    let verdict = "handled 1, inside 1, results wrong 0, contexts wrong 0, in between 0\n";
    expect(&program.finish(SHORT)?, 0, &format!("{line}{verdict}"))
}
