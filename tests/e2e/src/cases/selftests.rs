//! The Linux kernel's own SGX selftests, unmodified.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use super::devices::can_trap_cpuid;
use super::{LONG, Verdict, trial};
use crate::process;
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

/// These read the size of the EPC, or whether there is SGX2, from CPUID.
fn asks_cpuid(test: &str) -> bool {
    ![
        "unclobbered_vdso",
        "clobbered_vdso",
        "clobbered_vdso_and_user_function",
        "tcs_entry",
        "pte_permissions",
    ]
    .contains(&test)
}

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
    if !passed && asks_cpuid(test) && !can_trap_cpuid(stage)? {
        return Ok(Verdict::Skipped("it asks CPUID, which cannot be trapped here".to_owned()));
    }
    ensure!(passed, "{}", outcome.describe());
    Ok(Verdict::Passed)
}
