//! `cargo xtask selftests`: the Linux kernel's own SGX tests, built from Debian's copy of the kernel source.
//!
//! They are the most honest test there is of an SGX driver, and they are GPL: so they are fetched, built and
//! run, never stored in this repository. Debian's package is 150 MB, of which two files of 370 kB remain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::workspace::{self, Workspace};

/// Debian's package of the kernel source.
const PACKAGE: &str = "linux-source-6.12";

/// What the tests are built from, relative to the top of the kernel source.
const MEMBERS: [&str; 15] = [
    "tools/testing/selftests/sgx",
    "tools/testing/selftests/lib.mk",
    "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h",
    "tools/testing/selftests/x86/check_cc.sh",
    "tools/testing/selftests/x86/trivial_64bit_program.c",
    "tools/include/linux",
    "tools/include/asm",
    "tools/include/asm-generic",
    "tools/include/uapi",
    "tools/include/vdso",
    "arch/x86/include/asm/sgx.h",
    "arch/x86/include/asm/enclu.h",
    "arch/x86/include/uapi/asm/sgx.h",
    "scripts/subarch.include",
];

/// What is kept: the program and its enclave.
const RESULTS: [&str; 2] = ["test_sgx", "test_encl.elf"];

#[derive(clap::Args)]
pub(crate) struct Selftests {
    /// Where to put them; `target/selftests` if not given
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Selftests {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<()> {
        println!("{}", ensure_built(workspace, self.dir)?.display());
        Ok(())
    }
}

/// Returns the directory of the built selftests, and builds them first if they are not there.
pub(crate) fn ensure_built(workspace: &Workspace, dir: Option<PathBuf>) -> Result<PathBuf> {
    let dir = dir.unwrap_or_else(|| workspace.target.join("selftests"));
    if RESULTS.iter().all(|name| dir.join(name).is_file()) {
        return Ok(dir);
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let scratch = dir.join("scratch");
    remove_if_there(&scratch)?;
    let built = build(&scratch, &dir);
    // Whether it worked or not: half a gigabyte that nobody needs.
    remove_if_there(&scratch)?;
    built.context("building the kernel's SGX selftests")?;
    Ok(dir)
}

fn build(scratch: &Path, dir: &Path) -> Result<()> {
    let (source, out) = (scratch.join("src"), scratch.join("out"));
    fs::create_dir_all(&source)?;
    fs::create_dir_all(&out)?;

    eprintln!("fetching {PACKAGE} (150 MB)");
    let mut apt = Command::new("apt-get");
    apt.current_dir(scratch).args(["--quiet=2", "download", PACKAGE]);
    if rustix::process::geteuid().is_root() {
        // apt drops to a user of its own, which cannot write here.
        apt.args(["--option", "APT::Sandbox::User=root"]);
    }
    workspace::run(&mut apt).context("needs Debian's archive: try `apt-get update` first")?;
    let package = fs::read_dir(scratch)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;

    eprintln!("unpacking");
    workspace::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(scratch.join("pkg")))?;
    fs::remove_file(&package)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--directory"]).arg(&source);
    tar.arg("--file").arg(scratch.join("pkg/usr/src").join(format!("{PACKAGE}.tar.xz")));
    tar.args(MEMBERS.map(|member| format!("{PACKAGE}/{member}")));
    workspace::run(&mut tar)?;

    eprintln!("building");
    let mut make = Command::new("make");
    make.arg("--directory").arg(source.join("tools/testing/selftests/sgx"));
    make.arg("CC=gcc").arg(format!("OUTPUT={}", out.display()));
    // The kernel's makefiles read these names from the environment too.
    for name in ["ARCH", "CROSS_COMPILE", "O", "KBUILD_OUTPUT", "MAKEFLAGS", "MFLAGS"] {
        make.env_remove(name);
    }
    let output = make.output().context("cannot start make: is it installed?")?;
    ensure!(
        output.status.success(),
        "make failed ({}); gcc, binutils and libssl-dev are needed:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    for name in RESULTS {
        let from = out.join(name);
        // By way of another name, so that a file with the final name is always whole.
        let partial = dir.join(format!("{name}.{}", std::process::id()));
        fs::copy(&from, &partial).with_context(|| format!("the build left no {}", from.display()))?;
        fs::rename(&partial, dir.join(name))?;
    }
    Ok(())
}

fn remove_if_there(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_built_again() {
        let dir = tempfile::tempdir().unwrap();
        for name in RESULTS {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let workspace = Workspace::discover().unwrap();
        let found = ensure_built(&workspace, Some(dir.path().to_owned())).unwrap();
        assert_eq!(found, dir.path());
        assert!(!found.join("scratch").exists());
    }
}
