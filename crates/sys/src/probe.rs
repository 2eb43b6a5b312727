//! Questions to the kernel and the processor about what they can do, each answered by trying it.
//!
//! For `usgx doctor`. Nothing here leaves a trace in the process.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

const ARCH_SET_CPUID: libc::c_int = 0x1012;
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_API: u64 = 0xaa;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const SECCOMP_GET_ACTION_AVAIL: libc::c_uint = 2;
const SECCOMP_RET_TRAP: u32 = 0x0003_0000;
const HWCAP2_FSGSBASE: libc::c_ulong = 1 << 1;

/// Features of userfaultfd that enclave memory rests on, by their kernel names.
pub const USERFAULTFD_FEATURES: [(u64, &str); 4] = [
    (1 << 0, "UFFD_FEATURE_PAGEFAULT_FLAG_WP"),
    (1 << 5, "UFFD_FEATURE_MISSING_SHMEM"),
    (1 << 7, "UFFD_FEATURE_SIGBUS"),
    (1 << 12, "UFFD_FEATURE_WP_HUGETLBFS_SHMEM"),
];

/// Opens a userfaultfd for user-mode faults only, and gives the features that the kernel offers.
///
/// # Errors
///
/// `ENOSYS`: built without it. `EPERM`: forbidden, often by a container's seccomp profile.
pub fn userfaultfd_features() -> io::Result<u64> {
    #[repr(C)]
    struct Api {
        api: u64,
        features: u64,
        ioctls: u64,
    }
    // SAFETY: The call makes a descriptor and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was created just now and is ours alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
    // SAFETY: The kernel reads and writes the 24 bytes of `api`, as the number of the ioctl says.
    let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&fd), UFFDIO_API, &raw mut api) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(api.features) }
}

/// Tells whether a seccomp filter can turn a system call into a signal.
///
/// # Errors
///
/// `ENOSYS`, `EINVAL`: built without seccomp. `EOPNOTSUPP`: without this action. `EPERM`: forbidden here.
pub fn seccomp_trap() -> io::Result<()> {
    let action = SECCOMP_RET_TRAP;
    // SAFETY: The kernel reads the four bytes of `action`.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Tells whether the processor can be told to trap the CPUID instruction: turns trapping on and off again.
///
/// # Errors
///
/// `ENODEV`: the processor, or the hypervisor below, does not offer it.
pub fn cpuid_faulting() -> io::Result<()> {
    // SAFETY: No CPUID instruction is executed by this thread between the two calls; the second call undoes
    // the first.
    let done = unsafe {
        let done = libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, 0);
        libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, 1);
        done
    };
    // What matters is the first call; where it fails, so does the second, with the same errno.
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Tells whether programs may read and write the FS and GS bases by instruction.
#[must_use]
pub fn fsgsbase() -> bool {
    // SAFETY: `getauxval` reads the auxiliary vector and has no preconditions.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

/// Makes a memfd, gives it a size and seals it.
///
/// # Errors
///
/// The errno of the step that failed.
pub fn sealed_memfd() -> io::Result<()> {
    use rustix::fs::{MemfdFlags, SealFlags};
    let fd = rustix::fs::memfd_create("usgx-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, 4096)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(())
}

/// The caller's effective user ID.
#[must_use]
pub fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuid_still_works_after_the_question() {
        let _ = cpuid_faulting();
        assert!(std::arch::is_x86_feature_detected!("sse2"));
    }

    #[test]
    fn a_memfd_can_be_sealed() {
        sealed_memfd().expect("every kernel that we support can");
    }
}
