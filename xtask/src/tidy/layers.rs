//! The arrows between crates: `ARCHITECTURE.md` draws them, this table holds them.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use crate::workspace::Package;

/// What each package of this repository may depend on, among the others. An arrow never points up.
const LAYERS: [(&str, &[&str]); 16] = [
    ("usgx-isa", &[]),
    ("usgx-epc", &["usgx-isa"]),
    ("usgx-driver", &["usgx-isa", "usgx-epc"]),
    ("usgx-cpu", &["usgx-isa"]),
    ("usgx-encls-native", &["usgx-isa"]),
    ("usgx-wire", &[]),
    ("usgx-sys", &["usgx-wire"]),
    ("usgx-runtime", &["usgx-wire"]),
    ("usgx-machine", &["usgx-isa", "usgx-epc", "usgx-driver", "usgx-cpu", "usgx-wire", "usgx-sys"]),
    (
        "usgx",
        &[
            "usgx-isa",
            "usgx-epc",
            "usgx-driver",
            "usgx-cpu",
            "usgx-wire",
            "usgx-sys",
            "usgx-machine",
            "usgx-lab",
            "usgx-example-host", // the program of `usgx demo`
        ],
    ),
    ("usgx-testkit", &["usgx-isa", "usgx-epc", "usgx-driver", "usgx-cpu"]),
    ("usgx-lab", &["usgx-isa", "usgx-epc", "usgx-driver", "usgx-cpu", "usgx-testkit"]),
    ("usgx-nostd", &["usgx-isa", "usgx-epc", "usgx-driver"]),
    (
        "usgx-bench",
        &["usgx-isa", "usgx-driver", "usgx-cpu", "usgx-wire", "usgx-sys", "usgx-machine", "usgx-testkit"],
    ),
    ("usgx-e2e", &[]),
    ("xtask", &[]),
];

/// Checks the packages of this repository.
pub(super) fn check(packages: &[Package]) -> Vec<Violation> {
    let layers: BTreeMap<_, _> = LAYERS.into_iter().collect();
    let arrows = arrows(packages);
    let mut violations = Vec::new();
    for package in packages.iter().filter(|package| !package.name.starts_with("usgx-example")) {
        let name = package.name.as_str();
        let Some(allowed) = layers.get(name) else {
            let message =
                "is not in the table of layers; add it to xtask/src/tidy/layers.rs and ARCHITECTURE.md";
            violations.push(Violation::in_package(name, message));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let target = dependency.name.as_str();
            let message = match dependency.kind.as_deref() {
                // Integration tests are crates of their own: with the test kit they see one copy of the types.
                Some("dev") if target == "usgx-testkit" => continue,
                Some("dev") if target != name && reaches(&arrows, target, name) => {
                    format!("its tests depend on `{target}`, which depends on it: put the tests there")
                }
                Some("dev") => continue,
                _ if allowed.contains(&target) => continue,
                _ => format!("must not depend on `{target}`"),
            };
            violations.push(Violation::in_package(name, message));
        }
    }
    violations
}

/// From each package to those it depends on, tests aside.
fn arrows(packages: &[Package]) -> BTreeMap<&str, Vec<&str>> {
    let mut arrows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        let ours = package.dependencies.iter().filter(|dependency| dependency.path.is_some());
        let targets = ours.filter(|dependency| dependency.kind.as_deref() != Some("dev"));
        arrows.entry(&package.name).or_default().extend(targets.map(|dependency| dependency.name.as_str()));
    }
    arrows
}

/// Whether following arrows leads from one package to another.
fn reaches(arrows: &BTreeMap<&str, Vec<&str>>, from: &str, to: &str) -> bool {
    let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
    while let Some(name) = todo.pop() {
        if name == to {
            return true;
        }
        if seen.insert(name) {
            todo.extend(arrows.get(name).into_iter().flatten());
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
            path: name.starts_with("usgx").then(|| "somewhere".into()),
        };
        Package {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            license: None,
            manifest_path: std::path::PathBuf::new(),
            source: None,
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn arrows_that_point_down_are_fine() {
        let packages = [
            package("usgx-isa", &[("bitflags", None)]),
            package("usgx-epc", &[("usgx-isa", None), ("lock_api", None)]),
            package("usgx-testkit", &[("usgx-epc", None)]),
            package("usgx-cpu", &[("usgx-isa", None), ("usgx-testkit", Some("dev"))]),
        ];
        assert_eq!(check(&packages), []);
    }

    #[test]
    fn an_arrow_that_points_up_is_found() {
        assert_eq!(check(&[package("usgx-epc", &[("usgx-driver", None)])]).len(), 1);
        assert_eq!(check(&[package("usgx-driver", &[("usgx-cpu", None)])]).len(), 1);
        assert_eq!(check(&[package("usgx-driver", &[("usgx-sys", Some("build"))])]).len(), 1);
    }

    #[test]
    fn tests_must_not_close_a_circle() {
        let packages = [
            package("usgx-epc", &[("usgx-driver", Some("dev"))]),
            package("usgx-driver", &[("usgx-epc", None)]),
        ];
        assert_eq!(check(&packages).len(), 1);
        // The test kit is the exception.
        let packages = [
            package("usgx-epc", &[("usgx-testkit", Some("dev"))]),
            package("usgx-testkit", &[("usgx-epc", None)]),
        ];
        assert_eq!(check(&packages), []);
    }

    #[test]
    fn a_crate_that_nobody_placed_is_found() {
        assert_eq!(check(&[package("usgx-surprise", &[])]).len(), 1);
    }
}
