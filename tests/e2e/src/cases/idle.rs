//! Enclaves that nobody uses: they leave the EPC altogether, and wake by themselves with what was in them.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use super::machine::needs_image;
use super::shared::{Machine, number};
use super::{LONG, Verdict, expect, trial};
use crate::process::Process;
use crate::stage::{Stage, User};

/// Programs, and enclaves that each has: 1 MiB of addresses, and nearly as much in pages.
const PROGRAMS: u64 = 4;
const ENCLAVES: u64 = 250;
const HEAP_PAGES: &str = "220";
const MEBIBYTE: u64 = 1 << 20;

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let user = stage.best_user();
    let name = "machine/a thousand idle enclaves of 1 MiB hold no page of an EPC of 64 MiB";
    vec![
        trial(stage, name.to_owned(), move |stage| needs_image(stage, user, thousand)),
        trial(stage, "machine/only its user rules a machine".to_owned(), move |stage| others(stage, user)),
    ]
}

/// Another user can use a machine that is open to all, and neither shrinks nor breaks nor stops it.
fn others(stage: &Stage, user: User) -> Result<Verdict> {
    if user != User::Root {
        return Ok(Verdict::Skipped("needs two users: run as root".to_owned()));
    }
    let machine = Machine::start(stage, user, "others", "1M", &[])?;
    for (wish, what) in
        [(&["shrink"][..], "shrink"), (&["stop"], "stop"), (&["poison", "1"], "break pages of")]
    {
        let outcome = machine.ask(stage, User::Ordinary, wish)?;
        let told =
            outcome.errors().contains(&format!("only root and the user with ID 0 may {what} this machine"));
        ensure!(outcome.end().0 != Some(0) && told, "{wish:?}: {}", outcome.describe());
    }
    machine.is_empty(stage)?;
    Ok(Verdict::Passed)
}

fn thousand(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "idle", "64M", &[])?;
    let start = |program: u64| {
        let steps = format!("more {} fill {program} hold verify {program}", ENCLAVES - 1);
        Process::start(&mut machine.worker(stage, user, HEAP_PAGES, &steps))
    };
    let mut programs = (0..PROGRAMS).map(start).collect::<Result<Vec<_>>>()?;
    for program in &mut programs {
        program.wait_for("holding\n", LONG)?;
    }
    let outcome = machine.ask(stage, user, &["shrink"])?;
    ensure!(outcome.end() == (Some(0), None), "shrink: {}", outcome.describe());
    let status = machine.status(stage)?;
    ensure!(number(&status, "enclaves") == PROGRAMS * ENCLAVES, "not all are alive: {status}");
    let used = number(&status, "epc_total_pages") - number(&status, "epc_free_pages");
    // A root VA page holds the versions of 512 VA pages, of which each of these enclaves has one.
    let roots = (PROGRAMS * ENCLAVES).div_ceil(512);
    ensure!(used == roots && number(&status, "va_pages") == roots, "{used} pages are in use: {status}");
    // Not all of a thousand fit into an answer.
    let listed = status["enclave_list"].as_array().map(Vec::as_slice).unwrap_or_default();
    let idle = |enclave: &Value| number(enclave, "size") == MEBIBYTE && number(enclave, "epc_pages") == 0;
    ensure!(!listed.is_empty() && listed.iter().all(idle), "not all are of 1 MiB and idle: {status}");
    for mut program in programs {
        program.write(b"\n")?;
        let output = format!("built\n{ENCLAVES} enclaves\nfilled\nholding\nverified\ndone\n");
        expect(&program.finish(LONG)?, 0, &output)?;
    }
    machine.is_empty(stage)?;
    Ok(Verdict::Passed)
}
