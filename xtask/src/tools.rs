//! `cargo xtask tools`: other people's SGX tools, which judge what ours computes.
//!
//! `sgxs-tools` by Fortanix measures, signs and loads enclaves, and looks for SGX in a machine, with none of our
//! code. It is built once, from crates.io, with the versions that its own lock file names. In its development
//! profile: it has little to compute, and optimising its 300 dependencies would take most of CI's time.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::workspace::{self, Workspace};

/// What is installed.
const PACKAGE: &str = "sgxs-tools";
const VERSION: &str = "0.10.0";

/// The programs of it that we use.
const PROGRAMS: [&str; 4] = ["sgxs-info", "sgxs-sign", "sgxs-load", "sgx-detect"];

/// What its build needs, as a command that shows that it is there, and Debian's package with it.
const NEEDS: [(&str, &str); 2] = [("protoc", "protobuf-compiler"), ("pkg-config", "pkg-config libssl-dev")];

#[derive(clap::Args)]
pub(crate) struct Tools {
    /// Where to put them; `target/tools` if not given
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Tools {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<()> {
        println!("{}", ensure_built(workspace, self.dir)?.display());
        Ok(())
    }
}

/// Returns the directory with the programs, and builds them first if they are not there.
pub(crate) fn ensure_built(workspace: &Workspace, dir: Option<PathBuf>) -> Result<PathBuf> {
    let root = dir.unwrap_or_else(|| workspace.target.join("tools"));
    let programs = root.join("bin");
    if PROGRAMS.iter().all(|name| programs.join(name).is_file()) {
        return Ok(programs);
    }
    for (tool, package) in NEEDS {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(
            found.is_ok_and(|status| status.success()),
            "building {PACKAGE} needs {tool}: apt-get install {package}"
        );
    }
    eprintln!("building {PACKAGE} {VERSION}");
    let scratch = root.join("scratch");
    let mut cargo =
        workspace.cargo(&["install", PACKAGE, "--version", VERSION, "--locked", "--debug", "--quiet"]);
    for program in PROGRAMS {
        cargo.args(["--bin", program]);
    }
    // Others' warnings are not ours to mend; debug information would take a gigabyte.
    cargo.env("CARGO_TARGET_DIR", &scratch).env("CARGO_PROFILE_DEV_DEBUG", "false");
    cargo.env_remove("RUSTFLAGS").arg("--root").arg(&root);
    let built = workspace::run(&mut cargo).context("it also needs libssl-dev");
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    built?;
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_built_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        for name in PROGRAMS {
            std::fs::write(dir.path().join("bin").join(name), "").unwrap();
        }
        let workspace = Workspace::discover().unwrap();
        let found = ensure_built(&workspace, Some(dir.path().to_owned())).unwrap();
        assert_eq!(found, dir.path().join("bin"));
    }
}
