//! Builds the freestanding runtime, which `usgx` carries inside itself.
//!
//! The runtime has its own manifest, profile and linker script, so a second cargo builds it, into a target
//! directory of its own (a shared one would wait for this very build). The outer cargo's flags are kept away
//! from it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the outer cargo and its user's environment must not pass on.
const FOREIGN: [&str; 9] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let crates = here.parent().expect("the manifest is in a directory of crates");
    let runtime = crates.join("runtime");
    for input in [
        runtime.join("src"),
        runtime.join("Cargo.toml"),
        runtime.join("Cargo.lock"),
        runtime.join("build.rs"),
        runtime.join("link.ld"),
        runtime.join(".cargo"),
        crates.join("wire/src"),
        here.join("build.rs"),
    ] {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    let target_dir = out.join("runtime");
    build(&runtime, &target_dir);
    let elf = target_dir.join(TARGET).join("release/usgx-runtime");
    assert!(elf.is_file(), "cargo built the runtime, but there is no {}", elf.display());
    println!("cargo::rustc-env=USGX_RUNTIME={}", elf.display());
}

/// Builds the runtime, at first without the network: its dependencies are all in this repository.
fn build(runtime: &Path, target_dir: &Path) {
    let run = |offline: bool| {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(runtime)
            .args(["build", "--release", "--target", TARGET, "--target-dir"])
            .arg(target_dir);
        if offline {
            cargo.arg("--offline");
        }
        for variable in FOREIGN {
            cargo.env_remove(variable);
        }
        cargo.output().expect("cargo can be started: it runs this script")
    };
    let mut output = run(true);
    if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--offline") {
        output = run(false);
    }
    assert!(
        output.status.success(),
        "building the runtime in {} failed:\n{}",
        runtime.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}
