//! EPC pages that break: nobody gets them any more, and who has them keeps what is in them.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use super::machine::needs_image;
use super::shared::{Machine, number};
use super::{LONG, Verdict, expect, trial};
use crate::process::Process;
use crate::stage::{Stage, User};

/// Pages that break, of an EPC of 4096.
const BROKEN: u64 = 1000;
/// Pages of the program: it needs most of the EPC.
const PAGES: &str = "3000";

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let user = stage.best_user();
    let name = "machine/broken pages are retired, and those in use lose nothing";
    vec![trial(stage, name.to_owned(), move |stage| needs_image(stage, user, broken))]
}

fn broken(stage: &Stage, user: User) -> Result<Verdict> {
    let machine = Machine::start(stage, user, "poison", "16M", &[])?;
    let mut program =
        Process::start(&mut machine.worker(stage, user, PAGES, "fill 5 hold verify 5 fill 6 verify 6"))?;
    program.wait_for("holding\n", LONG)?;

    let numbers: Vec<String> = (0..BROKEN).map(|page| page.to_string()).collect();
    let wish: Vec<&str> = ["poison"].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    let outcome = machine.ask(stage, user, &wish)?;
    let said = outcome.text();
    let count = |fate: &str| said.lines().filter(|line| line.contains(fate)).count() as u64;
    let (free, in_use) = (count("was free and is retired"), count("is in use"));
    ensure!(
        outcome.end() == (Some(0), None) && in_use > 0 && free + in_use == BROKEN,
        "{}",
        outcome.describe()
    );
    let again = machine.ask(stage, user, &["poison", "7"])?;
    expect(&again, 0, "page 7 was broken before\n")?;
    let outside = machine.ask(stage, user, &["poison", "4096"])?;
    let told = outside.errors().contains("there is no EPC page 4096: the last is 4095");
    ensure!(told && outside.end() != (Some(0), None), "{}", outside.describe());

    // Everything is asked to leave; what is broken stays, and is readable, where it is.
    let outcome = machine.ask(stage, user, &["shrink"])?;
    ensure!(outcome.end() == (Some(0), None), "shrink: {}", outcome.describe());
    program.write(b"\n")?;
    let output = "built\nfilled\nholding\nverified\nfilled\nverified\ndone\n";
    expect(&program.finish(LONG)?, 0, output)?;

    machine.settles(stage, "empty but for what is broken", |status| {
        number(status, "enclaves") == 0
            && number(status, "poisoned_pages") == BROKEN
            && number(status, "epc_free_pages") == number(status, "epc_total_pages") - BROKEN
    })?;
    machine.still_serves(stage, user)
}
