//! The Linux kernel's own SGX selftests, unmodified.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use super::devices::can_trap_cpuid;
use super::{LONG, Verdict, trial};
use crate::process;
use crate::stage::{Stage, User};

/// The tests that need no SGX2.
const TESTS: [&str; 6] = [
    "unclobbered_vdso",
    OVERSUBSCRIBED,
    "clobbered_vdso",
    "clobbered_vdso_and_user_function",
    "tcs_entry",
    "pte_permissions",
];

/// This one reads the size of the EPC from CPUID.
const OVERSUBSCRIBED: &str = "unclobbered_vdso_oversubscribed";

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in stage.users() {
        for epc in ["64M", "16M"] {
            for test in TESTS {
                let name = format!("selftest/{}/{epc}/{test}", user.name());
                trials.push(trial(stage, name, move |stage| selftest(stage, user, epc, test)));
            }
        }
    }
    trials
}

fn selftest(stage: &Stage, user: User, epc: &str, test: &str) -> Result<Verdict> {
    let Some(directory) = stage.selftests() else {
        return Ok(Verdict::Skipped(
            "the kernel's selftests are not built: cargo xtask selftests".to_owned(),
        ));
    };
    let mut command = stage.run(user, &["--epc", epc], "./test_sgx");
    let outcome = process::run(command.args(["-t", test]).current_dir(directory), b"", LONG)?;
    let text = outcome.text();
    let passed = outcome.end() == (Some(0), None)
        && text.lines().any(|line| line.starts_with("ok ") && line.ends_with(test) && !line.contains("SKIP"));
    if !passed && test == OVERSUBSCRIBED && !can_trap_cpuid(stage)? {
        return Ok(Verdict::Skipped("it asks CPUID for the EPC, which cannot be trapped here".to_owned()));
    }
    ensure!(passed, "{}", outcome.describe());
    Ok(Verdict::Passed)
}
