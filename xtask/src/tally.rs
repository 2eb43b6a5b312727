//! Counts of checks: what CI's last line is made of.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_as_the_line_that_ci_reads() {
        let tally = Tally { passed: 7, failed: 0, skipped: 2 };
        assert_eq!(tally.to_string(), "7 passed, 0 failed, 2 skipped");
    }
}
