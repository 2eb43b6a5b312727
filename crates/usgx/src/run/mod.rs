//! `usgx run`: becomes the program, and leaves an attendant behind.
//!
//! The order: find the program and everything that could be wrong with the command line; make the sockets;
//! fork the attendant; wait until it says that it is ready; put the program's ends of the sockets on their
//! reserved numbers; `execve`. From there on process ID, terminal, signals and exit status are the program's.

mod program;
mod reserved;

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use usgx_sys::attendant::{self, Inherited, Role};
use usgx_wire::{boot, place};

use crate::attendant::{Attendant, Duties};
use crate::engine;
use crate::inject::RunParameters;
use program::Program;

/// What `usgx run` is asked to do.
#[derive(Debug)]
pub(crate) struct Request {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// Where the machine is.
    pub(crate) machine: Machine,
    /// `--stats`.
    pub(crate) table: bool,
    /// `--stats-json`.
    pub(crate) json: Option<PathBuf>,
    /// `--feed`.
    pub(crate) feed: Option<i32>,
}

/// Where a run's machine is.
#[derive(Debug)]
pub(crate) enum Machine {
    /// In the attendant.
    Own(engine::Config),
    /// Behind this socket.
    At(PathBuf),
}

/// Runs a program; returns only if that does not work.
///
/// # Errors
///
/// Everything that is wrong before the program exists.
pub(crate) fn run(request: Request, mut inherited: Inherited) -> Result<ExitCode> {
    if usgx_sys::vdso::own_address() == place::VDSO_BASE {
        bail!(
            "this is already inside of a run: start the program directly, it sees the SGX of the run around it"
        );
    }
    let program = match Program::find(&request.command) {
        Ok(program) => program,
        Err(unrunnable) => {
            eprintln!("usgx: {}", unrunnable.message);
            return Ok(ExitCode::from(unrunnable.status));
        }
    };
    let base = reserved::choose(attendant::descriptor_limit(), attendant::is_open)?;
    let json = request.json.map(|path| {
        File::create(&path).with_context(|| format!("--stats-json: {} cannot be written", path.display()))
    });
    let feed = request.feed.map(|number| attendant::take_inherited(&mut inherited, number).map(File::from));
    let feed = feed.transpose().context("--feed: not an inherited descriptor")?;
    let (json, keep_stderr) = (json.transpose()?, request.table);

    let (door, machine) = match request.machine {
        Machine::Own(mut config) => {
            config.check()?;
            // The attendant leaves this directory.
            config.swap = config.swap.map(std::path::absolute).transpose().context("the path of --swap")?;
            let (ours, theirs) = attendant::seqpacket_pair()?;
            (ours, Some((config, theirs)))
        }
        Machine::At(path) => (engine::connect(&path)?, None),
    };
    let (call_socket, attendant_socket) = attendant::seqpacket_pair()?;
    let (mut line, attendant_line) = UnixStream::pair()?;
    let first = i32::try_from(std::process::id())?;

    if let Role::Companion = attendant::fork_detached().context("starting the attendant")? {
        drop((door, call_socket, line));
        let announce = if keep_stderr || json.is_some() { boot::flags::ANNOUNCE_EXIT } else { 0 };
        let traces_all = if attendant::traces_all() { boot::flags::TRACES_ALL } else { 0 };
        let run = RunParameters {
            attendant_pid: std::process::id(),
            fd_base: base,
            fd_count: reserved::COUNT,
            flags: announce | traces_all,
        };
        let duties =
            Duties { first, socket: attendant_socket, machine, run, table: request.table, json, feed };
        return companion(duties, attendant_line, inherited, keep_stderr);
    }
    drop((attendant_socket, attendant_line, machine, json, feed));
    greet(&mut line)?;
    for (fd, number) in [(door, base), (call_socket, base + 1)] {
        attendant::place(fd, number).with_context(|| format!("descriptor number {number}"))?;
    }
    attendant::restore_sigpipe();
    let error = attendant::execute(&program.file, &program.arguments);
    eprintln!("usgx: {} cannot be executed: {error}", program.file.display());
    Ok(ExitCode::from(program::NOT_EXECUTABLE))
}

/// The word by which the attendant says that the run can begin.
const READY: &str = "ready";

/// The program's side: lets the attendant trace this process, and waits for it.
fn greet(line: &mut UnixStream) -> Result<()> {
    let mut pid = [0; 4];
    line.read_exact(&mut pid).context("the attendant has died")?;
    attendant::allow_tracer(u32::from_le_bytes(pid));
    line.write_all(&[1]).context("the attendant has died")?;
    let mut answer = String::new();
    line.read_to_string(&mut answer).context("the attendant has died")?;
    ensure!(!answer.is_empty(), "the attendant has died before the program could start");
    ensure!(answer == READY, "{answer}");
    Ok(())
}

/// The attendant's side, and all the rest of its life.
fn companion(
    duties: Duties,
    mut line: UnixStream,
    inherited: Inherited,
    keep_stderr: bool,
) -> Result<ExitCode> {
    // Nobody would see an error that is returned before the program has been told.
    let prepare = |line: &mut UnixStream| -> Result<Attendant> {
        line.write_all(&std::process::id().to_le_bytes())?;
        line.read_exact(&mut [0])?;
        attendant::settle(inherited, keep_stderr || crate::is_verbose())?;
        Attendant::prepare(duties)
    };
    match prepare(&mut line) {
        Ok(attendant) => {
            // If the program is gone already, its sockets are too, and serving ends at once.
            let _ = line.write_all(READY.as_bytes());
            drop(line);
            attendant.serve()?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let _ = line.write_all(format!("{error:#}").as_bytes());
            Ok(ExitCode::FAILURE)
        }
    }
}
