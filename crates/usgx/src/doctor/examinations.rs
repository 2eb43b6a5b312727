//! The examinations themselves, each of one thing.

use std::fs;
use std::io;
use std::process::{Command, Stdio};

use usgx_sys::{probe, ptrace, vdso};
use usgx_wire::place;

use super::{Finding, Verdict};
use crate::size::Size;

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;
/// Memory that a machine with the default EPC and some evicted pages likes to have.
const COMFORTABLE: u64 = 256 << 20;
/// What stands in the way inside of containers.
const CONTAINER: &str = "inside a container, start it with a seccomp profile that allows it \
    (docker run --security-opt seccomp=unconfined)";

/// Everything, the important things first.
pub(super) fn all() -> Vec<Finding> {
    vec![
        nesting(),
        tracing(),
        seccomp(),
        userfaultfd(),
        memfd(),
        cpuid(),
        fsgsbase(),
        memory(),
        namespaces(),
        real_sgx(),
    ]
}

fn finding(what: &'static str, verdict: Verdict, found: impl Into<String>, means: &'static str) -> Finding {
    Finding { what, verdict, found: found.into(), means, remedy: None }
}

fn with_remedy(finding: Finding, remedy: impl Into<String>) -> Finding {
    Finding { remedy: Some(remedy.into()), ..finding }
}

fn nesting() -> Finding {
    let what = "surroundings";
    if vdso::own_address() == place::VDSO_BASE {
        finding(
            what,
            Verdict::Lacking,
            "inside of a usgx run",
            "Programs see the SGX of that run; runs do not nest.",
        )
    } else {
        finding(what, Verdict::Good, kernel(), "Linux on x86-64.")
    }
}

fn kernel() -> String {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", version.trim())
}

fn tracing() -> Finding {
    const MEANS: &str = "usgx puts its runtime into a program while it traces its start.";
    let what = "ptrace";
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
    let yama = yama.as_deref().map(str::trim);
    match try_tracing() {
        Ok(()) => {
            finding(what, Verdict::Good, format!("works (Yama scope: {})", yama.unwrap_or("none")), MEANS)
        }
        Err(error) => {
            let remedy = match yama {
                Some("2") => "sysctl kernel.yama.ptrace_scope=1, or run as root",
                Some("3") => {
                    "reboot with kernel.yama.ptrace_scope below 3, which cannot be undone while running"
                }
                _ => "inside a container, start it with ptrace allowed (docker run --cap-add SYS_PTRACE)",
            };
            with_remedy(finding(what, Verdict::Fatal, format!("refused ({error})"), MEANS), remedy)
        }
    }
}

/// Seizes a process as `usgx run` would.
fn try_tracing() -> io::Result<()> {
    let mut patient = Command::new("/proc/self/exe");
    patient.arg("doctor-patient").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = patient.spawn()?;
    let seized = i32::try_from(child.id()).map_err(io::Error::other).and_then(ptrace::seize);
    // Killed rather than asked to end: a tracee that exits would report to its tracer first.
    child.kill()?;
    child.wait()?;
    seized
}

