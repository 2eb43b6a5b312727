//! Builds the example enclave and makes of its ELF file what a loader needs: the regions of its address space,
//! their contents, and a SIGSTRUCT over their measurement.
//!
//! [`image`] lays the enclave out, [`measure`] computes MRENCLAVE as the processor will, [`sign`] signs it.
//! The results go to `OUT_DIR`, where `src/image.rs` includes them.

#[path = "build/image.rs"]
mod image;
#[path = "../enclave/src/layout.rs"]
mod layout;
#[path = "build/measure.rs"]
mod measure;
#[path = "build/sign.rs"]
mod sign;

use std::env;
use std::fs;
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
    let enclave = here.parent().expect("the examples have a directory").join("enclave");
    let key = here.join("signing-key.txt");
    for input in ["src", "Cargo.toml", "build.rs", "link.ld", ".cargo"] {
        println!("cargo::rerun-if-changed={}", enclave.join(input).display());
    }
    for input in ["build.rs", "build", "signing-key.txt"] {
        println!("cargo::rerun-if-changed={}", here.join(input).display());
    }
    let target_dir = out.join("enclave");
    build(&enclave, &target_dir);
    let elf = target_dir.join(TARGET).join("release/usgx-example-enclave");
    let elf = fs::read(&elf).expect("cargo has just built it");

    let image = image::Image::new(&elf);
    let measurement = measure::mrenclave(&image);
    let key = fs::read_to_string(&key).expect("the key is in the repository");
    let sigstruct = sign::sigstruct(&measurement, &sign::Key::parse(&key));
    fs::write(out.join("enclave.bin"), &image.contents).expect("OUT_DIR is writable");
    fs::write(out.join("sigstruct.bin"), sigstruct).expect("OUT_DIR is writable");
    fs::write(out.join("regions.rs"), image.as_rust()).expect("OUT_DIR is writable");
}

/// Builds the enclave. It has no dependencies, so no network is needed.
fn build(enclave: &Path, target_dir: &Path) {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(enclave).args(["build", "--release", "--offline", "--target", TARGET, "--target-dir"]);
    cargo.arg(target_dir);
    for variable in FOREIGN {
        cargo.env_remove(variable);
    }
    let output = cargo.output().expect("cargo can be started: it runs this script");
    assert!(
        output.status.success(),
        "building the example enclave failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
