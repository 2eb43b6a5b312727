//! What `usgx run` promises around a program: it is the program that starts, with the shell's conventions where
//! it cannot start, and nothing is left when it has ended.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};

use super::{SHORT, Test, Verdict, expect, trial};
use crate::process::{self, Process};
use crate::stage::{Link, Stage, User};

/// How long a program's output may stay open after its end.
const GOODBYE: Duration = Duration::from_secs(3);
/// How often that is tried: a busy computer makes one of them late, and not all.
const ATTEMPTS: usize = 10;

const TESTS: [(&str, Test); 22] = [
    ("pid is the program's own", pid_is_the_programs_own),
    ("a signal's death is a shell's 139", death_by_signal_in_a_shell),
    ("a signal sent to the pid reaches the program", signal_reaches_the_program),
    ("standard input and output are the program's", streams_are_the_programs),
    ("end of input is seen", end_of_input_is_seen),
    ("output after the end is not held open", output_is_not_held_open),
    ("a reader that goes away ends the program", reader_that_goes_away),
    ("the terminal is kept", terminal_is_kept),
    ("a script starts by its first line", script),
    ("a script's interpreter takes an argument", script_with_argument),
    ("a program is found on the path", program_on_the_path),
    ("a program may be called like an option", called_like_an_option),
    ("a missing program is 127", missing_program),
    ("a missing program on the path is 127", missing_on_the_path),
    ("a file that is not executable is 126", not_executable),
    ("a program that cannot be read is 126, or runs", unreadable),
    ("a directory is 126", directory),
    ("a file that is no program is 126", no_program),
    ("what another tracer holds cannot run", held_by_another_tracer),
    ("without its attendant a run goes on, and starts nothing", without_attendant),
    ("nothing is left behind", nothing_is_left_behind),
    ("only ordinary users run without new privileges", new_privileges),
];

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let of_user = |user: User| {
        let tests = TESTS.into_iter().chain([("a 32-bit program is 126", program_of_32_bits as Test)]);
        tests.map(move |(name, test)| {
            trial(stage, format!("run/{}/{name}", user.name()), move |stage| test(stage, user))
        })
    };
    stage.users().into_iter().flat_map(of_user).collect()
}

fn pid_is_the_programs_own(stage: &Stage, user: User) -> Result<Verdict> {
    let mut command = stage.run(user, &[], stage.program("identity", Link::Dynamic));
    let outcome = process::run(&mut command, b"", SHORT)?;
    expect(&outcome, 0, &format!("{}\n", outcome.pid))
}

fn death_by_signal_in_a_shell(stage: &Stage, user: User) -> Result<Verdict> {
    let mut shell = stage.command(user, "/bin/sh");
    shell.args(["-c", "\"$0\" run -- \"$1\" signal 11 >/dev/null; echo $?"]);
    shell.arg(stage.usgx()).arg(stage.program("exits", Link::Static));
    expect(&process::run(&mut shell, b"", SHORT)?, 0, "139\n")
}

fn signal_reaches_the_program(stage: &Stage, user: User) -> Result<Verdict> {
    let mut command = stage.run(user, &[], "/bin/sh");
    command.args(["-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done"]);
    let mut process = Process::start(&mut command)?;
    process.wait_for("ready\n", SHORT)?;
    process.signal(Signal::TERM)?;
    expect(&process.finish(SHORT)?, 5, "ready\ngot it\n")
}