fn seccomp() -> Finding {
    const MEANS: &str = "The runtime intercepts the few system calls that concern SGX by a seccomp filter.";
    match probe::seccomp_trap() {
        Ok(()) => finding("seccomp", Verdict::Good, "filters can raise signals", MEANS),
        Err(error) => with_remedy(
            finding("seccomp", Verdict::Fatal, format!("not available ({error})"), MEANS),
            "a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn userfaultfd() -> Finding {
    const MEANS: &str =
        "Enclave pages come and go by userfaultfd, with write protection and faults as signals.";
    let what = "userfaultfd";
    match probe::userfaultfd_features() {
        Ok(features) => {
            let missing: Vec<&str> = probe::USERFAULTFD_FEATURES
                .iter()
                .filter(|(bit, _)| features & bit == 0)
                .map(|(_, name)| *name)
                .collect();
            if missing.is_empty() {
                return finding(
                    what,
                    Verdict::Good,
                    "user-mode faults, write protection of shared memory",
                    MEANS,
                );
            }
            let found = format!("lacks {}", missing.join(", "));
            with_remedy(finding(what, Verdict::Fatal, found, MEANS), "Linux 5.19 or newer")
        }
        Err(error) => {
            let remedy = match error.raw_os_error() {
                Some(ENOSYS) => "a kernel with CONFIG_USERFAULTFD (all distributions have it)",
                Some(EPERM) => CONTAINER,
                _ => "Linux 5.19 or newer",
            };
            with_remedy(finding(what, Verdict::Fatal, format!("refused ({error})"), MEANS), remedy)
        }
    }
}

fn memfd() -> Finding {
    const MEANS: &str = "Enclave memory is shared between program and machine through sealed memfds.";
    match probe::sealed_memfd() {
        Ok(()) => finding("memfd", Verdict::Good, "can be made and sealed", MEANS),
        Err(error) => {
            with_remedy(finding("memfd", Verdict::Fatal, format!("refused ({error})"), MEANS), CONTAINER)
        }
    }
}

fn cpuid() -> Finding {
    const MEANS: &str = "Without it the runtime patches the CPUID instructions of programs that it comes across; \
        a program whose code cannot be patched sees the processor as it is, without SGX.";
    match probe::cpuid_faulting() {
        Ok(()) => {
            finding("CPUID faulting", Verdict::Good, "available: programs are shown SGX by CPUID", MEANS)
        }
        Err(_) => with_remedy(
            finding("CPUID faulting", Verdict::Lacking, "not offered by this processor or hypervisor", MEANS),
            "an Intel processor since 2012 or AMD since Zen 4, without a hypervisor that hides it",
        ),
    }
}

fn fsgsbase() -> Finding {
    const MEANS: &str = "Enclaves have FS and GS bases of their own; without the instructions each entry takes \
        two system calls more, and some SGX runtimes (Gramine) refuse to start.";
    if probe::fsgsbase() {
        finding("FSGSBASE", Verdict::Good, "available", MEANS)
    } else {
        with_remedy(
            finding("FSGSBASE", Verdict::Lacking, "not available", MEANS),
            "Linux 5.9 or newer, without nofsgsbase on its command line",
        )
    }
}

fn memory() -> Finding {
    const MEANS: &str = "The EPC and the pages evicted from it are ordinary memory.";
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_memory(&text));
    match available {
        Some(bytes) if bytes < COMFORTABLE => with_remedy(
            finding("memory", Verdict::Lacking, format!("{} available", Size(bytes)), MEANS),
            "a small EPC (--epc 16M) and a directory for evicted pages (--swap DIR)",
        ),
        Some(bytes) => finding("memory", Verdict::Good, format!("{} available", Size(bytes)), MEANS),
        None => finding("memory", Verdict::Lacking, "/proc/meminfo does not say", MEANS),
    }
}

/// `MemAvailable`, in bytes.
fn available_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn namespaces() -> Finding {
    const MEANS: &str = "For ordinary users, real device files in /dev need a user namespace; without one the \
        runtime makes them appear by intercepting more system calls.";
    let what = "user namespaces";
    if probe::effective_user() == 0 {
        return finding(what, Verdict::Good, "not needed: you are root", MEANS);
    }
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let forbidden = number("/proc/sys/user/max_user_namespaces") == Some(0)
        || number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0)
        || number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1);
    if forbidden {
        with_remedy(
            finding(what, Verdict::Lacking, "not for ordinary users", MEANS),
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or kernel.unprivileged_userns_clone=1",
        )
    } else {
        finding(what, Verdict::Good, "allowed", MEANS)
    }
}

fn real_sgx() -> Finding {
    let there = fs::exists("/dev/sgx_enclave").unwrap_or(false);
    let found = if there {
        "this machine has it; under usgx run programs see usgx's instead"
    } else {
        "none, and none needed"
    };
    finding("hardware SGX", Verdict::Good, found, "usgx does not use it.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kilobytes() {
        assert_eq!(available_memory("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available_memory("MemTotal: 9 kB\n"), None);
    }
}
