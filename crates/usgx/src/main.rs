//! `usgx`: runs unmodified SGX programs on any x86-64 Linux.
//!
//! [`cli`] says what can be asked; [`run`] becomes the program and leaves an [`attendant`] behind, which puts
//! the runtime into it ([`inject`], [`vdso`]) and is home to its machine ([`engine`]); [`machine`] is for
//! machines that are shared, [`sight`] shows what they do, [`doctor`] and [`demo`] for people who are new here. The machine itself is in
//! `usgx-machine`, system calls are in `usgx-sys`.

mod attendant;
mod cli;
mod demo;
mod doctor;
mod engine;
mod inject;
mod machine;
mod run;
mod sight;
mod size;
mod statistics;
mod vdso;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use cli::{Cli, Command, MachineCommand, Place};
use usgx_sys::attendant::Inherited;

/// Exit status when usgx itself fails, as with `env` and `timeout`.
const FAILED: u8 = 125;
/// The environment variable that turns messages on: a `tracing` filter.
const LOG: &str = "USGX_LOG";

/// Tells whether somebody wants to see messages.
fn is_verbose() -> bool {
    std::env::var_os(LOG).is_some()
}

fn start_logging() {
    if is_verbose() {
        let filter = tracing_subscriber::EnvFilter::from_env(LOG);
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}

fn socket(place: Place) -> Result<std::path::PathBuf> {
    place.socket.map_or_else(machine::default_socket, Ok)
}

fn machine_of(target: cli::Target) -> Result<std::path::PathBuf> {
    target.machine.map_or_else(machine::default_socket, Ok)
}

fn dispatch(command: Command, inherited: Inherited) -> Result<ExitCode> {
    match command {
        Command::Run(arguments) => {
            let machine = match arguments.machine {
                Some(path) => run::Machine::At(path),
                None => run::Machine::Own(arguments.hardware.into()),
            };
            let request = run::Request {
                command: arguments.program,
                machine,
                table: arguments.stats,
                json: arguments.stats_json,
                feed: arguments.feed,
            };
            run::run(request, inherited)
        }
        Command::Machine(MachineCommand::Start {
            hardware,
            place,
            shared,
            foreground,
            metrics,
            metrics_anywhere,
        }) => {
            let metrics = metrics.map(|address| machine::Metrics { address, anywhere: metrics_anywhere });
            let service = machine::Service { socket: socket(place)?, shared, metrics };
            machine::start(hardware.into(), service, foreground, inherited)
        }
        Command::Machine(MachineCommand::Stop { place }) => machine::stop(&socket(place)?),
        Command::Machine(MachineCommand::Shrink { place }) => machine::shrink(&socket(place)?),
        Command::Machine(MachineCommand::Poison { place, pages }) => machine::poison(&socket(place)?, &pages),
        Command::Machine(MachineCommand::Status { place, json }) => machine::status(&socket(place)?, json),
        Command::Stats { target, json, interval } => sight::stats::show(&machine_of(target)?, json, interval),
        Command::Top { target, interval } => sight::top::run(&machine_of(target)?, interval),
        Command::Events { list: true, .. } => sight::events::list(),
        Command::Events { target, json, only, .. } => sight::events::show(&machine_of(target)?, json, &only),
        Command::Doctor { json } => doctor::examine(json),
        Command::Demo => demo::show(),
        Command::DemoProgram => demo::program(),
        Command::DoctorPatient => doctor::patient(),
    }
}

/// Prints help, or what is wrong with the command line. The usual exit status for that, 2, could be a program's own.
fn explain(error: &clap::Error) -> ExitCode {
    // If it cannot be printed, there is nobody to tell.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

fn main() -> ExitCode {
    // Before anything of ours is open.
    let inherited = Inherited::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    start_logging();
    dispatch(cli.command, inherited).unwrap_or_else(|error| {
        eprintln!("usgx: {error:#}");
        ExitCode::from(FAILED)
    })
}
