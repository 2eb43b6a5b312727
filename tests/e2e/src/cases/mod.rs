//! The tests, by what they promise.

mod basics;
mod debuggers;
mod devices;
mod growing;
mod idle;
mod invisible;
mod judges;
mod keys;
mod languages;
mod machine;
mod notify;
mod poison;
mod selftests;
mod shared;
mod swap;
mod transparency;
mod trouble;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::{Completion, Trial};

use crate::process::Outcome;
use crate::stage::{Stage, User};

/// For everything that takes milliseconds when all is well. What fails by it hangs: computers may be slow, and busy with
/// other things for seconds.
const SHORT: Duration = Duration::from_secs(120);
/// For work on enclaves that are bigger than the EPC.
const LONG: Duration = Duration::from_secs(400);

/// How a test ended that has not failed.
enum Verdict {
    Passed,
    /// It cannot be tried here, and why.
    Skipped(String),
}

/// A test for a user.
type Test = fn(&Stage, User) -> Result<Verdict>;

/// Every test.
pub(crate) fn all(stage: &Arc<Stage>) -> Vec<Trial> {
    [
        transparency::trials(stage),
        basics::trials(stage),
        devices::trials(stage),
        growing::trials(stage),
        selftests::trials(stage),
        invisible::trials(stage),
        debuggers::trials(stage),
        languages::trials(stage),
        judges::trials(stage),
        keys::trials(stage),
        machine::trials(stage),
        idle::trials(stage),
        notify::trials(stage),
        poison::trials(stage),
        swap::trials(stage),
        trouble::trials(stage),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn trial(
    stage: &Arc<Stage>,
    name: String,
    test: impl FnOnce(&Stage) -> Result<Verdict> + Send + 'static,
) -> Trial {
    let stage = Arc::clone(stage);
    Trial::ignorable_test(name, move || match test(&stage) {
        Ok(Verdict::Passed) => Ok(Completion::Completed),
        Ok(Verdict::Skipped(why)) => Ok(Completion::ignored_with(why)),
        Err(error) => Err(format!("{error:#}").into()),
    })
}

/// The verdict on a test that needs a program which is not here.
fn missing(program: &str) -> Option<Verdict> {
    (!Path::new(program).is_file()).then(|| Verdict::Skipped(format!("{program} is not installed")))
}

/// The verdict on a test that traces, where that is forbidden.
fn may_not_trace() -> Verdict {
    Verdict::Skipped("this host does not let a user trace a program of their own".to_owned())
}

/// Demands an exit status and a standard output.
fn expect(outcome: &Outcome, status: i32, output: &str) -> Result<Verdict> {
    ensure!(
        outcome.end() == (Some(status), None) && outcome.text() == output,
        "expected exit status {status} and\n{output}--- got {}",
        outcome.describe()
    );
    Ok(Verdict::Passed)
}

/// Standard error without what `usgx` itself has to say.
fn without_notices(errors: &str) -> String {
    errors.lines().filter(|line| !line.starts_with("usgx: ")).map(|line| format!("{line}\n")).collect()
}
