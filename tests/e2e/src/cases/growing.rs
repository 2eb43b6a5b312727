//! Enclaves that grow: what `--fault-around` changes, as the enclave itself sees it, which AEX-Notify tells of its
//! faults.

use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::Trial;

use super::shared::Machine;
use super::{LONG, Test, Verdict, expect, trial};
use crate::process;
use crate::stage::{Link, Stage, User};

const NEWER: [&str; 2] = ["--cpu", "sapphire-rapids"];
/// Pages that a fault adds besides, and how many faults there are when 16 pages are added one after the other.
const FAULTS: [(&[&str], u32); 4] = [
    (&[], 16),
    (&["--fault-around", "0"], 16),
    (&["--fault-around", "7"], 2),
    (&["--fault-around", "1024"], 1),
];

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in stage.users() {
        let tests: [(&str, Test); 2] = [
            ("a fault adds as many pages as it is told to", by_run),
            ("so it does in a machine of several programs", by_machine),
        ];
        for (name, test) in tests {
            let name = format!("growing/{}/{name}", user.name());
            trials.push(trial(stage, name, move |stage| test(stage, user)));
        }
    }
    trials
}

fn expected(faults: u32) -> String {
    format!("16 pages accepted, wrong 0, faults {faults}\n")
}

fn by_run(stage: &Stage, user: User) -> Result<Verdict> {
    for (options, faults) in FAULTS {
        let options = [&NEWER, options].concat();
        let mut command = stage.run(user, &options, stage.program("notify", Link::Dynamic));
        let outcome = process::run(command.arg(stage.key()).arg("growing"), b"", LONG)?;
        expect(&outcome, 0, &expected(faults))?;
    }
    Ok(Verdict::Passed)
}

fn by_machine(stage: &Stage, user: User) -> Result<Verdict> {
    for (name, (options, faults)) in ["none", "zero", "seven", "many"].into_iter().zip(FAULTS) {
        let test = format!("growing-{}-{name}", user.name());
        let machine = Machine::start(stage, stage.best_user(), &test, "64M", &[&NEWER, options].concat())?;
        let mut command = machine.run(stage, user, stage.program("notify", Link::Dynamic));
        let outcome = process::run(command.arg(stage.key()).arg("growing"), b"", LONG)?;
        expect(&outcome, 0, &expected(faults))?;
    }
    Ok(Verdict::Passed)
}