fn streams_are_the_programs(stage: &Stage, user: User) -> Result<Verdict> {
    let text: Vec<u8> =
        (0..1_000_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut process = Process::start(&mut stage.run(user, &[], "cat"))?;
    process.write(&text)?;
    let outcome = process.finish(SHORT)?;
    ensure!(outcome.end() == (Some(0), None), "cat: {}", outcome.status);
    ensure!(outcome.stdout == text, "{} bytes in, {} other bytes out", text.len(), outcome.stdout.len());
    Ok(Verdict::Passed)
}

fn end_of_input_is_seen(stage: &Stage, user: User) -> Result<Verdict> {
    let outcome = process::run(stage.run(user, &[], "wc").arg("-c"), b"12345", SHORT)?;
    expect(&outcome, 0, "5\n")
}

fn output_is_not_held_open(stage: &Stage, user: User) -> Result<Verdict> {
    // A shell's $(...) waits until nobody has the pipe open.
    let mut shell = stage.command(user, "/bin/sh");
    shell.args(["-c", "x=$(\"$0\" run -- /bin/echo inner); echo \"$x\""]).arg(stage.usgx());
    let mut times = Vec::new();
    while times.len() < ATTEMPTS {
        let start = Instant::now();
        let verdict = expect(&process::run(&mut shell, b"", SHORT)?, 0, "inner\n")?;
        times.push(start.elapsed());
        if start.elapsed() < GOODBYE {
            return Ok(verdict);
        }
    }
    bail!("it took {times:?}")
}

fn reader_that_goes_away(stage: &Stage, user: User) -> Result<Verdict> {
    let mut shell = stage.command(user, "/bin/sh");
    shell.args(["-c", "\"$0\" run -- yes | head -n 1"]).arg(stage.usgx());
    expect(&process::run(&mut shell, b"", SHORT)?, 0, "y\n")
}

fn terminal_is_kept(stage: &Stage, user: User) -> Result<Verdict> {
    let program = stage.program("tty", Link::Dynamic).display().to_string();
    let under = format!("{} run -- {program}", stage.usgx().display());
    let script = |line: &str| {
        let mut command = stage.command(user, "script");
        process::run(command.args(["--quiet", "--return", "--command", line, "/dev/null"]), b"", SHORT)
    };
    let (direct, under) = (script(&program)?, script(&under)?);
    ensure!(
        under.status == direct.status && under.stdout == direct.stdout,
        "=== directly: {}\n=== under usgx run: {}",
        direct.describe(),
        under.describe()
    );
    expect(&direct, 5, &under.text())
}

/// Writes a file into the user's home.
fn write(stage: &Stage, user: User, name: &str, content: &[u8], mode: u32) -> Result<PathBuf> {
    let path = stage.home(user).join(name);
    process::write_program(&path, content, mode)?;
    Ok(path)
}

fn script(stage: &Stage, user: User) -> Result<Verdict> {
    let path = write(stage, user, "script", b"#!/bin/sh\necho \"$0 [$1] $#\"\nexit 6\n", 0o755)?;
    let outcome = process::run(stage.run(user, &[], &path).args(["a b", "c"]), b"", SHORT)?;
    expect(&outcome, 6, &format!("{} [a b] 2\n", path.display()))
}

fn script_with_argument(stage: &Stage, user: User) -> Result<Verdict> {
    let path = write(stage, user, "script-e", b"#!/bin/sh -e\nfalse\necho not reached\n", 0o755)?;
    expect(&process::run(&mut stage.run(user, &[], &path), b"", SHORT)?, 1, "")
}

fn program_on_the_path(stage: &Stage, user: User) -> Result<Verdict> {
    expect(&process::run(stage.run(user, &[], "echo").arg("found"), b"", SHORT)?, 0, "found\n")
}

fn called_like_an_option(stage: &Stage, user: User) -> Result<Verdict> {
    write(stage, user, "--stats", b"#!/bin/sh\necho \"$@\"\n", 0o755)?;
    let mut command = stage.run(user, &[], "--stats");
    let outcome = process::run(command.arg("--epc").env("PATH", stage.home(user)), b"", SHORT)?;
    expect(&outcome, 0, "--epc\n")
}

/// A program that cannot start: an exit status, nothing on standard output, and a message that names it.
fn refused(stage: &Stage, user: User, program: &Path, status: i32) -> Result<Verdict> {
    let outcome = process::run(&mut stage.run(user, &[], program), b"", SHORT)?;
    let verdict = expect(&outcome, status, "")?;
    let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    ensure!(
        outcome.errors().starts_with("usgx: ") && outcome.errors().contains(&name),
        "a message that begins with `usgx: ` and names {name} was expected: {}",
        outcome.describe()
    );
    Ok(verdict)
}

fn missing_program(stage: &Stage, user: User) -> Result<Verdict> {
    refused(stage, user, Path::new("/nonexistent/some-program"), 127)
}

fn missing_on_the_path(stage: &Stage, user: User) -> Result<Verdict> {
    refused(stage, user, Path::new("no-such-program-anywhere"), 127)
}

fn not_executable(stage: &Stage, user: User) -> Result<Verdict> {
    let path = write(stage, user, "plain-file", b"#!/bin/sh\n", 0o644)?;
    refused(stage, user, &path, 126)
}

/// The kernel keeps the memory of a program that its user cannot read from everybody who is not root.
fn unreadable(stage: &Stage, user: User) -> Result<Verdict> {
    let content = fs::read(stage.program("arguments", Link::Static))?;
    let path = write(stage, user, "unreadable", &content, 0o111)?;
    let directly = process::run(stage.command(user, &path).arg("x"), b"", SHORT)?;
    let mut shell = stage.run(user, &[], "/bin/sh");
    let outcome = process::run(shell.args(["-c", "\"$0\" x; exit $?"]).arg(&path), b"", SHORT)?;
    if user == User::Ordinary {
        expect(&outcome, 126, "")?;
        ensure!(outcome.errors().contains("execute but not read"), "{}", outcome.describe());
        return refused(stage, user, &path, 126);
    }
    expect(&outcome, 0, &directly.text())?;
    // The attendant may what the program may no longer.
    stage.open_to_all(&stage.home(user))?;
    let mut other = stage.run(user, &[], "setpriv");
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&path).arg("x");
    expect(&process::run(&mut other, b"", SHORT)?, 0, &directly.text().replace(" 0 0", " 65534 65534"))
}

