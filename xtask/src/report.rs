//! What checks found: how many passed, which failed and why, which were skipped and why.
//!
//! A log of CI is long, and cut in the middle. So what matters is said again at its end, in a few lines for each
//! check that failed.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use crate::tally::Tally;

/// Lines of a message that are repeated, from its beginning and from its end.
const WHY_LINES: usize = 8;
/// Bytes of a line that are repeated.
const WHY_WIDTH: usize = 300;
/// Failures whose messages are repeated. Of the others, only the names.
const FAILURES_WITH_WHY: usize = 20;

/// Names of skipped checks for each reason.
const SKIPPED_NAMES: usize = 8;

/// A check that failed or was skipped.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Finding {
    pub(crate) name: String,
    /// Why, in lines.
    pub(crate) why: Vec<String>,
}

/// The result of some checks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) tally: Tally,
    pub(crate) failed: Vec<Finding>,
    pub(crate) skipped: Vec<Finding>,
}

impl Report {
    /// One check that passed.
    pub(crate) fn passed() -> Self {
        Self { tally: Tally::of_check(true), ..Self::default() }
    }

    /// One check that failed.
    pub(crate) fn failed(name: &str, error: &anyhow::Error) -> Self {
        let why = format!("{error:#}").lines().map(str::to_owned).collect();
        let finding = Finding { name: name.to_owned(), why };
        Self { tally: Tally::of_check(false), failed: vec![finding], skipped: Vec::new() }
    }

    /// One check.
    pub(crate) fn of(name: &str, result: anyhow::Result<()>) -> Self {
        match result {
            Ok(()) => Self::passed(),
            Err(error) => Self::failed(name, &error),
        }
    }

    /// Which checks of a step were skipped and which failed, in lines for the end of a log.
    pub(crate) fn findings(&self, step: &str) -> String {
        let mut text = String::new();
        for (why, names) in by_reason(&self.skipped) {
            let shown = &names[..names.len().min(SKIPPED_NAMES)];
            let others = if names.len() > shown.len() { ", ..." } else { "" };
            text += &format!("skipped: {step}: {}{others} ({}): {why}\n", shown.join(", "), names.len());
        }
        for (index, Finding { name, why }) in self.failed.iter().enumerate() {
            text += &format!("FAILED: {step}: {name}\n");
            if index < FAILURES_WITH_WHY {
                text.extend(shortened(why).iter().map(|line| format!("    {line}\n")));
            }
        }
        text
    }
}

/// The names with each reason: as another user, hundreds of tests may be skipped for the same one.
fn by_reason(findings: &[Finding]) -> BTreeMap<String, Vec<&str>> {
    let mut reasons = BTreeMap::<_, Vec<_>>::new();
    for Finding { name, why } in findings {
        reasons.entry(why.join("; ")).or_default().push(name.as_str());
    }
    reasons
}

/// The beginning and the end of a message.
fn shortened(why: &[String]) -> Vec<String> {
    let cut = |line: &String| line[..line.floor_char_boundary(WHY_WIDTH)].to_owned();
    if why.len() <= 2 * WHY_LINES {
        return why.iter().map(cut).collect();
    }
    let left_out = why.len() - 2 * WHY_LINES;
    let mut lines: Vec<_> = why[..WHY_LINES].iter().map(cut).collect();
    lines.push(format!("[{left_out} more lines above]"));
    lines.extend(why[why.len() - WHY_LINES..].iter().map(cut));
    lines
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.tally += other.tally;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(name: &str, lines: usize) -> Finding {
        Finding { name: name.to_owned(), why: (0..lines).map(|line| format!("line {line}")).collect() }
    }

    #[test]
    fn what_failed_comes_after_what_was_skipped() {
        let report =
            Report { failed: vec![finding("b", 2)], skipped: vec![finding("a", 1)], ..Report::default() };
        assert_eq!(
            report.findings("unit"),
            "skipped: unit: a (1): line 0\nFAILED: unit: b\n    line 0\n    line 1\n"
        );
    }

    #[test]
    fn of_a_long_message_the_beginning_and_the_end_are_shown() {
        let text = Report { failed: vec![finding("long", 1000)], ..Report::default() }.findings("unit");
        assert!(text.contains("    line 0\n") && text.contains("    line 999\n"), "{text}");
        assert!(text.contains("    [984 more lines above]\n"), "{text}");
        assert_eq!(text.lines().count(), 1 + 2 * WHY_LINES + 1);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let finding = Finding { name: "wide".to_owned(), why: vec!["ä".repeat(1000)] };
        let text = Report { failed: vec![finding], ..Report::default() }.findings("unit");
        assert_eq!(text.matches('ä').count(), WHY_WIDTH / 2);
    }

    #[test]
    fn of_very_many_failures_each_is_named() {
        let failed = (0..100).map(|number| finding(&format!("test-{number}"), 5)).collect();
        let text = Report { failed, ..Report::default() }.findings("unit");
        assert!(text.contains("FAILED: unit: test-99\n"), "{text}");
        assert_eq!(text.lines().count(), 100 + 5 * FAILURES_WITH_WHY);
    }

    #[test]
    fn of_very_many_skipped_checks_the_reason_is_told_once() {
        let skipped = (0..100).map(|number| finding(&format!("test-{number}"), 1)).collect();
        let text = Report { skipped, ..Report::default() }.findings("e2e");
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.starts_with("skipped: e2e: test-0, test-1, ") && text.ends_with(", ... (100): line 0\n"),
            "{text}"
        );
    }
}
