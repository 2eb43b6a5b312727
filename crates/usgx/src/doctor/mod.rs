//! `usgx doctor`: what this system has of what usgx needs, found out by trying.
//!
//! [`examinations`] tries things; this file shows what came out. The exit status is 0 when programs can be run.

mod examinations;

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// It is there.
    Good,
    /// It is not there, and usgx does without.
    Lacking,
    /// Without it programs cannot be run.
    Fatal,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    /// What was looked at.
    what: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What it is for, or what its lack means.
    means: &'static str,
    /// How to get it, if it is lacking.
    remedy: Option<String>,
}

/// All findings, as printed by `--json`.
#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Programs can be run.
    can_run: bool,
    findings: Vec<Finding>,
}

/// Examines this system.
///
/// # Errors
///
/// None that the system's state could cause.
pub(crate) fn examine(json: bool) -> Result<ExitCode> {
    let findings = examinations::all();
    let can_run = findings.iter().all(|finding| finding.verdict != Verdict::Fatal);
    let diagnosis = Diagnosis { can_run, findings };
    if json {
        println!("{}", serde_json::to_string_pretty(&diagnosis)?);
    } else {
        print!("{}", describe(&diagnosis));
    }
    Ok(ExitCode::from(u8::from(!can_run)))
}

fn describe(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    for Finding { what, verdict, found, means, remedy } in &diagnosis.findings {
        let mark = match verdict {
            Verdict::Good => "ok  ",
            Verdict::Lacking => "note",
            Verdict::Fatal => "FAIL",
        };
        text.push_str(&format!("{mark}  {what}: {found}\n"));
        if *verdict != Verdict::Good {
            text.push_str(&format!("      {means}\n"));
        }
        if let Some(remedy) = remedy {
            text.push_str(&format!("      To get it: {remedy}\n"));
        }
    }
    text.push_str(if diagnosis.can_run {
        "\nSGX programs can run here. Try: usgx demo\n"
    } else {
        "\nSGX programs cannot run here until what is marked FAIL is there.\n"
    });
    text
}

/// Waits for the end of standard input: a process for the doctor to try tracing on.
///
/// # Errors
///
/// None.
pub(crate) fn patient() -> Result<ExitCode> {
    let _ = std::io::stdin().read(&mut [0]);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_is_told_with_its_remedy() {
        let finding = Finding {
            what: "seccomp",
            verdict: Verdict::Fatal,
            found: "forbidden".into(),
            means: "System calls cannot be intercepted.",
            remedy: Some("ask for it".into()),
        };
        let text = describe(&Diagnosis { can_run: false, findings: vec![finding] });
        for expected in
            ["FAIL  seccomp: forbidden", "cannot be intercepted", "To get it: ask for it", "cannot run"]
        {
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn every_examination_comes_to_a_result() {
        let findings = examinations::all();
        assert!(findings.len() >= 8);
        assert!(findings.iter().all(|finding| !finding.found.is_empty() && !finding.means.is_empty()));
    }
}
