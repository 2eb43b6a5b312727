//! Reads what test harnesses print (the standard library's, and libtest-mimic's), line by line.
//!
//! A test binary prints a `test NAME ... ok` line for each test, then the messages of those that failed (and, as
//! asked for by `--show-output`, of those that passed), and ends with a `test result:` line, which is what counts.
//! A test that finds that it cannot run here prints a line that begins with `SKIPPED:` and returns; the harness
//! counts it as passed, so it is moved.

use crate::report::{Finding, Report};
use crate::tally::Tally;

/// What the lines so far said.
#[derive(Default)]
pub(crate) struct Harness {
    sum: Report,
    /// Of the binary that is running.
    failed: Vec<Finding>,
    section: Section,
    /// The test whose output is being read.
    block: Option<Finding>,
    said_skipped: u64,
}

/// Where in the output of one test binary the lines are.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum Section {
    /// Tests run.
    #[default]
    Progress,
    /// Messages of tests, then their names: of those that passed, of those that failed.
    Successes,
    Failures,
}

impl Harness {
    /// Takes one line into account.
    pub(crate) fn note_line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.end_binary();
            self.sum.tally += Tally {
                passed: count_before(result, " passed"),
                failed: count_before(result, " failed"),
                skipped: count_before(result, " ignored"),
            };
        } else if line == "successes:" {
            self.enter(Section::Successes);
        } else if line == "failures:" {
            self.enter(Section::Failures);
        } else if let Some(reason) =
            line.strip_prefix("SKIPPED:").filter(|_| self.section != Section::Failures)
        {
            self.note_skipped(reason);
        } else if self.section == Section::Progress {
            self.note_progress(line);
        } else if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" ----")) {
            self.end_block();
            let name = name.strip_suffix(" stdout").unwrap_or(name).to_owned();
            self.block = Some(Finding { name, why: Vec::new() });
        } else if let Some(block) = &mut self.block {
            note_message(&mut block.why, line);
        }
    }

    /// Whether a line that comes next only says that all is well: nobody looks for it in a log.
    pub(crate) fn is_routine(&self, line: &str) -> bool {
        if line.starts_with("test result: ") || line.starts_with("SKIPPED:") || line == "failures:" {
            return false;
        }
        match self.section {
            Section::Progress => {
                let passed = line.starts_with("test ") && line.ends_with(" ... ok");
                passed || line.trim().is_empty() || line.starts_with("running ") || line == "successes:"
            }
            Section::Successes => true,
            Section::Failures => false,
        }
    }

    /// What there was. Tests that said that they were skipped are not among the passed.
    pub(crate) fn report(mut self) -> Report {
        // A binary that has ended without a result was killed; what it had said still helps.
        self.end_binary();
        let mut report = self.sum;
        let moved = self.said_skipped.min(report.tally.passed);
        report.tally.passed -= moved;
        report.tally.skipped += moved;
        report
    }

    /// `test NAME ... ` and how it ended; harnesses fill the name up with spaces.
    fn note_progress(&mut self, line: &str) {
        let Some((name, end)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) else {
            return;
        };
        let name = name.trim_end().to_owned();
        if end == "FAILED" {
            self.failed.push(Finding { name, why: Vec::new() });
        } else if let Some(reason) = end.strip_prefix("ignored") {
            let why = vec![reason.trim_matches([' ', ',', '(', ')']).to_owned()];
            self.sum.skipped.push(Finding { name, why });
        }
    }

    fn note_skipped(&mut self, reason: &str) {
        self.said_skipped += 1;
        let name = self.block.as_ref().map_or("a test", |block| &block.name).to_owned();
        self.sum.skipped.push(Finding { name, why: vec![reason.trim().to_owned()] });
    }

    fn enter(&mut self, section: Section) {
        self.end_block();
        self.section = section;
    }

    /// Keeps the message of a test that failed.
    fn end_block(&mut self) {
        let Some(mut block) = self.block.take() else { return };
        if self.section != Section::Failures {
            return;
        }
        while block.why.last().is_some_and(|line| line.trim().is_empty()) {
            block.why.pop();
        }
        match self.failed.iter_mut().find(|failed| failed.name == block.name) {
            Some(failed) => failed.why = block.why,
            // Its `test` line was torn apart by output of the test itself.
            None => self.failed.push(block),
        }
    }

    fn end_binary(&mut self) {
        self.enter(Section::Progress);
        self.sum.failed.append(&mut self.failed);
    }
}

