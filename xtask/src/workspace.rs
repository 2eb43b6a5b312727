//! Where things are, and how commands are started.
//!
//! The repository holds one workspace and a few packages outside it, which need other profiles (see the root
//! manifest). [`Workspace::manifests`] is the one list of all of them, for commands that check every source.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::echo::Echo;

/// Variables that `cargo run` sets for xtask. Build scripts that watch them would run again in every nested
/// build if they leaked.
const CARGO_RUN_VARIABLES: [&str; 5] =
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"];

/// The one platform that usgx is for. Without it, metadata would list (and fetch) Windows crates too.
const PLATFORM: &str = "--filter-platform=x86_64-unknown-linux-gnu";

/// The repository.
pub(crate) struct Workspace {
    /// The directory with the root manifest.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    /// What `cargo metadata` says about the workspace and everything it depends on.
    pub(crate) metadata: Metadata,
}

/// The part of `cargo metadata` that we read.
#[derive(Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) target_directory: PathBuf,
    pub(crate) workspace_root: PathBuf,
}

/// A package, ours or a dependency.
#[derive(Clone, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    /// Its manifest.
    pub(crate) manifest_path: PathBuf,
    /// Where it comes from; `None` for a package of this repository.
    pub(crate) source: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
}

/// An entry of a manifest's dependency tables.
#[derive(Clone, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `None`, `dev` or `build`.
    pub(crate) kind: Option<String>,
    /// Set for a package of this repository.
    pub(crate) path: Option<PathBuf>,
}

impl Workspace {
    /// Asks cargo about the workspace that this file belongs to.
    pub(crate) fn discover() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
        let metadata = read_metadata(&root.join("Cargo.toml"), &[])?;
        Ok(Self {
            root: metadata.workspace_root.clone(),
            target: metadata.target_directory.clone(),
            metadata,
        })
    }

    /// Every manifest that cargo must be called with: the workspace's, and those of packages outside it.
    pub(crate) fn manifests(&self) -> Result<Vec<PathBuf>> {
        let mut manifests = vec![self.root.join("Cargo.toml")];
        let mut outside = vec![self.root.join("crates/runtime"), self.root.join("tests/nostd")];
        let examples = self.root.join("examples");
        if examples.is_dir() {
            outside.push(examples.clone());
            for entry in fs::read_dir(&examples)? {
                outside.push(entry?.path());
            }
        }
        outside.sort();
        manifests.extend(outside.into_iter().map(|dir| dir.join("Cargo.toml")).filter(|path| path.is_file()));
        Ok(manifests)
    }

    /// The packages of this repository that are outside the workspace.
    pub(crate) fn outside_packages(&self) -> Result<Vec<Package>> {
        let mut packages = Vec::new();
        for manifest in &self.manifests()?[1..] {
            packages.extend(read_metadata(manifest, &["--no-deps"])?.packages);
        }
        Ok(packages)
    }

    /// A `cargo` command in the workspace's root.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root).args(arguments);
        command
    }

    /// A path as people type it: relative to the root.
    pub(crate) fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    /// Builds the release binary of `usgx` and returns its path.
    pub(crate) fn build_usgx(&self) -> Result<PathBuf> {
        run(&mut self.cargo(&["build", "--release", "--package", "usgx"]))?;
        Ok(self.target.join("release/usgx"))
    }
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| CARGO_RUN_VARIABLES.iter().any(|prefix| name.starts_with(prefix)))
        {
            command.env_remove(name);
        }
    }
    command
}

fn read_metadata(manifest: &Path, extra: &[&str]) -> Result<Metadata> {
    let mut command = cargo();
    command.args(["metadata", "--format-version=1", PLATFORM, "--manifest-path"]).arg(manifest).args(extra);
    let output = command.stderr(Stdio::inherit()).output().context("starting cargo")?;
    ensure!(output.status.success(), "`{}` failed: {}", show(&command), output.status);
    serde_json::from_slice(&output.stdout).context("reading what cargo metadata printed")
}

/// Where the source of a package lies that a manifest depends on; cargo fetches it if need be.
pub(crate) fn source_of(manifest: &Path, name: &str) -> Result<PathBuf> {
    let metadata = read_metadata(manifest, &[])?;
    let package = metadata.packages.into_iter().find(|package| package.name == name);
    let package = package.with_context(|| format!("{} does not depend on {name}", manifest.display()))?;
    Ok(package.manifest_path.parent().context("a manifest lies in a directory")?.to_owned())
}

/// Runs a command to its end, its output where ours goes.
///
/// # Errors
/// If it cannot be started or fails. The message ends with the last lines of its standard error, unless they went
/// to a terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let (mut child, errors) = start(command)?;
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "{}",
            [vec![format!("`{}` failed: {status}", show(command))], errors.last_lines()].concat().join("\n")
        );
    }
    Ok(())
}

/// Starts a command whose standard error goes where ours goes.
pub(crate) fn start(command: &mut Command) -> Result<(Child, Echo)> {
    Echo::start(command).with_context(|| format!("cannot start `{}`: is it installed?", show(command)))
}

/// A command as a person would type it.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    words.join(" ")
}
