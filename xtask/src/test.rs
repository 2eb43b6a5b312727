//! `cargo xtask test`: everything that CI checks, in steps. A step that fails does not stop the others, so
//! one run tells everything. The last lines tell what was skipped, and what failed and why; the very last one is
//! for CI to read.

use std::io::{self, BufRead as _, BufReader, IsTerminal as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::harness::Harness;
use crate::report::{Finding, Report};
use crate::tally::Tally;
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
    report: Report,
    time: Duration,
}

impl Test {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<()> {
        let mut outcomes = Vec::new();
        for step in Step::value_variants().iter().filter(|s| self.only.is_empty() || self.only.contains(s)) {
            println!("\n==== {} ====", step.name());
            let start = Instant::now();
            let report =
                step.run(workspace).unwrap_or_else(|error| Report::failed("the step itself", &error));
            let time = start.elapsed();
            println!("---- {}: {} in {:.1} s", step.name(), report.tally, time.as_secs_f64());
            outcomes.push(Outcome { step: *step, report, time });
        }
        let (text, total) = summary(&outcomes);
        print!("{text}");
        ensure!(total.failed == 0, "{} of {} checks failed", total.failed, total.total());
        Ok(())
    }
}

/// The end of the log: a line for each step, what was skipped, what failed and why, and the line for CI.
fn summary(outcomes: &[Outcome]) -> (String, Tally) {
    let mut total = Tally::default();
    let mut text = "\n==== summary ====\n".to_owned();
    for Outcome { step, report, time } in outcomes {
        let verdict = if report.tally.failed == 0 { "ok" } else { "FAILED" };
        text += &format!("{:8} {verdict:6} {:7.1} s  {}\n", step.name(), time.as_secs_f64(), report.tally);
        total += report.tally;
    }
    for Outcome { step, report, .. } in outcomes {
        text += &report.findings(&step.name());
    }
    text += &format!("{total}\n");
    (text, total)
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn run(self, workspace: &Workspace) -> Result<Report> {
        match self {
            Step::Fmt => for_every_manifest(workspace, |cargo| {
                cargo.args(["fmt", "--check"]);
            }),
            Step::Clippy => for_every_manifest(workspace, |cargo| {
                cargo.args(["clippy", "--all-targets", "--", "--deny=warnings"]);
            }),
            Step::Docs => {
                let mut doc = workspace.cargo(&["doc", "--workspace", "--no-deps"]);
                Ok(check(doc.env("RUSTDOCFLAGS", "--deny=warnings")))
            }
            Step::Tidy => Ok(Report::of("the rules of the tree", tidy::run(workspace))),
            Step::Nostd => {
                let arguments = ["build", "--manifest-path", "tests/nostd/Cargo.toml", "--target-dir"];
                Ok(check(workspace.cargo(&arguments).arg(workspace.target.join("nostd"))))
            }
            Step::Unit => {
                let arguments =
                    ["test", "--workspace", "--no-fail-fast", "--", "--show-output", "--format=pretty"];
                run_counted(&mut workspace.cargo(&arguments))
            }
            Step::Bench => {
                let arguments = ["run", "--release", "--package", "usgx-bench", "--", "--smoke"];
                Ok(check(&mut workspace.cargo(&arguments)))
            }
            Step::E2e => e2e::run_all(workspace),
        }
    }
}

/// A command that is one check.
fn check(command: &mut Command) -> Report {
    let result = workspace::run(command);
    Report::of(&show(command), result)
}

/// One check for each manifest: the workspace, and packages outside it.
fn for_every_manifest(workspace: &Workspace, arguments: impl Fn(&mut Command)) -> Result<Report> {
    let mut report = Report::default();
    for manifest in workspace.manifests()? {
        let dir = manifest.parent().context("a manifest lies in a directory")?;
        let mut cargo = workspace.cargo(&[]);
        arguments(cargo.current_dir(dir));
        let name = format!("{} of {}", show(&cargo), workspace.relative(&manifest).display());
        report += Report::of(&name, workspace::run(&mut cargo));
    }
    Ok(report)
}

/// Runs a command that runs tests, shows its output and reads it. A terminal sees every test pass; a log, which
/// is read when something went wrong, has only what is not routine.
///
/// A command that fails without a failed test (it did not build, say) is one failure, and so is a command that
/// runs no test at all.
pub(crate) fn run_counted(command: &mut Command) -> Result<Report> {
    let everything = io::stdout().is_terminal();
    count(command, &mut io::stdout(), everything)
}

fn count(command: &mut Command, show_on: &mut dyn io::Write, everything: bool) -> Result<Report> {
    let (mut child, errors) = workspace::start(command.stdout(Stdio::piped()))?;
    let output = child.stdout.take().context("the output was asked for")?;
    let mut harness = Harness::default();
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line?;
        let text = String::from_utf8_lossy(&line);
        let routine = harness.is_routine(&text);
        harness.note_line(&text);
        line.push(b'\n');
        if everything || !routine {
            show_on.write_all(&line)?;
        }
    }
    let status = child.wait()?;
    let mut report = harness.report();
    let why = if !status.success() {
        Some(format!("{status}; {} tests failed", report.tally.failed))
    } else if report.tally.total() == 0 {
        Some("it ran no test".to_owned())
    } else {
        None
    };
    if let Some(why) = why {
        // Standard error tells which package does not build, or which test binary was killed.
        let why = [vec![why], errors.last_lines()].concat();
        report.failed.push(Finding { name: show(command), why });
        // Tests that failed are not counted twice.
        report.tally.failed = report.tally.failed.max(1);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Report {
        count(Command::new("sh").args(["-c", script]), &mut io::sink(), true).unwrap()
    }

    #[test]
    fn a_build_that_fails_is_one_failure() {
        assert_eq!(shell("exit 101").tally, Tally { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn failed_tests_are_not_counted_twice() {
        let report = shell("echo 'test result: FAILED. 5 passed; 2 failed; 1 ignored'; exit 101");
        assert_eq!(report.tally, Tally { passed: 5, failed: 2, skipped: 1 });
    }

    #[test]
    fn running_no_test_is_a_failure() {
        assert_eq!(shell("true").tally, Tally { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn a_log_has_only_what_is_not_routine() {
        let mut log = Vec::new();
        let script =
            "echo; echo 'running 2 tests'; echo 'test a ... ok'; echo 'test b ... FAILED'; echo loud";
        count(Command::new("sh").args(["-c", script]), &mut log, false).unwrap();
        assert_eq!(log, b"test b ... FAILED\nloud\n");
    }

    #[test]
    fn the_end_of_the_log_tells_what_failed_and_why_and_then_the_count() {
        let good = Report::passed();
        let bad = shell("echo 'test one ... FAILED'; echo 'test two ... ignored, slow'; exit 101");
        let outcome = |step, report| Outcome { step, report, time: Duration::ZERO };
        let (text, total) = summary(&[outcome(Step::Unit, bad), outcome(Step::Fmt, good)]);
        assert_eq!(total, Tally { passed: 1, failed: 1, skipped: 0 });
        let end: Vec<_> = text.lines().rev().take(4).collect();
        let why = "    exit status: 101; 0 tests failed";
        let script =
            "FAILED: unit: sh -c echo 'test one ... FAILED'; echo 'test two ... ignored, slow'; exit 101";
        assert_eq!(end, ["1 passed, 1 failed, 0 skipped", why, script, "FAILED: unit: one"]);
        assert!(text.contains("skipped: unit: two (1): slow\n"), "{text}");
    }
}
