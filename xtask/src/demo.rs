//! `cargo xtask demo`: the first thing to try. Builds `usgx` and lets it show itself.

use std::process::Command;

use anyhow::Result;

use crate::workspace::{self, Workspace};

#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Passed on to `usgx demo`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Demo {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<()> {
        let usgx = workspace.build_usgx()?;
        workspace::run(Command::new(usgx).arg("demo").args(self.arguments))
    }
}
