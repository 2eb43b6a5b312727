//! Runs every measurement once, on small input, so that none rots. What needs the product is skipped, and says so, where
//! its binary is not beside the benchmark's: `cargo build --package usgx` puts it there.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

#[test]
fn every_measurement_still_works() {
    let output = Command::new(env!("CARGO_BIN_EXE_usgx-bench")).arg("--smoke").output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    assert!(output.status.success(), "{errors}");
    for name in [
        "ecall_vdso",
        "ecall_raw",
        "epc_fault",
        "reclaim",
        "load_256m",
        "grow_64m",
        "shrink_64m",
        "memory_per_page",
        "reclaim_scaling",
        "page_cost",
        "page_books",
    ] {
        assert!(out.contains(name), "{name} is neither measured nor skipped:\n{out}");
    }
}
