//! The Linux kernel's own SGX selftests, unmodified.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use rustix::process::Signal;

use super::shared::{Machine, number};
use super::{LONG, Verdict, trial};
use crate::process::{self, Process};
use crate::stage::{Stage, User};

/// All of `test_sgx`; from `tcs_permissions` on they need SGX2.
const TESTS: [&str; 16] = [
    "unclobbered_vdso",
    "unclobbered_vdso_oversubscribed",
    "unclobbered_vdso_oversubscribed_remove",
    "clobbered_vdso",
    "clobbered_vdso_and_user_function",
    "tcs_entry",
    "pte_permissions",
    "tcs_permissions",
    "epcm_permissions",
    "augment",
    "augment_via_eaccept",
    "tcs_create",
    "remove_added_page_no_eaccept",
    "remove_added_page_invalid_access",
    "remove_added_page_invalid_access_after_eaccept",
    "remove_untouched_page",
];

/// Where somebody says how often all of them shall run in a row, by hand.
const ROUNDS: &str = "USGX_E2E_SELFTESTS";
/// How long one such round may take: the program gives its longest test 15 minutes.
const ROUND: Duration = Duration::from_secs(1000);

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    let rounds = std::env::var(ROUNDS).ok().and_then(|rounds| rounds.parse::<u32>().ok());
    for user in stage.users() {
        let name = format!("selftest/{}/without SGX2 the rest passes", user.name());
        trials.push(trial(stage, name, move |stage| without_sgx2(stage, user)));
        let name = format!("selftest/{}/all beside a program that keeps the EPC full", user.name());
        trials.push(trial(stage, name, move |stage| beside_another(stage, user)));
        if let Some(rounds) = rounds {
            for epc in ["16M", "64M", "256M"] {
                let name = format!("selftest/{}/{epc}/all, {rounds} times in a row", user.name());
                trials.push(trial(stage, name, move |stage| in_a_row(stage, user, epc, rounds)));
            }
        }
        for epc in ["64M", "16M"] {
            for test in TESTS {
                let name = format!("selftest/{}/{epc}/{test}", user.name());
                trials.push(trial(stage, name, move |stage| selftest(stage, user, epc, test)));
            }
        }
    }
    trials
}

/// Why they are skipped if they are not there.
pub(super) const NOT_BUILT: &str = "the kernel's selftests are not built: cargo xtask selftests";

/// How many tests a run of the program has passed, and how many it has skipped itself.
pub(super) fn tally(output: &str) -> (usize, usize) {
    let (skipped, passed): (Vec<_>, Vec<_>) =
        output.lines().filter(|line| line.starts_with("ok ")).partition(|line| line.contains("SKIP"));
    (passed.len(), skipped.len())
}

/// All tests, as often as it was asked for.
fn in_a_row(stage: &Stage, user: User, epc: &str, rounds: u32) -> Result<Verdict> {
    let Some(directory) = stage.selftests() else { return Ok(Verdict::Skipped(NOT_BUILT.to_owned())) };
    for round in 1..=rounds {
        let mut command = stage.run(user, &["--epc", epc], "./test_sgx");
        let outcome = process::run(command.current_dir(&directory), b"", ROUND)?;
        let passed = outcome.end() == (Some(0), None) && tally(&outcome.text()) == (TESTS.len(), 0);
        ensure!(passed, "round {round}: {}", outcome.describe());
    }
    Ok(Verdict::Passed)
}

/// Every dynamic operation meets reclaim: a neighbour writes to more pages than the machine has, again and again.
fn beside_another(stage: &Stage, user: User) -> Result<Verdict> {
    const EPC: &str = "16M";
    const MORE: &str = "5000";
    let Some(directory) = stage.selftests() else { return Ok(Verdict::Skipped(NOT_BUILT.to_owned())) };
    let test = format!("selftests-beside-{}", user.name());
    let machine = Machine::start(stage, stage.best_user(), &test, EPC, &[])?;
    let mut neighbour = Process::start(&mut machine.worker(stage, user, MORE, "forever 1"))?;
    neighbour.wait_for("round 0\n", LONG)?;
    let before = number(&machine.status(stage)?, "evictions");
    let mut command = machine.run(stage, user, "./test_sgx");
    let outcome = process::run(command.current_dir(&directory), b"", LONG)?;
    let passed = outcome.end() == (Some(0), None) && tally(&outcome.text()) == (TESTS.len(), 0);
    ensure!(passed, "{}", outcome.describe());
    let evictions = number(&machine.status(stage)?, "evictions") - before;
    ensure!(evictions > 4096, "the EPC was not full: {evictions} evictions");
    // It has verified every page all the time, and would have ended at a wrong one.
    neighbour.signal(Signal::TERM).context("the neighbour has ended")?;
    let neighbour = neighbour.finish(LONG)?;
    ensure!(neighbour.end() == (None, Some(Signal::TERM.as_raw())), "{}", neighbour.describe());
    Ok(Verdict::Passed)
}

/// On a processor with SGX1 only the program skips the ten tests that need more. It skips none anywhere else.
fn without_sgx2(stage: &Stage, user: User) -> Result<Verdict> {
    let Some(directory) = stage.selftests() else { return Ok(Verdict::Skipped(NOT_BUILT.to_owned())) };
    let mut command = stage.run(user, &["--epc", "16M", "--cpu", "coffee-lake"], "./test_sgx");
    let outcome = process::run(command.current_dir(&directory), b"", LONG)?;
    ensure!(
        outcome.end() == (Some(0), None) && tally(&outcome.text()) == (6, 10),
        "not 6 passed and 10 skipped: {}",
        outcome.describe()
    );
    Ok(Verdict::Passed)
}

fn selftest(stage: &Stage, user: User, epc: &str, test: &str) -> Result<Verdict> {
    let Some(directory) = stage.selftests() else { return Ok(Verdict::Skipped(NOT_BUILT.to_owned())) };
    let mut command = stage.run(user, &["--epc", epc], "./test_sgx");
    let outcome = process::run(command.args(["-t", test]).current_dir(directory), b"", LONG)?;
    let text = outcome.text();
    let passed = outcome.end() == (Some(0), None)
        && text.lines().any(|line| line.starts_with("ok ") && line.ends_with(test) && !line.contains("SKIP"));
    ensure!(passed, "{}", outcome.describe());
    Ok(Verdict::Passed)
}