fn directory(stage: &Stage, user: User) -> Result<Verdict> {
    refused(stage, user, &stage.home(user), 126)
}

fn no_program(stage: &Stage, user: User) -> Result<Verdict> {
    let path = write(stage, user, "no-program", b"just text\n", 0o755)?;
    refused(stage, user, &path, 126)
}

fn program_of_32_bits(stage: &Stage, user: User) -> Result<Verdict> {
    // An ELF header for i386, and enough after it to be read as one.
    let mut header = vec![0_u8; 512];
    header[..8].copy_from_slice(b"\x7fELF\x01\x01\x01\0");
    (header[16], header[18], header[20]) = (2, 3, 1);
    (header[28], header[40], header[42], header[44]) = (52, 52, 32, 1);
    let path = write(stage, user, "program-of-32-bits", &header, 0o755)?;
    refused(stage, user, &path, 126)
}

fn held_by_another_tracer(stage: &Stage, user: User) -> Result<Verdict> {
    let around = stage.program("around", Link::Static);
    let mut directly = stage.command(user, around);
    let outcome = process::run(directly.args(["/bin/echo", "untouched"]), b"", SHORT)?;
    expect(&outcome, 0, "untouched\n")?;
    let mut under = stage.command(user, around);
    let outcome = process::run(under.arg(stage.usgx()).args(["run", "--", "/bin/echo", "run"]), b"", SHORT)?;
    let verdict = expect(&outcome, 125, "")?;
    let message = outcome.errors();
    ensure!(message.contains("already traces") && message.contains("usgx run -- strace"), "{message}");
    Ok(verdict)
}

fn without_attendant(stage: &Stage, user: User) -> Result<Verdict> {
    let mut shell = stage.run(user, &[], "/bin/sh");
    let mut process = Process::start(shell.args(["-c", "echo ready; read x; /bin/echo started; echo $?"]))?;
    process.wait_for("ready\n", SHORT)?;
    let own = process.pid().to_string();
    for other in process.left_over() {
        let number = other.split(' ').next().filter(|number| *number != own);
        if let Some(attendant) = number.and_then(|number| number.parse().ok()).and_then(Pid::from_raw) {
            // An error means that it has just ended by itself.
            let _ended = kill_process(attendant, Signal::KILL);
        }
    }
    let deadline = Instant::now() + SHORT;
    while process.left_over().len() > 1 {
        ensure!(Instant::now() < deadline, "{:?} do not end", process.left_over());
        thread::sleep(Duration::from_millis(5));
    }
    process.write(b"\n")?;
    let outcome = process.finish(SHORT)?;
    let verdict = expect(&outcome, 0, "ready\n126\n")?;
    ensure!(outcome.errors().contains("usgx: cannot run a new program"), "{}", outcome.describe());
    Ok(verdict)
}

fn new_privileges(stage: &Stage, user: User) -> Result<Verdict> {
    let mut command = stage.run(user, &[], "grep");
    let flag = u8::from(user == User::Ordinary);
    let outcome = process::run(command.args(["NoNewPrivs", "/proc/self/status"]), b"", SHORT)?;
    expect(&outcome, 0, &format!("NoNewPrivs:\t{flag}\n"))
}

fn nothing_is_left_behind(stage: &Stage, user: User) -> Result<Verdict> {
    let process = Process::start(stage.run(user, &[], "/bin/sh").args(["-c", "true; true"]))?;
    let mark = process.mark();
    // Kept from killing them: `finish` kills only what is late.
    let outcome = process.finish(SHORT)?;
    let verdict = expect(&outcome, 0, "")?;
    let deadline = Instant::now() + SHORT;
    while !process::left_over(&mark).is_empty() {
        ensure!(Instant::now() < deadline, "left behind: {}", process::left_over(&mark).join(", "));
        thread::sleep(Duration::from_millis(20));
    }
    Ok(verdict)
}
