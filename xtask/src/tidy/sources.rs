//! Rules for one Rust file: a head that says what it owns, homes of `unsafe`, no leftovers, a readable length.

use std::path::Path;

use super::{Violation, code};

/// From here on, look for the second concept in the file.
const LONG: usize = 600;
/// Beyond this a file says why it is one file.
const TOO_LONG: usize = 800;
/// How it says so.
const LONG_BECAUSE: &str = "// Long because";

/// Macros that are for while one works on something.
const LEFTOVERS: [&str; 3] = ["todo!", "unimplemented!", "dbg!"];

/// Crates whose roots promise kernels what they need.
const KERNEL_CRATES: [&str; 3] = ["isa", "epc", "driver"];

/// Checks one file against every rule.
pub(super) fn check(path: &Path, text: &str) -> Vec<Violation> {
    let code = code::only(text);
    let mut violations = Vec::new();
    violations.extend(head(path, text));
    violations.extend(kernel_root(path, &code));
    violations.extend(length(path, text));
    for (index, line) in code.lines().enumerate() {
        if !may_be_unsafe(path) && has_word(line, "unsafe") {
            let message = "`unsafe` belongs into crates/sys, crates/runtime or a file named raw.rs";
            violations.push(Violation::at_line(path, index, message));
        }
        for leftover in LEFTOVERS {
            if has_word(line, leftover) {
                violations.push(Violation::at_line(path, index, format!("`{leftover}` is left over")));
            }
        }
    }
    violations
}

/// A hint for files that get long, which is not yet a violation.
pub(super) fn long_file_warning(path: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (LONG < lines && lines <= TOO_LONG)
        .then(|| format!("{}: {lines} lines; is there a second concept in it?", path.display()))
}

fn head(path: &Path, text: &str) -> Option<Violation> {
    // Examples are for people who copy them; a build script is no part of a crate's design.
    let exempt = path.starts_with("examples") || path.ends_with("build.rs");
    let documented = text.lines().next().is_some_and(|line| line.starts_with("//! "));
    (!exempt && !documented).then(|| Violation::in_file(path, "begins without `//!`: what does it own?"))
}

fn kernel_root(path: &Path, code: &str) -> Vec<Violation> {
    let is_root = KERNEL_CRATES.iter().any(|name| path == Path::new("crates").join(name).join("src/lib.rs"));
    if !is_root {
        return Vec::new();
    }
    ["#![no_std]", "#![forbid(unsafe_code)]"]
        .into_iter()
        .filter(|attribute| !code.lines().any(|line| line.trim() == *attribute))
        .map(|attribute| Violation::in_file(path, format!("kernels need `{attribute}` here")))
        .collect()
}

fn length(path: &Path, text: &str) -> Option<Violation> {
    let lines = text.lines().count();
    let excused = text.lines().any(|line| line.trim_start().starts_with(LONG_BECAUSE));
    (lines > TOO_LONG && !excused).then(|| {
        Violation::in_file(path, format!("{lines} lines: split it, or say `{LONG_BECAUSE} ...` in it"))
    })
}

fn may_be_unsafe(path: &Path) -> bool {
    // An example enclave is freestanding code, as the runtime is.
    ["crates/sys", "crates/runtime", "examples"].iter().any(|home| path.starts_with(home))
        || path.file_name().is_some_and(|name| name == "raw.rs")
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part) && (word.ends_with('!') || !after.is_some_and(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        check(Path::new(path), text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_clean_file_has_no_violations() {
        let text = "//! What it owns.\n#![deny(unsafe_code)]\n// unsafe, todo!\nfn f() { g(\"dbg!\") }\n";
        assert_eq!(messages("crates/cpu/src/epcm.rs", text), [""; 0]);
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        assert_eq!(messages("crates/cpu/src/a.rs", "fn f() {}\n").len(), 1);
        assert_eq!(messages("xtask/src/a.rs", "// not docs\n").len(), 1);
        assert_eq!(messages("crates/usgx/build.rs", "fn main() {}\n").len(), 0);
    }

    #[test]
    fn unsafe_away_from_home_is_found_with_its_line() {
        let text = "//! Head.\nfn f() {\n    unsafe { g() }\n}\n";
        let found = messages("crates/machine/src/view.rs", text);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("crates/machine/src/view.rs:3: "), "{found:?}");
        assert_eq!(messages("crates/cpu/src/raw.rs", text).len(), 0);
        assert_eq!(messages("crates/sys/src/uffd.rs", text).len(), 0);
        assert_eq!(messages("crates/sysfs/src/uffd.rs", text).len(), 1);
    }

    #[test]
    fn leftovers_are_found() {
        let text = "//! Head.\nfn f() { todo!(); unimplemented!(\"x\"); dbg!(1); my_dbg!(2) }\n";
        assert_eq!(messages("crates/epc/src/a.rs", text).len(), 3);
    }

    #[test]
    fn kernel_roots_keep_their_promises() {
        let bare = "//! Head.\n// #![no_std]\n";
        assert_eq!(messages("crates/epc/src/lib.rs", bare).len(), 2);
        assert_eq!(messages("crates/cpu/src/lib.rs", bare).len(), 0);
        let good = "//! Head.\n#![no_std]\n#![forbid(unsafe_code)]\n";
        assert_eq!(messages("crates/driver/src/lib.rs", good).len(), 0);
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        let (path, long) = (Path::new("crates/cpu/src/a.rs"), format!("//! Head.\n{}", "\n".repeat(800)));
        assert_eq!(check(path, &long).len(), 1);
        assert_eq!(check(path, &format!("{long}// Long because it is one table.\n")).len(), 0);
        let medium = format!("//! Head.\n{}", "\n".repeat(650));
        assert_eq!(check(path, &medium).len(), 0);
        assert!(long_file_warning(path, &medium).is_some());
    }
}
