//! What every test finds prepared: the binary, the C programs, the kernel's selftests and the users, in a
//! directory that an ordinary user can reach, wherever the repository lies.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

/// The user and group "nobody", who may do nothing.
const NOBODY: u32 = 65534;

/// The kernel selftests' files.
const SELFTESTS: [&str; 2] = ["test_sgx", "test_encl.elf"];

/// Programs of sgxs-tools.
const SGXS_TOOLS: [&str; 4] = ["sgxs-info", "sgxs-sign", "sgxs-load", "sgx-detect"];

/// How a C program is linked.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Link {
    Dynamic,
    Static,
}

/// Who runs a program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum User {
    /// Whoever runs the tests, if that is root.
    Root,
    /// Somebody without any privilege.
    Ordinary,
}

/// The prepared directory.
pub(crate) struct Stage {
    directory: TempDir,
    programs: BTreeMap<(String, Link), PathBuf>,
    has_selftests: bool,
    has_tools: bool,
    has_example: bool,
    is_root: bool,
}

impl Link {
    /// Both ways.
    pub(crate) const ALL: [Self; 2] = [Self::Dynamic, Self::Static];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Static => "static",
        }
    }
}

impl User {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Ordinary => "user",
        }
    }
}

impl Stage {
    /// Compiles and copies everything.
    pub(crate) fn prepare() -> Result<Self> {
        // Core dumps of programs that die on purpose help nobody.
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, none)?;

