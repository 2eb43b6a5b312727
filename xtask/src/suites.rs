//! `cargo xtask suites`: other people's test suites, directly and under `usgx run`, test by test.
//!
//! They lean on signals, threads and processes, and know nothing of usgx. Some of their tests fail wherever this is
//! tried (no module can be loaded in a container, say); what counts is that no test comes to anything else under usgx.
//! By hand: it takes ten minutes, and CI has no Python with its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::workspace::{self, Workspace};

/// Python's own tests.
const PYTHON: [&str; 3] = ["test_signal", "test_threading", "test_subprocess"];

/// Bindings of nearly every system call, with a test for each.
const NIX: &str = "0.30.1";

#[derive(clap::Args)]
pub(crate) struct Suites {
    /// Which: `nix`, or modules of Python's tests; nix and three modules if none is given
    names: Vec<String>,
    /// A Python that has its `test` package (Debian: python3-full and libpython3-testsuite)
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
}

/// What each test came to, by its name. A name may come more than once.
type Outcomes = BTreeMap<String, Vec<String>>;

impl Suites {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<()> {
        let usgx = workspace.build_usgx()?;
        let names = if self.names.is_empty() {
            PYTHON.iter().chain(&["nix"]).map(ToString::to_string).collect()
        } else {
            self.names
        };
        let mut differing = 0;
        for name in &names {
            let suite = if name == "nix" { nix(workspace)? } else { python(&self.python, name) };
            differing += usize::from(!compare(name, &suite, &usgx)?);
        }
        ensure!(differing == 0, "{differing} suites come to something else under usgx run");
        Ok(())
    }
}

/// A suite: how to run it, and how to read what it prints.
struct Suite {
    command: Vec<PathBuf>,
    directory: PathBuf,
    read: fn(&str) -> Outcomes,
}

impl Suite {
    fn outcomes(&self, usgx: Option<&Path>) -> Result<Outcomes> {
        let mut command = match usgx {
            Some(usgx) => Command::new(usgx),
            None => Command::new(&self.command[0]),
        };
        if usgx.is_some() {
            command.args(["run", "--"]).arg(&self.command[0]);
        }
        command.args(&self.command[1..]).current_dir(&self.directory).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("starting {}", self.command[0].display()))?;
        let text = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
        let outcomes = (self.read)(&text);
        let tail: Vec<&str> = text.lines().rev().take(20).collect();
        ensure!(!outcomes.is_empty(), "no tests: {}\n{tail:#?}", output.status);
        Ok(outcomes)
    }
}

/// Runs a suite both ways and says how it went; false if a test differs.
fn compare(name: &str, suite: &Suite, usgx: &Path) -> Result<bool> {
    let mut directly = suite.outcomes(None)?;
    let mut under = suite.outcomes(Some(usgx))?;
    for _ in 1..ROUNDS {
        if differing(&directly, &under).is_empty() {
            break;
        }
        // Some tests rest on luck, either way.
        add(&mut directly, suite.outcomes(None)?);
        add(&mut under, suite.outcomes(Some(usgx))?);
    }
    let differing = differing(&directly, &under);
    for test in &differing {
        println!("{name}: {test}: {:?} directly, {:?} under usgx run", directly.get(test), under.get(test));
    }
    let mut counts = BTreeMap::<&str, usize>::new();
    for outcome in under.values().filter_map(|all| all.last()) {
        *counts.entry(outcome).or_default() += 1;
    }
    println!("{name}: {} tests, {} differ; under usgx run {counts:?}", directly.len(), differing.len());
    Ok(differing.is_empty())
}

/// How often a suite with a difference is run, each way.
const ROUNDS: u32 = 3;

fn add(outcomes: &mut Outcomes, more: Outcomes) {
    for (test, all) in more {
        outcomes.entry(test).or_default().extend(all);
    }
}

/// The tests that never came to the same.
fn differing(directly: &Outcomes, under: &Outcomes) -> Vec<String> {
    let names: BTreeSet<&String> = directly.keys().chain(under.keys()).collect();
    let differs = |test: &&String| match (directly.get(*test), under.get(*test)) {
        (Some(directly), Some(under)) => !under.iter().any(|outcome| {
            // A suite may leave out what it thinks no sandbox allows.
            directly.contains(outcome) || outcome == LEFT_OUT
        }),
        _ => true,
    };
    names.into_iter().filter(differs).cloned().collect()
}

const LEFT_OUT: &str = "left out";

fn python(python: &Path, module: &str) -> Suite {
    let arguments = ["-m", "test", "-v", module].map(PathBuf::from);
    Suite {
        command: [&[python.to_owned()][..], &arguments[..]].concat(),
        directory: std::env::temp_dir(),
        read: read_python,
    }
}

