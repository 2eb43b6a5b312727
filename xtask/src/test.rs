//! `cargo xtask test`: everything that CI checks, in steps. A step that fails does not stop the others, so
//! one run tells everything. The last line is for CI to read.

use std::io::{self, BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::tally::{Counter, Tally};
use crate::workspace::{self, Workspace, show};
use crate::{e2e, tidy};

#[derive(clap::Args)]
pub(crate) struct Test {
    /// Only this step; may be given several times
    #[arg(long, value_name = "STEP")]
    only: Vec<Step>,
}

/// A step, in the order in which they run: the quick ones first.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Step {
    /// Formatting, of every package
    Fmt,
    /// What lints cannot check, and licences
    Tidy,
    /// Lints, of every package and all its targets
    Clippy,
    /// Documentation builds without a warning
    Docs,
    /// The crates for kernels link without the standard library
    Nostd,
    /// All tests of the workspace, with debug assertions
    Unit,
    /// Every benchmark once, on small input
    Bench,
    /// Real programs under the release build
    E2e,
}

struct Outcome {
    step: Step,
    tally: Tally,
    time: Duration,
    error: Option<anyhow::Error>,
}

impl Test {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<()> {
        let mut outcomes = Vec::new();
        for step in Step::value_variants().iter().filter(|s| self.only.is_empty() || self.only.contains(s)) {
            println!("\n==== {} ====", step.name());
            let start = Instant::now();
            let result = step.run(workspace);
            let time = start.elapsed();
            let (tally, error) = match result {
                Ok(tally) => (tally, None),
                Err(error) => (Tally::of_check(false), Some(error)),
            };
            if let Some(error) = &error {
                println!("{} failed: {error:#}", step.name());
            }
            println!("---- {}: {tally} in {:.1} s", step.name(), time.as_secs_f64());
            outcomes.push(Outcome { step: *step, tally, time, error });
        }
        summarise(&outcomes)
    }
}

/// Prints the summary; an error if anything failed.
fn summarise(outcomes: &[Outcome]) -> Result<()> {
    let mut total = Tally::default();
    println!("\n==== summary ====");
    for Outcome { step, tally, time, error } in outcomes {
        let verdict = if tally.failed == 0 { "ok" } else { "FAILED" };
        println!("{:8} {verdict:6} {:7.1} s  {tally}", step.name(), time.as_secs_f64());
        if let Some(error) = error {
            println!("         {error:#}");
        }
        total += *tally;
    }
    println!("{total}");
    ensure!(total.failed == 0, "{} of {} checks failed", total.failed, total.total());
    Ok(())
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn run(self, workspace: &Workspace) -> Result<Tally> {
        match self {
            Step::Fmt => for_every_manifest(workspace, |cargo| {
                cargo.args(["fmt", "--check"]);
            }),
            Step::Clippy => for_every_manifest(workspace, |cargo| {
                cargo.args(["clippy", "--all-targets", "--", "--deny=warnings"]);
            }),
            Step::Docs => {
                let mut doc = workspace.cargo(&["doc", "--workspace", "--no-deps"]);
                check(doc.env("RUSTDOCFLAGS", "--deny=warnings"))
            }
            Step::Tidy => tidy::run(workspace).map(|()| Tally::of_check(true)),
            Step::Nostd => check(
                workspace
                    .cargo(&["build", "--manifest-path", "tests/nostd/Cargo.toml", "--target-dir"])
                    .arg(workspace.target.join("nostd")),
            ),
            Step::Unit => {
                let arguments = ["test", "--workspace", "--no-fail-fast", "--", "--show-output"];
                run_counted(&mut workspace.cargo(&arguments))
            }
            Step::Bench => {
                check(&mut workspace.cargo(&["run", "--release", "--package", "usgx-bench", "--", "--smoke"]))
            }
            Step::E2e => e2e::run_all(workspace),
        }
    }
}

/// A command that is one check.
fn check(command: &mut Command) -> Result<Tally> {
    workspace::run(command).map(|()| Tally::of_check(true))
}

/// One check for each manifest: the workspace, and packages outside it.
fn for_every_manifest(workspace: &Workspace, arguments: impl Fn(&mut Command)) -> Result<Tally> {
    let mut tally = Tally::default();
    for manifest in workspace.manifests()? {
        let dir = manifest.parent().context("a manifest lies in a directory")?;
        let mut cargo = workspace.cargo(&[]);
        arguments(cargo.current_dir(dir));
        let good = workspace::status(&mut cargo)?.success();
        if !good {
            println!("failed: {} in {}", show(&cargo), workspace.relative(dir).join("").display());
        }
        tally += Tally::of_check(good);
    }
    Ok(tally)
}

/// Runs a command that runs tests, shows its output and counts them.
///
/// A command that fails without a failed test (it did not build, say) is one failure, and so is a command that
/// runs no test at all.
pub(crate) fn run_counted(command: &mut Command) -> Result<Tally> {
    count(command, &mut io::stdout())
}

fn count(command: &mut Command, show_on: &mut dyn io::Write) -> Result<Tally> {
    let shown = show(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let output = child.stdout.take().context("the output was asked for")?;
    let mut counter = Counter::default();
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line?;
        counter.note_line(&String::from_utf8_lossy(&line));
        line.push(b'\n');
        show_on.write_all(&line)?;
    }
    let status = child.wait()?;
    let mut tally = counter.tally();
    if tally.failed == 0 && !status.success() {
        writeln!(show_on, "`{shown}` failed without a failed test: {status}")?;
        tally += Tally::of_check(false);
    } else if tally.total() == 0 {
        writeln!(show_on, "`{shown}` ran no test")?;
        tally += Tally::of_check(false);
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tally {
        count(Command::new("sh").args(["-c", script]), &mut io::sink()).unwrap()
    }

    #[test]
    fn a_build_that_fails_is_one_failure() {
        assert_eq!(shell("exit 101"), Tally { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn failed_tests_are_not_counted_twice() {
        let tally = shell("echo 'test result: FAILED. 5 passed; 2 failed; 1 ignored'; exit 101");
        assert_eq!(tally, Tally { passed: 5, failed: 2, skipped: 1 });
    }

    #[test]
    fn running_no_test_is_a_failure() {
        assert_eq!(shell("true"), Tally { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_failed_step_fails_the_run() {
        let outcome = |good| Outcome {
            step: Step::Fmt,
            tally: Tally::of_check(good),
            time: Duration::ZERO,
            error: None,
        };
        assert!(summarise(&[outcome(true), outcome(true)]).is_ok());
        assert!(summarise(&[outcome(true), outcome(false)]).is_err());
    }
}
