//! `cargo xtask e2e`: builds `usgx` and runs real programs under it. The tests are in `tests/e2e`.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};

use crate::report::Report;
use crate::selftests;
use crate::test::run_counted;
use crate::tools;
use crate::workspace::{self, Workspace};

#[derive(clap::Args)]
pub(crate) struct E2e {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Uses this `usgx` instead of building one
    #[arg(long, value_name = "FILE")]
    usgx: Option<String>,
    /// Tests that run at the same time
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl E2e {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<()> {
        let failed = tests(workspace, &self)?.tally.failed;
        ensure!(failed == 0, "{failed} end-to-end tests failed");
        Ok(())
    }
}

/// Runs all end-to-end tests.
pub(crate) fn run_all(workspace: &Workspace) -> Result<Report> {
    tests(workspace, &E2e { filter: None, usgx: None, threads: None })
}

fn tests(workspace: &Workspace, options: &E2e) -> Result<Report> {
    let usgx = match &options.usgx {
        Some(path) => fs::canonicalize(path).with_context(|| format!("no usgx at {path}"))?,
        None => workspace.build_usgx()?,
    };
    let mut command = workspace.cargo(&["run", "--package", "usgx-e2e", "--"]);
    command.env("USGX_BIN", usgx).env("USGX_E2E_DIR", workspace.target.join("e2e"));
    // Elsewhere the tests that need others' programs are skipped with a reason; in CI nothing is missing silently.
    let others = [
        ("USGX_SELFTESTS", "the kernel's selftests", selftests::ensure_built(workspace, None)),
        ("USGX_SGXS_TOOLS", "sgxs-tools", tools::ensure_built(workspace, None)),
        ("USGX_EXAMPLE", "the example program", build_example(workspace)),
    ];
    for (variable, name, place) in others {
        match place {
            Ok(place) => {
                command.env(variable, place);
            }
            Err(error) if env::var_os("CI").is_some() => return Err(error.context(name)),
            Err(error) => eprintln!("xtask: going on without {name}: {error:#}"),
        }
    }
    if let Some(threads) = options.threads {
        command.arg(format!("--test-threads={threads}"));
    }
    command.args(&options.filter);
    run_counted(&mut command)
}

/// Builds the program around the example enclave, and returns its path.
fn build_example(workspace: &Workspace) -> Result<PathBuf> {
    let target = workspace.target.join("example");
    let mut cargo = workspace.cargo(&["build", "--release", "--quiet", "--manifest-path"]);
    cargo.arg(workspace.root.join("examples/host/Cargo.toml")).arg("--target-dir").arg(&target);
    workspace::run(&mut cargo)?;
    Ok(target.join("release/usgx-example"))
}
