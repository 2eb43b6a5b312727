//! Runs the example with its progress on standard error: `usgx run --epc 16M -- usgx-example`.
//!
//! `usgx-example identity` prints the enclave's measurement and a fingerprint of its seal key instead, and
//! `usgx-example stream FILE` writes the enclave as an SGX stream, for which no SGX is needed.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::process::ExitCode;

use usgx_example_host::{Enclave, Error, Outcome, identity, work, write_stream};

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

fn show_identity() -> Result<(), Error> {
    let identity = identity(&Enclave::load()?)?;
    let measurement: String = identity.measurement.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("MRENCLAVE {measurement}\nseal key {:016x}", identity.seal_key);
    Ok(())
}

fn write_to(path: &str) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    write_stream(&mut file)?;
    file.flush()
}

fn exit_code(result: Result<(), impl std::fmt::Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {}
        ["identity"] => return exit_code(show_identity()),
        ["stream", path] => return exit_code(write_to(path)),
        _ => {
            eprintln!("usage: usgx-example [identity | stream FILE]");
            return ExitCode::from(2);
        }
    }
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
