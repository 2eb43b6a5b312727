//! Putting the runtime into a program at the moment of its `execve`.
//!
//! A fresh image is stopped before its first instruction. The attendant then makes it call `mmap` for the
//! runtime's range, writes the runtime and the vDSO image there, lets it set the protections, points
//! `AT_SYSINFO_EHDR` at the vDSO image, and starts it at the runtime's entry point, which knows from its
//! [`Boot`](usgx_wire::boot::Boot) where the program itself would have begun. This directory: the runtime's
//! ELF file ([`runtime`]), a stopped thread's system calls ([`remote`]), its auxiliary vector ([`auxv`]), and
//! the whole of it ([`Injector`]).

pub(crate) mod auxv;
pub(crate) mod remote;
pub(crate) mod runtime;

use anyhow::{Context as _, Result, bail, ensure};
use usgx_sys::ptrace::{self, Stop, Tid};
use usgx_wire::{boot, place};

use crate::vdso;
use remote::Remote;
use runtime::Runtime;

/// What is the same for all images of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunParameters {
    /// Process ID of the attendant.
    pub(crate) attendant_pid: u32,
    /// First of the reserved descriptor numbers: the door; the one after it is the attendant's socket.
    pub(crate) fd_base: i32,
    /// How many are reserved.
    pub(crate) fd_count: i32,
    /// Bits of [`boot::flags`] for every image.
    pub(crate) flags: u32,
}

/// Puts the runtime into images.
#[derive(Debug)]
pub(crate) struct Injector {
    runtime: Runtime,
    vdso: vdso::Template,
    run: RunParameters,
}

/// What a new image is to find that the kernel does not pass on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Legacy {
    /// Signals that it finds blocked, beside those of the kernel's mask.
    pub(crate) blocked: u64,
    /// It asks its parent to trace it, and stops.
    pub(crate) trace_me: bool,
}

/// Why an image did not get the runtime.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is gone: somebody killed it.
    Gone,
    /// It cannot run, for the reason given.
    Unfit(anyhow::Error),
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        const ESRCH: i32 = 3;
        let gone = error.chain().any(|cause| {
            let errno = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
            errno == Some(ESRCH) || cause.is::<remote::Ended>()
        });
        if gone { Self::Gone } else { Self::Unfit(error) }
    }
}

impl Injector {
    /// Prepares for a run.
    ///
    /// # Errors
    ///
    /// If the kernel's vDSO is not understood.
    pub(crate) fn new(run: RunParameters) -> Result<Self> {
        Ok(Self { runtime: Runtime::embedded()?, vdso: vdso::Template::from_own()?, run })
    }

    /// The number under which the run's processes have their socket to the attendant.
    pub(crate) fn attendant_socket(&self) -> i32 {
        self.run.fd_base + 1
    }

    /// Puts the runtime into `pid`, which is stopped at its `execve` event, and lets it go. `first`: this is the
    /// run's first image, without a seccomp filter yet.
    ///
    /// # Errors
    ///
    /// The process is still stopped and traced, unless it is gone.
    pub(crate) fn inject(&self, pid: Tid, first: bool, legacy: Legacy) -> Result<(), Refusal> {
        Ok(self.try_inject(pid, first, legacy)?)
    }

    fn try_inject(&self, pid: Tid, first: bool, legacy: Legacy) -> Result<()> {
        let mut remote = Remote::at_exec(pid)?;
        let Some(start) = remote.start() else {
            bail!("it is a 32-bit program, and usgx runs 64-bit ones only");
        };
        // Far from where the kernel puts anything by itself; taken only by a program linked to this place.
        let length = place::IMAGE_SIZE + place::VDSO_SIZE;
        remote.map(place::RUNTIME_BASE, length).context(
            "the runtime's address range cannot be mapped (is the program linked there, or RLIMIT_AS small?)",
        )?;

        let entry = self.fill(pid, start.rip, start.rsp, first, legacy)?;
        for segment in &self.runtime.segments {
            remote.protect(segment.address, segment.mapped_size, segment.protection)?;
        }
        remote.protect(place::VDSO_BASE, place::VDSO_SIZE, remote::READ | remote::EXECUTE)?;
        remote.finish(entry, legacy.blocked)
    }

