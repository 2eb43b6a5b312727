//! `cargo xtask bench`: builds the product and the package `benches`, and passes the arguments on. What is measured,
//! and how, stands there.

use anyhow::Result;

use crate::workspace::{self, Workspace};

#[derive(clap::Args)]
pub(crate) struct Bench {
    /// Also writes the results as JSON into this file
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Runs every measurement once, on small input: do they still work?
    #[arg(long)]
    smoke: bool,
    /// Only measurements whose name contains this
    filter: Option<String>,
}

impl Bench {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<()> {
        // The benchmark finds it beside itself.
        workspace::run(&mut workspace.cargo(&["build", "--release", "--package", "usgx"]))?;
        let mut command = workspace.cargo(&["run", "--release", "--package", "usgx-bench", "--"]);
        if let Some(file) = &self.json {
            command.args(["--json", file]);
        }
        if self.smoke {
            command.arg("--smoke");
        }
        command.args(&self.filter);
        workspace::run(&mut command)
    }
}
