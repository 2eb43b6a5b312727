//! Everything a newcomer or CI does, one command each: `cargo xtask help`.
//!
//! Each command is a file of its own with a `run` function. This file only sorts arguments. Nothing here is
//! part of what users install, so errors are `anyhow` and say which command failed and what to do about it.

mod bench;
mod demo;
mod e2e;
mod echo;
mod harness;
mod picture;
mod planted;
mod report;
mod selftests;
mod suites;
mod tally;
mod test;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Builds, tests and measures usgx.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows what usgx does, in a minute: builds it and runs `usgx demo`
    Demo(demo::Demo),
    /// Checks everything that CI checks
    Test(test::Test),
    /// Checks what lints cannot: layers, homes of `unsafe`, documents, licences
    Tidy,
    /// Fetches and builds the Linux kernel's SGX selftests, and prints where they are
    Selftests(selftests::Selftests),
    /// Builds other people's SGX tools, which judge ours, and prints where they are
    Tools(tools::Tools),
    /// Runs real programs under the built `usgx`
    E2e(e2e::E2e),
    /// Plants bugs in a clone, one at a time, and sees that the tests catch them
    Planted(planted::Planted),
    /// Runs other people's test suites directly and under the built `usgx`, and compares each test
    Suites(suites::Suites),
    /// Turns the contents of a terminal, with colours, into an SVG: standard input to standard output
    Picture(picture::Picture),
    /// Measures work against its floor, in the same run
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = Workspace::discover().and_then(|workspace| match arguments.command {
        Command::Demo(demo) => demo.run(&workspace),
        Command::Test(test) => test.run(&workspace),
        Command::Tidy => tidy::run(&workspace),
        Command::Selftests(selftests) => selftests.run(&workspace),
        Command::Tools(tools) => tools.run(&workspace),
        Command::E2e(e2e) => e2e.run(&workspace),
        Command::Planted(planted) => planted.run(&workspace),
        Command::Suites(suites) => suites.run(&workspace),
        Command::Picture(picture) => picture.run(),
        Command::Bench(bench) => bench.run(&workspace),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
