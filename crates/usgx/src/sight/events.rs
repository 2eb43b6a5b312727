//! `usgx events`: what happens in a machine, a line for each event, after the habits of the kernel's tracing.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow, ensure};
use usgx_machine::{EventRecord, KINDS};

use super::printed;
use crate::machine;

/// Prints the names of all events.
///
/// # Errors
///
/// If standard output cannot be written.
pub(crate) fn list() -> Result<ExitCode> {
    let mut text = String::new();
    for kind in KINDS {
        text.push_str(&format!("{:<28} {}\n", kind.name, kind.help));
    }
    printed(io::stdout().write_all(text.as_bytes()))
}

/// Prints events until the machine ends or nobody reads any more. Losses are always told.
///
/// # Errors
///
/// If no machine tells, or an event that is asked for does not exist.
pub(crate) fn show(socket: &Path, json: bool, only: &[String]) -> Result<ExitCode> {
    for name in only {
        let known = KINDS.iter().any(|kind| is_named(kind.name, name));
        ensure!(known, "there is no event '{name}'; 'usgx events --list' prints those that there are");
    }
    let mut out = io::stdout().lock();
    for batch in machine::listen(socket)? {
        let (lost, events) = batch.map_err(|error| anyhow!("{error}"))?;
        let mut text = String::new();
        if lost > 0 {
            text.push_str(&loss(lost, json));
        }
        let wanted =
            |event: &&EventRecord| only.is_empty() || only.iter().any(|name| is_named(&event.event, name));
        for event in events.iter().filter(wanted) {
            text.push_str(&line(event, json));
        }
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        if written.is_err() {
            return printed(written);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether an event has this name, with its system or without.
fn is_named(event: &str, name: &str) -> bool {
    event == name || event.strip_prefix("sgx:") == Some(name)
}

fn loss(lost: u64, json: bool) -> String {
    if json { format!("{{\"lost\":{lost}}}\n") } else { format!("LOST {lost} EVENTS\n") }
}

fn line(event: &EventRecord, json: bool) -> String {
    if json {
        return serde_json::to_string(event).unwrap_or_default() + "\n";
    }
    let (seconds, micros) = (event.time_us / 1_000_000, event.time_us % 1_000_000);
    let mut text = format!("{:>8} {seconds:>6}.{micros:06}: {}:", event.pid, event.event);
    if event.enclave != 0 {
        text.push_str(&format!(" enclave={}", event.enclave));
    }
    for (name, value) in &event.args {
        let is_address = matches!(name.as_str(), "addr" | "base" | "size");
        text.push_str(&if is_address { format!(" {name}={value:#x}") } else { format!(" {name}={value}") });
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_like_the_kernels() {
        let event = EventRecord {
            seq: 9,
            time_us: 12_000_345,
            pid: 4711,
            event: "sgx:sgx_epc_load".into(),
            enclave: 3,
            args: [("addr".to_owned(), 0x7f00)].into(),
        };
        assert_eq!(line(&event, false), "    4711     12.000345: sgx:sgx_epc_load: enclave=3 addr=0x7f00\n");
        let json: EventRecord = serde_json::from_str(&line(&event, true)).expect("JSON");
        assert_eq!(json, event);
        assert_eq!(loss(5, true), "{\"lost\":5}\n");
        assert!(is_named("sgx:sgx_kick", "sgx_kick") && is_named("sgx:sgx_kick", "sgx:sgx_kick"));
    }
}
