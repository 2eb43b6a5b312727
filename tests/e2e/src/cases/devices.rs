//! What programs look for before they use SGX: device files, CPUID, the vDSO's function.

use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;

use super::{SHORT, Verdict, expect, trial};
use crate::process;
use crate::stage::{Link, Stage, User};

/// One device, as `devices find` prints it.
fn found(path: &'static str) -> String {
    format!(
        "{path}\n  stat fine, character device 1\n  lstat fine\n  statx fine, character device 1\n  fstatat fine\n  \
         access fine\n  access to read and write fine\n  faccessat fine\n  open fine, fstat fine\n  openat fine\n  \
         open to read fine\n  open by name in /dev fine\n"
    )
}

/// What `devices older` prints.
const OLDER: &str = "stat fine, directory 1\nfstat fine, the same 1\nentries ./ ../ enclave provision\n\
    again ./ ../ enclave provision\nfrom the second ../ enclave provision\nby a copy ./ ../ enclave provision\n\
    enclave by directory fine\nnothing by directory ENOENT\nopen to write EISDIR\n\
    access fine, of what is not there ENOENT\n";

pub(super) fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for user in stage.users() {
        for link in Link::ALL {
            let place = format!("{}/{}", user.name(), link.name());
            let modes = [
                (
                    "find",
                    ["/dev/sgx_enclave", "/dev/sgx_provision", "/dev/sgx/enclave", "/dev/sgx/provision"]
                        .map(found)
                        .concat(),
                ),
                ("list", "enclave 1, provision 1, null 1\n".to_owned()),
                ("older", OLDER.to_owned()),
                (
                    "refuse",
                    "open fine\nanother magic ENOTTY\nunknown number ENOTTY\ninit before create EINVAL\n\
                     add before create EINVAL\ncreate from nowhere EFAULT\n"
                        .to_owned(),
                ),
                ("map", "shared fine\nunmapped fine\nexecutable fine\nprivate EINVAL\n".to_owned()),
            ];
            for (mode, output) in modes {
                trials.push(trial(stage, format!("devices/{place}/{mode}"), move |stage| {
                    let mut command = stage.run(user, &[], stage.program("devices", link));
                    expect(&process::run(command.arg(mode), b"", SHORT)?, 0, &output)
                }));
            }
            trials.push(trial(stage, format!("cpuid/{place}"), move |stage| cpuid(stage, user, link)));
            for mode in ["sysv", "gnu", "sections", "loader", "weak", "default", "walk"] {
                if link == Link::Static && ["loader", "weak", "default", "walk"].contains(&mode) {
                    continue; // A static program has no loader.
                }
                for function in ["__vdso_sgx_enter_enclave", "__vdso_clock_gettime"] {
                    let name = format!("vdso/{place}/{mode} {function}");
                    trials.push(trial(stage, name, move |stage| vdso(stage, user, link, mode, function)));
                }
            }
        }
        trials.push(trial(stage, format!("devices/{}/ls", user.name()), move |stage| {
            let mut command = stage.run(user, &[], "ls");
            command.args(["/dev/sgx_enclave", "/dev/sgx_provision"]);
            expect(&process::run(&mut command, b"", SHORT)?, 0, "/dev/sgx_enclave\n/dev/sgx_provision\n")
        }));
        trials.push(trial(
            stage,
            format!("devices/{}/ls of the older directory", user.name()),
            move |stage| {
                let outcome = process::run(stage.run(user, &[], "ls").arg("/dev/sgx"), b"", SHORT)?;
                expect(&outcome, 0, "enclave\nprovision\n")
            },
        ));
        trials.push(trial(
            stage,
            format!("devices/{}/find in the older directory", user.name()),
            move |stage| {
                let mut command = stage.run(user, &[], "find");
                let outcome = process::run(command.args(["/dev/sgx", "-type", "c"]), b"", SHORT)?;
                expect(&outcome, 0, "/dev/sgx/enclave\n/dev/sgx/provision\n")
            },
        ));
        trials.push(trial(stage, format!("devices/{}/ls of the directory", user.name()), move |stage| {
            let outcome = process::run(stage.run(user, &[], "ls").arg("/dev"), b"", SHORT)?;
            let text = outcome.text();
            let lines: Vec<&str> = text.lines().collect();
            ensure!(
                ["null", "sgx", "sgx_enclave", "sgx_provision"].iter().all(|name| lines.contains(name)),
                "not all devices are listed: {}",
                outcome.describe()
            );
            Ok(Verdict::Passed)
        }));
    }
    trials
}

fn cpuid(stage: &Stage, user: User, link: Link) -> Result<Verdict> {
    let program = stage.program("cpuid", link);
    let mut command = stage.run(user, &["--epc", "20M,12M"], program);
    let outcome = process::run(command.arg("everywhere"), b"", SHORT)?;
    expect(
        &outcome,
        0,
        "leaf 0x12 is there: 1\nSGX 1, launch control 1\nSGX1 1, largest enclave at least 64 GiB: 1\n\
         64-bit 1, x87 and SSE 3\nEPC 33554432 in 2 sections\nSSE2 1, XSAVE 1\n\
         the same in a thread 1, in a child 1, after an exec 1\n",
    )
}

fn vdso(stage: &Stage, user: User, link: Link, mode: &str, function: &str) -> Result<Verdict> {
    let mut command = stage.run(user, &[], stage.program("vdso", link));
    let output = match mode {
        "loader" => "object 1, symbol 1, with another version 0\n",
        "weak" => "like the clock's: 1\n",
        "default" => {
            "before like the clock's 1, after 1, the object's own 1\nback from its address 1, in the vDSO 1\n"
        }
        "walk" => "linux-vdso.so.1 has the vDSO's address\n",
        _ => "found 1, a function 1, versions 1\n",
    };
    expect(&process::run(command.args([mode, function]), b"", SHORT)?, 0, output)
}
