//! Licences of everything we link: SPDX expressions against the allow list in `deny.toml`, which `cargo deny`
//! reads too.

use anyhow::{Context as _, Result};

use super::Violation;
use crate::workspace::Package;

/// The licences that `deny.toml` allows.
pub(super) fn allowed(deny: &str) -> Result<Vec<String>> {
    // `deny.toml` is ours and the list is plain strings, so no TOML parser is needed.
    let (_, section) = deny.split_once("[licenses]").context("deny.toml has no section [licenses]")?;
    let (_, list) = section.split_once("allow = [").context("deny.toml has no list of allowed licences")?;
    let (list, _) = list.split_once(']').context("the list of allowed licences in deny.toml has no end")?;
    let entries = list.lines().map(|line| line.split('#').next().unwrap_or_default());
    Ok(entries.flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_owned).collect())
}

/// Checks every package, ours included.
pub(super) fn check(packages: &[Package], allowed: &[String]) -> Vec<Violation> {
    packages.iter().filter_map(|package| check_package(package, allowed)).collect()
}

fn check_package(package: &Package, allowed: &[String]) -> Option<Violation> {
    let complaint = match package.license.as_deref() {
        None => "names no licence".to_owned(),
        Some(expression) => match Parser::new(expression, allowed).whole() {
            Some(true) => return None,
            Some(false) => format!("its licence, `{expression}`, is not among those that deny.toml allows"),
            None => format!("its licence, `{expression}`, is not an SPDX expression"),
        },
    };
    Some(Violation::in_package(&format!("{} {}", package.name, package.version), complaint))
}

/// Evaluates an SPDX expression: is there a choice that is allowed?
struct Parser<'a> {
    tokens: Vec<String>,
    at: usize,
    allowed: &'a [String],
}

impl<'a> Parser<'a> {
    fn new(expression: &str, allowed: &'a [String]) -> Self {
        // Before SPDX expressions, crates wrote a slash for "or".
        let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        Self { tokens: spaced.split_whitespace().map(str::to_owned).collect(), at: 0, allowed }
    }

    fn whole(mut self) -> Option<bool> {
        let verdict = self.any()?;
        (self.at == self.tokens.len()).then_some(verdict)
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|next| next == token);
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Option<bool> {
        let mut verdict = self.all()?;
        while self.take("OR") {
            verdict |= self.all()?;
        }
        Some(verdict)
    }

    fn all(&mut self) -> Option<bool> {
        let mut verdict = self.one()?;
        while self.take("AND") {
            verdict &= self.one()?;
        }
        Some(verdict)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let verdict = self.any()?;
            return self.take(")").then_some(verdict);
        }
        let name = self.tokens.get(self.at).filter(|name| is_name(name))?.clone();
        self.at += 1;
        if self.take("WITH") {
            // An exception only adds permissions.
            self.tokens.get(self.at).filter(|name| is_name(name))?;
            self.at += 1;
        }
        Some(self.allowed.contains(&name))
    }
}

fn is_name(token: &str) -> bool {
    !["OR", "AND", "WITH"].contains(&token)
        && token.chars().all(|c| c.is_ascii_alphanumeric() || "-.+".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(expression: &str) -> Option<bool> {
        let allowed = ["MIT", "Apache-2.0", "ISC", "Unicode-3.0"].map(str::to_owned);
        Parser::new(expression, &allowed).whole()
    }

    #[test]
    fn a_choice_is_enough() {
        assert_eq!(verdict("MIT"), Some(true));
        assert_eq!(verdict("GPL-3.0 OR MIT"), Some(true));
        assert_eq!(verdict("MIT/Apache-2.0"), Some(true));
        assert_eq!(verdict("Apache-2.0 WITH LLVM-exception OR GPL-2.0"), Some(true));
    }

    #[test]
    fn everything_demanded_must_be_allowed() {
        assert_eq!(verdict("GPL-2.0-only"), Some(false));
        assert_eq!(verdict("MIT AND GPL-2.0"), Some(false));
        assert_eq!(verdict("(MIT OR Apache-2.0) AND Unicode-3.0"), Some(true));
        assert_eq!(verdict("MIT OR GPL-2.0 AND BUSL-1.1"), Some(true));
    }

    #[test]
    fn nonsense_is_not_allowed() {
        for expression in ["", "MIT OR", "(MIT", "MIT Apache-2.0", "AND MIT", "MIT)"] {
            assert_eq!(verdict(expression), None, "{expression}");
        }
    }

    #[test]
    fn the_list_is_read_from_deny_toml() {
        let deny = "[bans]\nx = [\"no\"]\n[licenses]\nallow = [\n    \"MIT\", # ours\n    \"ISC\",\n]\n";
        assert_eq!(allowed(deny).unwrap(), ["MIT", "ISC"]);
        assert!(allowed("[bans]").is_err());
    }

    #[test]
    fn a_package_without_a_licence_is_found() {
        let package = |license: Option<&str>| Package {
            name: "x".to_owned(),
            version: "1.0.0".to_owned(),
            license: license.map(str::to_owned),
            manifest_path: std::path::PathBuf::new(),
            source: None,
            dependencies: Vec::new(),
        };
        let allowed = ["MIT".to_owned()];
        assert_eq!(check(&[package(Some("MIT"))], &allowed), []);
        assert_eq!(check(&[package(None), package(Some("GPL-2.0"))], &allowed).len(), 2);
    }
}
