//! `cargo xtask tidy`: rules of this repository that lints cannot check. `CONTRIBUTING.md` says why they exist.
//!
//! Each rule is a pure function from text (or cargo's metadata) to violations, with tests that plant some. This
//! file collects the texts and prints what the rules found.

mod code;
mod layers;
mod licences;
mod sources;
mod words;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context as _, Result, ensure};

use crate::planted;
use crate::workspace::Workspace;

/// Something that is not as it should be.
#[derive(Debug, Eq, PartialEq)]
struct Violation {
    /// File, and line if there is one; or a package.
    place: String,
    /// What is wrong and what to do.
    message: String,
}

impl Violation {
    fn at_line(path: &Path, index: usize, message: impl Into<String>) -> Self {
        Self { place: format!("{}:{}", path.display(), index + 1), message: message.into() }
    }

    fn in_file(path: &Path, message: impl Into<String>) -> Self {
        Self { place: path.display().to_string(), message: message.into() }
    }

    fn in_package(name: &str, message: impl Into<String>) -> Self {
        Self { place: name.to_owned(), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Runs every rule.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut violations = Vec::new();
    let files = tracked_files(&workspace.root)?;
    for path in &files {
        let Ok(text) = fs::read_to_string(workspace.root.join(path)) else { continue };
        violations.extend(words::check(path, &text));
        if path.extension().is_some_and(|extension| extension == "rs") {
            violations.extend(sources::check(path, &text));
            if let Some(warning) = sources::long_file_warning(path, &text) {
                println!("warning: {warning}");
            }
        }
    }
    let ours = workspace.metadata.packages.iter().filter(|package| package.source.is_none());
    let ours: Vec<_> = ours.cloned().chain(workspace.outside_packages()?).collect();
    violations.extend(layers::check(&ours));
    violations.extend(code_map(workspace, &files)?);
    violations.extend(planted_bugs(workspace)?);
    let deny = fs::read_to_string(workspace.root.join("deny.toml")).context("reading deny.toml")?;
    violations.extend(licences::check(&workspace.metadata.packages, &licences::allowed(&deny)?));

    for violation in &violations {
        println!("{violation}");
    }
    ensure!(violations.is_empty(), "{} violations of the repository's rules", violations.len());
    println!("{} files and {} packages are tidy", files.len(), workspace.metadata.packages.len());
    Ok(())
}

/// Files under version control and files that could be: what a commit would hold.
fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().context("cannot start git: is it installed?")?;
    ensure!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut files: Vec<_> = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

/// Every planted bug still applies.
fn planted_bugs(workspace: &Workspace) -> Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for patch in planted::bugs(&workspace.root)? {
        if let Some(complaint) = planted::check(&workspace.root, &patch)? {
            let message = format!("does not apply any more, bring it up to date: {complaint}");
            violations.push(Violation::in_file(workspace.relative(&patch), message));
        }
    }
    Ok(violations)
}

/// `ARCHITECTURE.md` names every crate.
fn code_map(workspace: &Workspace, files: &[PathBuf]) -> Result<Vec<Violation>> {
    let path = Path::new("ARCHITECTURE.md");
    let Ok(text) = fs::read_to_string(workspace.root.join(path)) else {
        return Ok(vec![Violation::in_file(path, "is missing")]);
    };
    let crates = files.iter().filter(|file| file.starts_with("crates") && file.ends_with("Cargo.toml"));
    let names = crates.filter_map(|file| file.parent()?.to_str());
    Ok(names.filter_map(|name| missing_in_map(path, &text, name)).collect())
}

fn missing_in_map(path: &Path, text: &str, directory: &str) -> Option<Violation> {
    let named = text.match_indices(directory).any(|(at, _)| {
        let after = text[at + directory.len()..].chars().next();
        !after.is_some_and(|c| c.is_alphanumeric() || c == '-' || c == '_')
    });
    (!named).then(|| Violation::in_file(path, format!("does not say what `{directory}` is")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_that_the_map_leaves_out_is_found() {
        let map = "`crates/epc` and `crates/driver-model`.";
        let path = Path::new("ARCHITECTURE.md");
        assert_eq!(missing_in_map(path, map, "crates/epc"), None);
        assert!(missing_in_map(path, map, "crates/driver").is_some());
        assert!(missing_in_map(path, map, "crates/cpu").is_some());
    }
}
