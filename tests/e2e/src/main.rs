//! End-to-end tests: real programs, not ours and not changed, under the built `usgx`.
//!
//! `cargo xtask e2e` builds what is tested and starts this with `USGX_BIN` (the binary) and `USGX_SELFTESTS` (the
//! kernel's selftests, built). A test is a program that is run under `usgx run` and compared: with itself run
//! directly, where it needs no SGX, or with what SGX hardware and Linux would do. Files:
//!
//! - `stage` prepares a directory that every user can read, and the C programs from `programs/`;
//! - `process` starts processes with time limits, and ends those that it started;
//! - `cases/` are the tests.

mod cases;
mod process;
mod stage;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;

use crate::stage::Stage;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let stage = match Stage::prepare() {
        Ok(stage) => Arc::new(stage),
        Err(error) => {
            eprintln!("cannot prepare the end-to-end tests: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let conclusion = libtest_mimic::run(&arguments, cases::all(&stage));
    stage.clean_up();
    conclusion.exit_code()
}
