//! Runs the example with its progress on standard error: `usgx run --epc 16M -- usgx-example`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use usgx_example_host::{Enclave, Error, Outcome, work};

fn run() -> Result<Outcome, Error> {
    let enclave = Enclave::load()?;
    let terminal = std::io::stderr().is_terminal();
    work(&enclave, &mut |progress| {
        let last = progress.done == progress.total;
        if terminal || last {
            let (start, end) = if terminal { ("\r", if last { "\n" } else { "" }) } else { ("", "\n") };
            eprint!("{start}{}: {} of {} pages{end}", progress.phase, progress.done, progress.total);
        }
    })
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
