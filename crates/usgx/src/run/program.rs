//! Which file a command names, and whether it can run here: asked before the program is started, because
//! afterwards there is nobody left to say what was wrong.

use std::env;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Exit status when a command is not found, as in shells.
pub(crate) const NOT_FOUND: u8 = 127;
/// Exit status when a command is found but cannot be executed, as in shells.
pub(crate) const NOT_EXECUTABLE: u8 = 126;

/// Interpreters of interpreters that the kernel follows.
const MAX_INTERPRETERS: usize = 5;
/// Bytes of a script that the kernel looks at.
const HEAD: usize = 256;

/// Why a command cannot be run.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Unrunnable {
    /// What to exit with.
    pub(crate) status: u8,
    /// What to say.
    pub(crate) message: String,
}

fn unrunnable(status: u8, message: String) -> Unrunnable {
    Unrunnable { status, message }
}

/// What the first bytes of a file say that it is.
#[derive(Debug, Eq, PartialEq)]
enum Kind {
    /// An ELF file for this processor, 64-bit.
    Native,
    /// An ELF file that is something else.
    Foreign(&'static str),
    /// A script and its interpreter.
    Script(PathBuf),
    /// None of these.
    Unknown,
}

fn kind(head: &[u8]) -> Kind {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let interpreter = line.split(|byte| b" \t".contains(byte)).find(|word| !word.is_empty());
        return interpreter
            .map_or(Kind::Unknown, |path| Kind::Script(PathBuf::from(OsStr::from_bytes(path))));
    }
    if !head.starts_with(b"\x7fELF") || head.len() < 20 {
        return Kind::Unknown;
    }
    // e_ident[EI_CLASS], e_ident[EI_DATA], e_type, e_machine.
    match (
        head[4],
        head[5],
        u16::from_le_bytes([head[16], head[17]]),
        u16::from_le_bytes([head[18], head[19]]),
    ) {
        (2, 1, 2 | 3, 62) => Kind::Native,
        (2, 1, _, 62) => Kind::Foreign("an object file or core dump, not a program"),
        (1, 1, _, 3) => Kind::Foreign("a 32-bit x86 program; usgx runs 64-bit ones only"),
        (1, 1, _, 62) => Kind::Foreign("an x32 program, which usgx does not support"),
        (_, 1, _, 183) => Kind::Foreign("a program for AArch64; SGX is a feature of x86-64"),
        _ => Kind::Foreign("a program for another kind of processor; SGX is a feature of x86-64"),
    }
}

/// The file that a command names, with `PATH` searched as a shell does.
fn locate(command: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, Unrunnable> {
    if command.as_bytes().contains(&b'/') {
        return Ok(PathBuf::from(command));
    }
    let shown = Path::new(command).display();
    let mut forbidden = None;
    for directory in env::split_paths(path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"))) {
        let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        let candidate = directory.join(command);
        match candidate.metadata() {
            Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
                return Ok(candidate);
            }
            Ok(metadata) if metadata.is_file() => forbidden = Some(candidate),
            _ => {}
        }
    }
    match forbidden {
        Some(file) => Err(unrunnable(
            NOT_EXECUTABLE,
            format!("{} is not executable; try: chmod +x {}", file.display(), file.display()),
        )),
        None => Err(unrunnable(
            NOT_FOUND,
            format!("{shown}: no such command in PATH; for a program in this directory write ./{shown}"),
        )),
    }
}

/// Checks a file, and the interpreters behind it.
fn check(file: &Path, depth: usize) -> Result<(), Unrunnable> {
    let shown = file.display();
    let no_way = |message: String| Err(unrunnable(NOT_EXECUTABLE, message));
    if depth > MAX_INTERPRETERS {
        return no_way(format!("{shown} is a script whose interpreter is a script, and so on, too often"));
    }
    let metadata = file.metadata().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unrunnable(NOT_FOUND, format!("{shown}: there is no such file")),
        _ => unrunnable(NOT_EXECUTABLE, format!("{shown}: {error}")),
    })?;
    if metadata.is_dir() {
        return no_way(format!("{shown} is a directory, not a program"));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return no_way(format!("{shown} is not executable; try: chmod +x {shown}"));
    }
    let mut head = Vec::with_capacity(HEAD);
    // The kernel would execute a file that cannot be read, but keep its memory from the attendant.
    if let Err(error) = File::open(file).and_then(|file| file.take(HEAD as u64).read_to_end(&mut head)) {
        return no_way(format!("{shown} cannot be read ({error}), as it must be to be run with SGX"));
    }
    match kind(&head) {
        Kind::Native => Ok(()),
        Kind::Foreign(what) => no_way(format!("{shown} is {what}")),
        Kind::Script(interpreter) => check(&interpreter, depth + 1).map_err(|inner| Unrunnable {
            status: NOT_EXECUTABLE,
            message: format!("{shown} is a script that cannot run: {}", inner.message),
        }),
        Kind::Unknown => no_way(format!(
            "{shown} is neither an ELF program nor a script; a shell script needs '#!/bin/sh' as its first line"
        )),
    }
}

