//! Keys: what an enclave has sealed it can unseal in the next run, with the same state directory; and what an enclave
//! says of itself another enclave can check.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use super::{LONG, Test, Verdict, trial};
use crate::process;
use crate::stage::{Link, Stage, User};

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let tests: [(&str, Test); 3] = [
        ("the example's seal key survives a restart", example_seal_key),
        ("seal keys belong to one enclave, or to one signer", seal_policies),
        ("a report is checked by the enclave that it is for, and by no other", local_attestation),
    ];
    let mut trials = Vec::new();
    for user in stage.users() {
        for (name, test) in tests {
            trials.push(trial(stage, format!("keys/{}/{name}", user.name()), move |stage| test(stage, user)));
        }
    }
    trials
}

/// Output of a program that has to succeed, as a user of this home.
fn output(command: &mut Command) -> Result<String> {
    let outcome = process::run(command, b"", LONG)?;
    ensure!(outcome.end() == (Some(0), None), "{}", outcome.describe());
    Ok(outcome.text())
}

/// A run whose state directory is this one. Root's is always the system's, so only its stability can be seen.
fn run(stage: &Stage, user: User, state: &str, program: impl AsRef<Path>) -> Command {
    let mut command = stage.run(user, &[], program);
    command.env("XDG_STATE_HOME", stage.home(user).join(state));
    command
}

/// Whether another state directory can be chosen for this user.
fn has_own_state(user: User) -> bool {
    user == User::Ordinary
}

fn example_seal_key(stage: &Stage, user: User) -> Result<Verdict> {
    let Some(example) = stage.example() else {
        return Ok(Verdict::Skipped("the example program is not built".to_owned()));
    };
    let identity = |state| output(run(stage, user, state, &example).arg("identity"));
    let first = identity("state-1")?;
    ensure!(first.contains("\nseal key "), "{first}");
    let second = identity("state-1")?;
    ensure!(first == second, "one run said\n{first}the next one\n{second}");
    if has_own_state(user) {
        let other = identity("state-2")?;
        let measurement = |text: &str| text.lines().next().map(str::to_owned);
        ensure!(measurement(&first) == measurement(&other), "{first}{other}");
        ensure!(first != other, "another state directory, but the same key: {other}");
        ensure!(identity("state-1")? == first, "the first state directory's key has changed");
    }
    Ok(Verdict::Passed)
}

/// A stream of the kit, signed; returns both files.
fn enclave(stage: &Stage, user: User, layout: &str, test: &str) -> Result<[String; 2]> {
    let home = stage.home(user);
    let name = format!("{test}-{}", layout.replace(':', "-"));
    let files =
        ["sgxs", "sig"].map(|extension| home.join(format!("{name}.{extension}")).display().to_string());
    let kit = stage.program("enclave_kit", Link::Dynamic);
    output(stage.command(user, kit).args(["stream", layout, &files[0]]))?;
    output(stage.command(user, kit).args(["sign", &files[0]]).arg(stage.key()).arg(&files[1]))?;
    Ok(files)
}

fn seal_policies(stage: &Stage, user: User) -> Result<Verdict> {
    let kit = stage.program("enclave_kit", Link::Dynamic);
    let key = |state: &str, files: &[String; 2], policy: &str| -> Result<String> {
        let text = output(run(stage, user, state, kit).arg("load").args(files).args(["seal", policy]))?;
        ensure!(text.lines().any(|line| line.starts_with("seal key ")), "{text}");
        Ok(text)
    };
    let one = enclave(stage, user, "plain:1", "seal")?;
    let two = enclave(stage, user, "plain:2", "seal")?;
    ensure!(key("state-3", &one, "enclave")? == key("state-3", &one, "enclave")?, "not the same again");
    ensure!(key("state-3", &one, "enclave")? != key("state-3", &two, "enclave")?, "two enclaves, one key");
    ensure!(key("state-3", &one, "signer")? == key("state-3", &two, "signer")?, "one signer, two keys");
    ensure!(key("state-3", &one, "signer")? != key("state-3", &one, "enclave")?, "two policies, one key");
    if has_own_state(user) {
        ensure!(key("state-3", &one, "signer")? != key("state-4", &one, "signer")?, "two machines, one key");
    }
    Ok(Verdict::Passed)
}

fn local_attestation(stage: &Stage, user: User) -> Result<Verdict> {
    let kit = stage.program("enclave_kit", Link::Dynamic);
    let verifier = enclave(stage, user, "plain:5", "attest")?;
    let prover = enclave(stage, user, "threads", "attest")?;
    let file = |name: &str| stage.home(user).join(name).display().to_string();
    let (target, report, changed) = (file("target"), file("report"), file("report-changed"));
    let load = |files: &[String; 2], steps: &[&str]| {
        output(run(stage, user, "state-5", kit).arg("load").args(files).args(steps))
    };
    load(&verifier, &["target", &target])?;
    load(&prover, &["prove", &target, &report, "4711"])?;
    let genuine = load(&verifier, &["check", &report])?;
    ensure!(genuine.contains("the report is genuine, data 4711\n"), "{genuine}");
    let elsewhere = load(&prover, &["check", &report])?;
    ensure!(elsewhere.contains("not genuine"), "the wrong enclave could check it: {elsewhere}");
    let bytes = std::fs::read(&report)?;
    // CPUSVN, attributes, MRENCLAVE, MRSIGNER, ISVSVN, the data, the key's ID, the MAC.
    for at in [0, 48, 64, 128, 258, 320, 383, 384, 415, 416, 431] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        std::fs::write(&changed, bytes)?;
        let text = load(&verifier, &["check", &changed])?;
        ensure!(text.contains("not genuine"), "byte {at} of the report was changed: {text}");
    }
    Ok(Verdict::Passed)
}