/// Adds a line to a message, of which the part from the panic on tells most.
fn note_message(why: &mut Vec<String>, line: &str) {
    if line.contains(" panicked at ") && !why.iter().any(|line| line.contains(" panicked at ")) {
        why.clear();
    }
    let advice = line.starts_with("note: run with `RUST_BACKTRACE=1`");
    let leading = why.is_empty() && line.trim().is_empty();
    if !advice && !leading {
        why.push(line.to_owned());
    }
}

/// The number in front of `word`, or 0.
fn count_before(result: &str, word: &str) -> u64 {
    let Some((before, _)) = result.split_once(word) else { return 0 };
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report_of(output: &str) -> Report {
        let mut harness = Harness::default();
        output.lines().for_each(|line| harness.note_line(line));
        harness.report()
    }

    fn finding(name: &str, why: &[&str]) -> Finding {
        Finding { name: name.to_owned(), why: why.iter().map(|line| (*line).to_owned()).collect() }
    }

    /// What the standard library's harness prints with `--show-output`.
    const STANDARD: &str = "
running 4 tests
test tests::good ... ok
test tests::bad ... FAILED
test tests::elsewhere ... ok
test tests::slow ... ignored, a measurement

successes:

---- tests::elsewhere stdout ----
SKIPPED: no CPUID faulting


successes:
    tests::elsewhere
    tests::good

failures:

---- tests::bad stdout ----
chatter

thread 'tests::bad' (3) panicked at src/lib.rs:7:9:
assertion `left == right` failed
  left: 1
 right: 2
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace


failures:
    tests::bad

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn routine_is_what_says_that_all_is_well() {
        let mut harness = Harness::default();
        let mut shown = Vec::new();
        for line in STANDARD.lines() {
            if !harness.is_routine(line) {
                shown.push(line);
            }
            harness.note_line(line);
        }
        assert_eq!(
            shown[..3],
            [
                "test tests::bad ... FAILED",
                "test tests::slow ... ignored, a measurement",
                "SKIPPED: no CPUID faulting",
            ]
        );
        assert_eq!(shown[3], "failures:");
        assert!(shown.last().is_some_and(|line| line.starts_with("test result: FAILED")));
    }

    /// What libtest-mimic prints.
    const MIMIC: &str = "
running 3 tests
test a/good     ... ok
test languages/root/go                   ... ignored (/usr/bin/go is not installed)
test a/bad      ... FAILED

failures:

---- a/bad ----
expected exit status 0 and
hello
--- got exit status: 1


failures:
    a/bad

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 85.20s
";

    #[test]
    fn results_of_several_binaries_are_added_up() {
        let report = report_of(&[STANDARD, MIMIC].concat());
        assert_eq!(report.tally, Tally { passed: 2, failed: 2, skipped: 3 });
    }

    #[test]
    fn what_failed_is_told_with_its_panic() {
        let why = [
            "thread 'tests::bad' (3) panicked at src/lib.rs:7:9:",
            "assertion `left == right` failed",
            "  left: 1",
            " right: 2",
        ];
        assert_eq!(report_of(STANDARD).failed, [finding("tests::bad", &why)]);
    }

    #[test]
    fn what_failed_is_told_with_its_message() {
        let why = ["expected exit status 0 and", "hello", "--- got exit status: 1"];
        assert_eq!(report_of(MIMIC).failed, [finding("a/bad", &why)]);
    }

    #[test]
    fn what_was_skipped_is_told_with_the_reason() {
        let skipped = report_of(&[STANDARD, MIMIC].concat()).skipped;
        let expected = [
            finding("tests::slow", &["a measurement"]),
            finding("tests::elsewhere", &["no CPUID faulting"]),
            finding("languages/root/go", &["/usr/bin/go is not installed"]),
        ];
        assert_eq!(skipped, expected);
    }

    #[test]
    fn a_binary_that_was_killed_has_its_failures_told() {
        let output = "running 2 tests\ntest one ... FAILED\n";
        assert_eq!(report_of(output).failed, [finding("one", &[])]);
    }

    #[test]
    fn a_failure_whose_line_was_torn_apart_is_told() {
        let output = "test one ... noise\nFAILED\n\nfailures:\n\n---- one stdout ----\nwhy\n\n\nfailures:\n    one\n\n\
            test result: FAILED. 0 passed; 1 failed; 0 ignored\n";
        assert_eq!(report_of(output).failed, [finding("one", &["why"])]);
    }

    #[test]
    fn other_lines_count_nothing() {
        let report = report_of("test x ... ok\n5 passed\nnot SKIPPED: here\n---- x ----\n");
        assert_eq!((report.tally, report.failed, report.skipped), (Tally::default(), vec![], vec![]));
    }
}