        let usgx = env::var_os("USGX_BIN").map_or_else(|| "target/release/usgx".into(), PathBuf::from);
        ensure!(
            usgx.is_file(),
            "there is no usgx at {}: build it with `cargo build --release --package usgx`, name it in USGX_BIN, \
             or start these tests by `cargo xtask e2e`",
            usgx.display()
        );
        let directory = tempfile::Builder::new().prefix("usgx-e2e-").tempdir()?;
        let mut stage = Self {
            directory,
            programs: BTreeMap::new(),
            has_selftests: false,
            has_tools: false,
            has_example: false,
            is_root: rustix::process::geteuid().is_root(),
        };
        let root = stage.directory.path().to_owned();
        open_to_all(&root)?;
        copy(&usgx, &root.join("usgx"))?;
        for user in stage.users() {
            let home = stage.home(user);
            fs::create_dir(&home)?;
            if stage.is_root && user == User::Ordinary {
                std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY))?;
            }
        }
        stage.compile_programs()?;
        if let Some(selftests) = env::var_os("USGX_SELFTESTS") {
            let to = root.join("selftests");
            fs::create_dir(&to)?;
            open_to_all(&to)?;
            for name in SELFTESTS {
                copy(&Path::new(&selftests).join(name), &to.join(name))?;
            }
            stage.has_selftests = true;
        }
        if let Some(tools) = env::var_os("USGX_SGXS_TOOLS") {
            for name in SGXS_TOOLS {
                copy(&Path::new(&tools).join(name), &root.join(name))?;
            }
            stage.has_tools = true;
        }
        if let Some(example) = env::var_os("USGX_EXAMPLE") {
            copy(Path::new(&example), &root.join("usgx-example"))?;
            stage.has_example = true;
        }
        let key = stage.key();
        let worker = stage.program("enclave_worker", Link::Dynamic);
        let made = Command::new(worker).arg("key").arg(&key).status()?;
        ensure!(made.success(), "enclave_worker made no key: {made}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
        Ok(stage)
    }

    /// Removes everything. (A test process ends without running destructors.)
    pub(crate) fn clean_up(&self) {
        // Best effort: a file of a test's user may be in the way, and then /tmp keeps it.
        drop(fs::remove_dir_all(self.directory.path()));
    }

    /// Who can run programs here.
    pub(crate) fn users(&self) -> Vec<User> {
        if self.is_root { vec![User::Root, User::Ordinary] } else { vec![User::Ordinary] }
    }

    /// Root, if there is one here.
    pub(crate) fn best_user(&self) -> User {
        if self.is_root { User::Root } else { User::Ordinary }
    }

    /// Lets everybody read a file.
    pub(crate) fn open_to_all(&self, path: &Path) -> Result<()> {
        open_to_all(path)
    }

    /// A directory of the user's own.
    pub(crate) fn home(&self, user: User) -> PathBuf {
        self.directory.path().join(format!("home-{}", user.name()))
    }

    /// A path on the stage, that everybody can read.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A compiled C program.
    pub(crate) fn program(&self, name: &str, link: Link) -> &Path {
        // A missing program is a mistake in a test's table.
        self.programs
            .get(&(name.to_owned(), link))
            .map_or(Path::new("/nonexistent/e2e/program"), PathBuf::as_path)
    }

    /// The directory of the kernel's selftests, if they are there.
    pub(crate) fn selftests(&self) -> Option<PathBuf> {
        self.has_selftests.then(|| self.path("selftests"))
    }

    /// A program of sgxs-tools, if they are there.
    pub(crate) fn sgxs_tool(&self, name: &str) -> Option<PathBuf> {
        self.has_tools.then(|| self.path(name))
    }

    /// The program around the example enclave, if it is there.
    pub(crate) fn example(&self) -> Option<PathBuf> {
        self.has_example.then(|| self.path("usgx-example"))
    }

    /// The key with which test enclaves are signed.
    pub(crate) fn key(&self) -> PathBuf {
        self.path("key.pem")
    }

    /// A command that a user runs directly, with a small known environment.
    pub(crate) fn command(&self, user: User, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        let home = self.home(user);
        command.current_dir(&home).env_clear().env("HOME", &home).env("LC_ALL", "C");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        if self.is_root && user == User::Ordinary {
            // Supplementary groups go as well.
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// The copy of `usgx` that everybody can run.
    pub(crate) fn usgx(&self) -> PathBuf {
        self.path("usgx")
    }

    /// `usgx run OPTIONS -- PROGRAM`, as a user runs it.
    pub(crate) fn run(&self, user: User, options: &[&str], program: impl AsRef<Path>) -> Command {
        let mut command = self.command(user, self.usgx());
        command.arg("run").args(options).arg("--").arg(program.as_ref());
        command
    }

    fn compile_programs(&mut self) -> Result<()> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
        let cache = env::var_os("USGX_E2E_DIR").map_or_else(|| "target/e2e".into(), PathBuf::from);
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let mut sources: Vec<_> =
            fs::read_dir(&source)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        sources.sort();
        let is_header = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "h");
        let headers: Vec<PathBuf> = sources.iter().filter(is_header).cloned().collect();
        for path in sources.iter().filter(|path| !is_header(path)) {
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            for link in Link::ALL {
                if link == Link::Static && needs_openssl(path)? {
                    continue; // OpenSSL need not be there as a static library.
                }
                let compiled = cache.join(format!("{name}.{}", link.name()));
                if !headers.iter().chain([path]).all(|source| is_newer(&compiled, source)) {
                    compile(path, &compiled, link)?;
                }
                let to = self.path(&format!("{name}.{}", link.name()));
                copy(&compiled, &to)?;
                self.programs.insert((name.to_owned(), link), to);
            }
        }
        Ok(())
    }
}

fn is_newer(file: &Path, than: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    time(file).is_some_and(|file| time(than).is_some_and(|than| file > than))
}

/// Whether a program signs or hashes.
fn needs_openssl(source: &Path) -> Result<bool> {
    let text = fs::read_to_string(source)?;
    Ok(["<openssl/", "\"sign.h\"", "\"build.h\""]
        .iter()
        .any(|header| text.contains(&format!("#include {header}"))))
}

fn compile(source: &Path, to: &Path, link: Link) -> Result<()> {
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-g", "-Wall", "-Wextra", "-pthread", "-o"]).arg(to).arg(source);
    match link {
        Link::Static => gcc.arg("-static"),
        Link::Dynamic if needs_openssl(source)? => gcc.arg("-lcrypto"),
        Link::Dynamic => gcc.arg("-ldl"),
    };
    // glibc warns that dlopen in a static program needs the same glibc again; it is never called there.
    let output = gcc.output().context("cannot start gcc: is it installed?")?;
    if !output.status.success() {
        bail!("gcc cannot compile {}:\n{}", source.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to the stage", from.display()))?;
    open_to_all(to)
}

fn open_to_all(path: &Path) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
