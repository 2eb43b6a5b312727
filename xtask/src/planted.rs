//! `cargo xtask planted`: bugs that the tests have to catch.
//!
//! Each file of `tests/planted` is a small mistake that somebody could make in the reclaimer, as a patch, with a
//! sentence in front that says what it breaks. They are put, one at a time, into a clone of what is committed, and the
//! tests of the crates around the reclaimer must fail. A test suite that lets one through proves less than it
//! seems to. This takes minutes, so people run it by hand; `cargo xtask tidy` sees that every patch still applies.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::workspace::{self, Workspace};

/// Where the patches are.
pub(crate) const DIRECTORY: &str = "tests/planted";

/// The packages whose tests stand around the reclaimer.
const PACKAGES: [&str; 2] = ["usgx-epc", "usgx-driver"];

/// Tests that have not ended by then hang: unharmed, they take a tenth of it.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(clap::Args)]
pub(crate) struct Planted {
    /// Only bugs whose name contains this
    filter: Option<String>,
}

/// How the tests ended.
enum Outcome {
    Passed,
    /// With the names of the tests that failed, of the first test binary in which one did.
    Failed(Vec<String>),
    Hung,
}

impl Planted {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<()> {
        let filter = self.filter.unwrap_or_default();
        let bugs: Vec<_> =
            bugs(&workspace.root)?.into_iter().filter(|path| name(path).contains(&filter)).collect();
        ensure!(!bugs.is_empty(), "no planted bug is called like `{filter}`: see {DIRECTORY}");
        let garden = Garden::new(workspace)?;
        println!("without a bug:");
        ensure!(matches!(garden.test()?, Outcome::Passed), "the tests fail as they are: mend that first");
        println!("  the tests pass, as they should");
        let mut escaped = 0;
        for bug in &bugs {
            println!("{}: {}", name(bug), title(&fs::read_to_string(bug)?));
            let start = Instant::now();
            match garden.test_with(bug)? {
                Outcome::Passed => {
                    escaped += 1;
                    println!("  NOT CAUGHT");
                }
                Outcome::Failed(tests) => println!(
                    "  caught in {:.0} s by {}",
                    start.elapsed().as_secs_f64(),
                    tests.first().map_or("cargo", String::as_str),
                ),
                Outcome::Hung => println!("  caught: a test never ended"),
            }
        }
        println!("{} of {} planted bugs caught", bugs.len() - escaped, bugs.len());
        ensure!(escaped == 0, "{escaped} planted bugs were not caught: add the test that would have");
        Ok(())
    }
}

/// The patches, by name.
pub(crate) fn bugs(root: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(root.join(DIRECTORY)).with_context(|| format!("reading {DIRECTORY}"))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    paths.sort();
    Ok(paths)
}

/// Whether `patch` applies to the files in `root`, without applying it; if not, what git says.
pub(crate) fn check(root: &Path, patch: &Path) -> Result<Option<String>> {
    let mut git = Command::new("git");
    let output =
        git.current_dir(root).args(["apply", "--check"]).arg(patch).output().context("starting git")?;
    Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn name(patch: &Path) -> String {
    patch.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// What stands in front of the patch, as one line.
fn title(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("diff ") && !line.starts_with("--- "));
    lines.map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A clone of the repository, to plant bugs in, with a target directory of its own.
struct Garden<'a> {
    workspace: &'a Workspace,
    tree: PathBuf,
}

impl<'a> Garden<'a> {
    fn new(workspace: &'a Workspace) -> Result<Self> {
        let tree = workspace.target.join("planted/tree");
        if tree.exists() {
            fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
        }
        let mut git = Command::new("git");
        workspace::run(git.args(["clone", "--quiet", "--local"]).arg(&workspace.root).arg(&tree))?;
        Ok(Self { workspace, tree })
    }

    fn git(&self) -> Command {
        let mut git = Command::new("git");
        git.current_dir(&self.tree);
        git
    }

    fn test_with(&self, patch: &Path) -> Result<Outcome> {
        workspace::run(self.git().arg("apply").arg(patch)).context("the patch is out of date")?;
        let outcome = self.test();
        workspace::run(self.git().args(["checkout", "--quiet", "--", "."]))?;
        outcome
    }

    fn cargo_test(&self) -> Command {
        let mut cargo = self.workspace.cargo(&["test", "--quiet"]);
        cargo.current_dir(&self.tree).env("CARGO_TARGET_DIR", self.tree.with_file_name("target"));
        // A bug leaves unused things behind.
        cargo.env("RUSTFLAGS", "--allow=warnings");
        cargo.args(PACKAGES.map(|package| format!("--package={package}")));
        cargo
    }

    fn test(&self) -> Result<Outcome> {
        // A bug that does not compile is no test of the tests.
        workspace::run(self.cargo_test().arg("--no-run").stderr(Stdio::null()))
            .context("it does not build")?;
        let log = self.tree.with_file_name("output");
        let output = fs::File::create(&log)?;
        let mut tests = self.cargo_test();
        tests.args(["--", "--format=pretty"]);
        tests.stdout(output.try_clone()?).stderr(output).process_group(0);
        let mut child = tests.spawn().context("starting cargo")?;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                kill_process_group(Pid::from_child(&child), Signal::KILL)?;
                child.wait()?;
                return Ok(Outcome::Hung);
            }
            thread::sleep(Duration::from_millis(100));
        };
        if status.success() {
            return Ok(Outcome::Passed);
        }
        let output = fs::read(&log)?;
        Ok(Outcome::Failed(failed_tests(&String::from_utf8_lossy(&output))))
    }
}

/// The tests that failed, and last the test binary, which may have ended before it could say which.
fn failed_tests(output: &str) -> Vec<String> {
    let test = |line: &str| line.strip_prefix("test ")?.strip_suffix(" ... FAILED").map(str::to_owned);
    let binary = |line: &str| line.strip_prefix("error: test failed, to rerun pass ").map(str::to_owned);
    output.lines().filter_map(test).chain(output.lines().filter_map(binary)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_stand_in_front_of_patches() {
        assert_eq!(title("One thing\nis wrong.\n\ndiff --git a/x b/x\n--- a/x\n"), "One thing is wrong.");
    }

    #[test]
    fn failures_are_found_in_the_output_of_tests() {
        let output = "test a::b ... ok\ntest c::d ... FAILED\ntest result: FAILED. 1 passed; 1 failed\n";
        assert_eq!(failed_tests(output), ["c::d"]);
        assert_eq!(failed_tests("error: test failed, to rerun pass `--test idle`\n"), ["`--test idle`"]);
    }
}
