//! Rules for every text in the repository: nothing that is true on one person's machine only.

use std::path::Path;

use super::Violation;

/// The start of absolute paths that name somebody's working place. Written in two halves, or this file would be
/// its own violation.
const PLACES: [&str; 4] =
    [concat!("/", "root/"), concat!("/", "home/"), concat!("/", "work/"), concat!("/", "Users/")];

/// Where every dependency comes from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks one text.
pub(super) fn check(path: &Path, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    let lock_file = path.ends_with("Cargo.lock");
    for (index, line) in text.lines().enumerate() {
        for place in PLACES {
            if line.match_indices(place).any(|(at, _)| starts_a_path(&line[..at])) {
                let message = format!("an absolute path, `{place}...`, that is not everybody's");
                violations.push(Violation::at_line(path, index, message));
            }
        }
        if lock_file && line.starts_with("source = ") && !line.contains(REGISTRY) {
            violations.push(Violation::at_line(path, index, "a dependency that is not from crates.io"));
        }
    }
    violations
}

/// Whether a path can start after this text: `/proc/PID/root/` has another start.
fn starts_a_path(before: &str) -> bool {
    !before.chars().next_back().is_some_and(|c| c.is_alphanumeric() || "_.-}>)*~$".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(Path::new(path), text).len()
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        assert_eq!(count("README.md", &["see ", PLACES[0], "x and `", PLACES[2], "y`"].concat()), 2);
        assert_eq!(count("a.rs", &["\"", PLACES[1], "me/x\""].concat()), 1);
    }

    #[test]
    fn other_paths_are_not() {
        assert_eq!(count("a.rs", &["/proc/self", PLACES[0], "etc"].concat()), 0);
        assert_eq!(count("a.rs", &["{dir}", PLACES[2], "x, /proc/PID", PLACES[0], "x"].concat()), 0);
    }

    #[test]
    fn dependencies_come_from_one_registry() {
        assert_eq!(count("Cargo.lock", &format!("source = \"{REGISTRY}\"\n")), 0);
        assert_eq!(count("Cargo.lock", "source = \"git+https://example.org/x\"\n"), 1);
        assert_eq!(count("notes.md", "source = \"git+https://example.org/x\"\n"), 0);
    }
}