/// Lines like `test_name (module.Class.test_name) ... ok`; the name, or a sentence about the test, begins the line.
fn read_python(text: &str) -> Outcomes {
    const ENDS: [&str; 6] = ["ok", "FAIL", "ERROR", "skipped", "expected failure", "unexpected success"];
    let mut outcomes = Outcomes::new();
    for line in text.lines() {
        let Some((test, end)) = line.split_once(" ... ") else { continue };
        let end = if end.starts_with("skipped") { "skipped" } else { end.trim() };
        if ENDS.contains(&end) {
            outcomes.entry(test.to_owned()).or_default().push(end.to_owned());
        }
    }
    outcomes
}

/// Fetches and builds nix's tests.
fn nix(workspace: &Workspace) -> Result<Suite> {
    let directory = workspace.target.join("suites/nix");
    let manifest = directory.join("Cargo.toml");
    if !manifest.is_file() {
        unpack_nix(&workspace.target.join("suites"), &directory)?;
    }
    let mut cargo = workspace.cargo(&["test", "--all-features", "--test", "test", "--no-run"]);
    cargo.args(["--message-format=json", "--manifest-path"]).arg(&manifest);
    cargo.env("CARGO_TARGET_DIR", workspace.target.join("suites/target"));
    let output = cargo.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "nix's tests cannot be built");
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    let program = program.context("cargo has built no program of nix's tests")?;
    Ok(Suite { command: vec![program, "--test-threads=1".into()], directory, read: read_rust })
}

/// Has cargo fetch nix, and copies it to where it can be built as a workspace of its own.
fn unpack_nix(scratch: &Path, directory: &Path) -> Result<()> {
    let fetch = scratch.join("fetch");
    fs::create_dir_all(fetch.join("src"))?;
    fs::write(fetch.join("src/lib.rs"), "")?;
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\n[dependencies]\nnix = \"={NIX}\"\n[workspace]\n"
    );
    fs::write(fetch.join("Cargo.toml"), manifest)?;
    let source = workspace::source_of(&fetch.join("Cargo.toml"), "nix")?;
    // Under its final name only when it is whole.
    let partial = scratch.join("partial");
    workspace::run(Command::new("cp").args(["-rT", "--"]).arg(source).arg(&partial))?;
    let manifest = fs::read_to_string(partial.join("Cargo.toml"))? + "\n[workspace]\n";
    fs::write(partial.join("Cargo.toml"), manifest)?;
    fs::rename(&partial, directory)?;
    Ok(())
}

/// What Rust's test harness prints at the end, and what nix says of tests that it leaves out.
fn read_rust(text: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    let left_out: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once(" cannot be run in Seccomp mode"))
        .map(|(test, _)| test)
        .collect();
    for line in text.lines() {
        // What a test itself prints may follow.
        let Some((test, end)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) else {
            continue;
        };
        let is_left_out = test.split("::").any(|part| left_out.iter().any(|name| name.ends_with(part)));
        let outcome = match end {
            _ if is_left_out => LEFT_OUT,
            _ if end.starts_with("ignored") => "ignored",
            _ => "ok",
        };
        outcomes.insert(test.to_owned(), vec![outcome.to_owned()]);
    }
    let failures = text.rsplit_once("\nfailures:\n").map_or("", |(_, names)| names);
    for test in failures.lines().map_while(|line| line.strip_prefix("    ")) {
        outcomes.insert(test.to_owned(), vec!["FAILED".to_owned()]);
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read() {
        let python =
            read_python("test_a (x.Y.test_a) ... ok\nnoise\nA sentence. ... skipped 'why'\nx ... what\n");
        assert_eq!(python.len(), 2);
        assert_eq!(python["A sentence."], ["skipped"]);
        let rust = read_rust(
            "test a::b ... ok\ntest c ... ignored, why\ntest d ... loud\nFAILED\ntest e::f ... ok\n\n\
             e cannot be run in Seccomp mode.  Skipping test.\n\nfailures:\n\n---- d ----\nfailures:\n    d\n\ntest result: FAILED.\n",
        );
        assert_eq!(rust["a::b"], ["ok"]);
        assert_eq!(rust["c"], ["ignored"]);
        assert_eq!(rust["d"], ["FAILED"]);
        assert_eq!(differing(&rust, &rust), [""; 0]);
        let changed = Outcomes::from([("a::b".to_owned(), vec!["FAILED".to_owned()])]);
        assert_eq!(differing(&rust, &changed), ["a::b", "c", "d", "e::f"]);
        assert_eq!(rust["e::f"], [LEFT_OUT]);
    }
}
