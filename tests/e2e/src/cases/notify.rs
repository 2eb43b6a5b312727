//! AEX-Notify and EDECCSSA: an enclave learns, at ERESUME, that it was left, and goes on without leaving again.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use super::{LONG, Verdict, expect, trial};
use crate::process;
use crate::stage::{Link, Stage, User};

/// The processor with AEX-Notify.
const NEWER: [&str; 2] = ["--cpu", "sapphire-rapids"];

/// Name, options of `usgx run`, mode of the program, and what it prints.
const CASES: [(&str, &[&str], &str, &str); 4] = [
    (
        "an enclave that asks for it is told of every exit",
        &NEWER,
        "told",
        "ud2: leaf 3, vector 6\n\
         ud2: result 2, handled 1, frame 1, exit 0x80000306\n\
         decrement: leaf 3, vector 13\n\
         decrement: result 9, handled 1, frame 1, exit 0x8000030d\n\
         accept: result 0, handled 1, frame 1, exit 0x8000030e\n\
         address right 1, error 0x4\n\
         ticking: leaf 4, left 1, wrong 0, told 1, in order 1\n\
         ticking: leaf 4, left 1, wrong 0, told 1, in order 1\n\
         kicked: wrong 0, told 1\n\
         one frame: leaf 3, vector 6; resumed: leaf 3, vector 13\n\
         disagreeing: leaf 2, vector 13\n",
    ),
    (
        "one that does not ask is resumed where it was",
        &NEWER,
        "untold",
        "ud2: leaf 3, vector 6\n\
         again: leaf 3, vector 6\n\
         ud2: result 2, handled 1, frame 1, exit 0x80000306\n\
         decrement: leaf 3, vector 13\n\
         again: leaf 3, vector 13\n\
         decrement: result 9, handled 1, frame 1, exit 0x8000030d\n\
         accept: result 0, handled 0\n\
         ticking: leaf 4, left 1, wrong 0, told 0, in order 1\n\
         ticking: leaf 4, left 1, wrong 0, told 0, in order 1\n\
         kicked: wrong 0, told 0\n\
         one frame: leaf 3, vector 6; resumed: leaf 3, vector 6\n\
         disagreeing: leaf 2, vector 13\n",
    ),
    (
        "a handler goes back a frame without the attribute",
        &NEWER,
        "plain",
        "ud2: leaf 3, vector 6\n\
         again: leaf 3, vector 6\n\
         ud2: result 2, handled 1, frame 1, exit 0x80000306\n",
    ),
    (
        "an older processor has no EDECCSSA",
        &[],
        "plain",
        "ud2: leaf 3, vector 6\n\
         again: leaf 3, vector 6\n\
         in the handler: leaf 3, vector 13\n",
    ),
];

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in stage.users() {
        let title = |name: &str| format!("notify/{}/{name}", user.name());
        for (name, options, mode, output) in CASES {
            trials.push(trial(stage, title(name), move |stage| {
                expect(&run(stage, user, options, mode)?, 0, output)
            }));
        }
        let name = title("an older processor refuses the attribute");
        trials.push(trial(stage, name, move |stage| refused(stage, user)));
    }
    trials
}

fn run(stage: &Stage, user: User, options: &[&str], mode: &str) -> Result<process::Outcome> {
    let mut command = stage.run(user, options, stage.program("notify", Link::Dynamic));
    process::run(command.arg(stage.key()).arg(mode), b"", LONG)
}

fn refused(stage: &Stage, user: User) -> Result<Verdict> {
    for cpu in ["coffee-lake", "tiger-lake", "ice-lake-sp"] {
        let outcome = run(stage, user, &["--cpu", cpu], "told")?;
        ensure!(
            outcome.end() == (Some(2), None) && outcome.text() == "create: Input/output error\n",
            "{cpu}: {}",
            outcome.describe()
        );
    }
    Ok(Verdict::Passed)
}
