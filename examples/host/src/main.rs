//! Runs the example with its progress on standard error: `usgx run --epc 16M -- usgx-example`.

use std::process::ExitCode;

use usgx_example_host::{Enclave, Error, Outcome, work};

fn run() -> Result<Outcome, Error> {
    let enclave = Enclave::load()?;
    let outcome = work(&enclave, &mut |progress| {
        eprint!("\r{}: {} of {} pages  ", progress.phase, progress.done, progress.total);
    });
    eprintln!();
    outcome
}

fn main() -> ExitCode {
    match run() {
        Ok(outcome) => {
            println!("{} bytes checked, {} wrong", outcome.checked, outcome.wrong);
            ExitCode::from(u8::from(outcome.wrong != 0))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
