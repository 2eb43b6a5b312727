//! Counts of tests: what CI's last line is made of.
//!
//! Test harnesses print `test result:` lines, one for each binary; a test that finds that it cannot run here
//! prints a line that begins with `SKIPPED:` and returns. The harness counts it as passed, so it is moved.

use std::fmt;
use std::ops::AddAssign;

/// How many tests passed, failed and did not run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// One check that is not a test binary.
    pub(crate) fn of_check(good: bool) -> Self {
        Self { passed: u64::from(good), failed: u64::from(!good), skipped: 0 }
    }

    /// All tests.
    pub(crate) fn total(self) -> u64 {
        self.passed + self.failed + self.skipped
    }
}

/// Counts while the output of test binaries comes in, line by line.
#[derive(Default)]
pub(crate) struct Counter {
    harness: Tally,
    said_skipped: u64,
}

impl Counter {
    /// Takes one line into account.
    pub(crate) fn note_line(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.harness.passed += count_before(summary, " passed");
            self.harness.failed += count_before(summary, " failed");
            self.harness.skipped += count_before(summary, " ignored");
        } else if line.starts_with("SKIPPED:") {
            self.said_skipped += 1;
        }
    }

    /// The count: tests that said that they were skipped are not among the passed.
    pub(crate) fn tally(&self) -> Tally {
        let moved = self.said_skipped.min(self.harness.passed);
        Tally {
            passed: self.harness.passed - moved,
            failed: self.harness.failed,
            skipped: self.harness.skipped + moved,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The number in front of `word`, or 0.
fn count_before(summary: &str, word: &str) -> u64 {
    let Some((before, _)) = summary.split_once(word) else { return 0 };
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(output: &str) -> Tally {
        let mut counter = Counter::default();
        output.lines().for_each(|line| counter.note_line(line));
        counter.tally()
    }

    #[test]
    fn results_of_several_binaries_are_added_up() {
        let output = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 1 passed; 12 failed; 4 ignored; 0 measured; 0 filtered out; finished in 1s\n";
        assert_eq!(tally_of(output), Tally { passed: 4, failed: 12, skipped: 4 });
    }

    #[test]
    fn a_test_that_says_skipped_has_not_passed() {
        let output = "SKIPPED: no CPUID faulting\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(tally_of(output), Tally { passed: 1, failed: 0, skipped: 1 });
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(tally_of("test x ... ok\n5 passed\nnot SKIPPED: here\n"), Tally::default());
    }

    #[test]
    fn shown_as_the_line_that_ci_reads() {
        let tally = Tally { passed: 7, failed: 0, skipped: 2 };
        assert_eq!(tally.to_string(), "7 passed, 0 failed, 2 skipped");
    }
}