    /// Writes the runtime into `pid`, whose memory is mapped and writable there and which is about to start at `rip` with
    /// the stack pointer `rsp`; where it is to start instead. The process need not be traced by this thread.
    ///
    /// # Errors
    ///
    /// The process is as it was, but for what has been written.
    pub(crate) fn fill(&self, pid: Tid, rip: u64, rsp: u64, first: bool, legacy: Legacy) -> Result<u64> {
        let stack = auxv::read(|address, bytes| ptrace::read_memory(pid, address, bytes), rsp)
            .context("the program's auxiliary vector cannot be read")?;
        let kernel_vdso = stack.sysinfo_ehdr.map_or(0, |entry| entry.value);
        let vdso = self.vdso.image(kernel_vdso, self.runtime.vdso_enter);
        ptrace::write_memory(pid, place::VDSO_BASE, &vdso).context("writing the vDSO image")?;
        for segment in &self.runtime.segments {
            ptrace::write_memory(pid, segment.address, segment.bytes).context("writing the runtime")?;
        }
        let boot = self.boot(rip, kernel_vdso, first, legacy.trace_me);
        ptrace::write_memory(pid, self.runtime.boot, &boot).context("writing the runtime's parameters")?;
        // Without the entry (`vdso=0` on the kernel's command line) programs find no vDSO at all; that is so
        // on a real machine too.
        if let Some(entry) = stack.sysinfo_ehdr {
            ptrace::write_memory(pid, entry.address, &place::VDSO_BASE.to_le_bytes())
                .context("writing the program's auxiliary vector")?;
        }
        Ok(self.runtime.entry)
    }

    /// The bytes of the [`boot::Boot`] for one image.
    fn boot(&self, entry: u64, real_vdso: u64, first: bool, trace_me: bool) -> [u8; size_of::<boot::Boot>()] {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        boot_bytes(&boot::Boot {
            magic: boot::MAGIC,
            version: usgx_wire::VERSION,
            flags: self.run.flags
                | flag(first, boot::flags::INSTALL_FILTER)
                | flag(trace_me, boot::flags::TRACE_ME),
            entry,
            real_vdso,
            attendant_pid: self.run.attendant_pid,
            door_fd: self.run.fd_base,
            attendant_fd: self.attendant_socket(),
            fd_base: self.run.fd_base,
            fd_count: self.run.fd_count,
            reserved: 0,
        })
    }
}

/// A [`boot::Boot`] as it lies in memory.
fn boot_bytes(boot: &boot::Boot) -> [u8; size_of::<boot::Boot>()] {
    let mut bytes = [0; size_of::<boot::Boot>()];
    let mut at = 0;
    let mut put = |field: &[u8]| {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    };
    put(&boot.magic.to_le_bytes());
    put(&boot.version.to_le_bytes());
    put(&boot.flags.to_le_bytes());
    put(&boot.entry.to_le_bytes());
    put(&boot.real_vdso.to_le_bytes());
    put(&boot.attendant_pid.to_le_bytes());
    for field in [boot.door_fd, boot.attendant_fd, boot.fd_base, boot.fd_count, boot.reserved] {
        put(&field.to_le_bytes());
    }
    debug_assert_eq!(at, bytes.len(), "every field has been written");
    bytes
}

/// Waits for a stopped process to reach its next system call stop.
///
/// # Errors
///
/// [`remote::Ended`] if it dies instead.
fn next_syscall_stop(pid: Tid, held_back: &mut Vec<i32>) -> Result<()> {
    // Every signal that can stop the thread here arrives at most once; the bound is for what we cannot foresee.
    for _ in 0..64 {
        ptrace::resume_to_syscall(pid, 0)?;
        match ptrace::wait(pid)? {
            Stop::Syscall => return Ok(()),
            Stop::Ended(_) => return Err(remote::Ended.into()),
            Stop::Signal(signal) | Stop::Group(signal) => held_back.push(signal),
            Stop::Exec | Stop::Interrupted | Stop::Other(_) => {}
        }
    }
    ensure!(false, "the program does not reach its next system call");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn boot_is_written_in_its_own_layout() {
        let bytes = boot_bytes(&boot::Boot {
            magic: boot::MAGIC,
            version: 1,
            flags: 2,
            entry: 3,
            real_vdso: 4,
            attendant_pid: 5,
            door_fd: 6,
            attendant_fd: 7,
            fd_base: 8,
            fd_count: 9,
            reserved: 10,
        });
        let at =
            |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"));
        assert_eq!(bytes[..8], *b"usgxboot");
        assert_eq!(at(offset_of!(boot::Boot, version)), 1);
        assert_eq!(at(offset_of!(boot::Boot, flags)), 2);
        assert_eq!(at(offset_of!(boot::Boot, entry)), 3);
        assert_eq!(at(offset_of!(boot::Boot, real_vdso)), 4);
        assert_eq!(at(offset_of!(boot::Boot, attendant_pid)), 5);
        assert_eq!(at(offset_of!(boot::Boot, door_fd)), 6);
        assert_eq!(at(offset_of!(boot::Boot, attendant_fd)), 7);
        assert_eq!(at(offset_of!(boot::Boot, fd_base)), 8);
        assert_eq!(at(offset_of!(boot::Boot, fd_count)), 9);
        assert_eq!(at(offset_of!(boot::Boot, reserved)), 10);
    }
}