/// A command that can be executed.
#[derive(Debug)]
pub(crate) struct Program {
    /// The file.
    pub(crate) file: PathBuf,
    /// The name by which it was called, and its arguments.
    pub(crate) arguments: Vec<CString>,
}

impl Program {
    /// Finds and checks what a command line names.
    pub(crate) fn find(command: &[std::ffi::OsString]) -> Result<Self, Unrunnable> {
        let name = command.first().ok_or_else(|| unrunnable(NOT_FOUND, "there is no command".into()))?;
        let file = locate(name, env::var_os("PATH").as_deref())?;
        check(&file, 0)?;
        let arguments = command.iter().map(|argument| CString::new(argument.clone().into_vec()));
        let arguments = arguments.collect::<Result<_, _>>();
        let arguments =
            arguments.map_err(|_| unrunnable(NOT_EXECUTABLE, "an argument holds a zero byte".into()))?;
        Ok(Self { file, arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn elf(class: u8, file_type: u16, machine: u16) -> Vec<u8> {
        let mut head = b"\x7fELF".to_vec();
        head.extend([class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        head.extend(file_type.to_le_bytes());
        head.extend(machine.to_le_bytes());
        head
    }

    #[test]
    fn files_are_told_by_their_first_bytes() {
        assert_eq!(kind(&elf(2, 2, 62)), Kind::Native);
        assert_eq!(kind(&elf(2, 3, 62)), Kind::Native);
        assert!(matches!(kind(&elf(2, 1, 62)), Kind::Foreign(_)));
        assert!(matches!(kind(&elf(1, 2, 3)), Kind::Foreign(what) if what.contains("32-bit")));
        assert!(matches!(kind(&elf(2, 3, 183)), Kind::Foreign(what) if what.contains("AArch64")));
        assert_eq!(kind(b"#! /usr/bin/env  python3\nrest"), Kind::Script("/usr/bin/env".into()));
        assert_eq!(kind(b"#!\n"), Kind::Unknown);
        assert_eq!(kind(b"echo hello\n"), Kind::Unknown);
        assert_eq!(kind(b""), Kind::Unknown);
    }

    #[test]
    fn commands_are_found_in_path_or_by_path() {
        assert_eq!(locate("sh".as_ref(), Some("/nowhere:/bin".as_ref())), Ok("/bin/sh".into()));
        assert_eq!(locate("./x".as_ref(), None), Ok("./x".into()));
        assert_eq!(locate("no-such-command".as_ref(), None).expect_err("not found").status, NOT_FOUND);
    }

    #[test]
    fn each_obstacle_has_its_own_message() {
        let directory = env::temp_dir().join(format!("usgx-program-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("the temporary directory is writable");
        let file = |name: &str, bytes: &[u8], mode: u32| {
            let path = directory.join(name);
            fs::write(&path, bytes).expect("writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            path
        };
        let refusal = |path: &Path| check(path, 0).expect_err("it cannot run");
        assert_eq!(refusal(&directory.join("missing")).status, NOT_FOUND);
        assert!(refusal(&directory).message.contains("directory"));
        assert!(refusal(&file("plain", b"#!/bin/sh\n", 0o644)).message.contains("chmod +x"));
        assert!(refusal(&file("noshebang", b"echo\n", 0o755)).message.contains("#!/bin/sh"));
        assert!(refusal(&file("bad", b"#!/no/such/sh\n", 0o755)).message.contains("/no/such/sh"));
        assert!(refusal(&file("old", &elf(1, 2, 3), 0o755)).message.contains("32-bit"));
        assert_eq!(check(&file("good", b"#!/bin/sh\n", 0o755), 0), Ok(()));
        let itself = file("itself", b"", 0o755);
        fs::write(&itself, format!("#!{}\n", itself.display())).expect("writable");
        assert!(refusal(&itself).message.contains("too often"));
        fs::remove_dir_all(&directory).expect("ours");
    }
}
