//! System calls made by somebody else's thread: a program that stands still before its first instruction.
//!
//! The bytes at its first instruction become `syscall` for a moment. A later image of a run already has the
//! runtime's seccomp filter, which lets calls through that come from the runtime's range; so at the entry
//! stop, where the kernel has not yet looked at the filter, the instruction pointer is moved there. All
//! signals are blocked meanwhile (`SIGSTOP` and `SIGKILL` cannot be), and everything is put back at the end.

use anyhow::{Context as _, Result, bail};
use usgx_sys::ptrace::{self, Registers, Tid};
use usgx_wire::place;

use super::next_syscall_stop;

/// `PROT_READ`.
pub(crate) const READ: u64 = 1;
/// `PROT_WRITE`.
pub(crate) const WRITE: u64 = 2;
/// `PROT_EXEC`.
pub(crate) const EXECUTE: u64 = 4;

const SYS_MMAP: u64 = 9;
const SYS_MPROTECT: u64 = 10;
const MAP_PRIVATE: u64 = 0x02;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
/// `syscall`, as the low bytes of a word.
const SYSCALL_INSTRUCTION: u64 = 0x050f;
/// The code segment of 64-bit programs.
const USER_CS: u64 = 0x33;
/// The largest errno, by which the kernel tells errors from results.
const MAX_ERRNO: u64 = 4095;

/// The program has died while the attendant held it.
#[derive(Debug)]
pub(crate) struct Ended;

impl std::fmt::Display for Ended {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the program has ended")
    }
}

impl std::error::Error for Ended {}

/// A program held before its first instruction.
#[derive(Debug)]
pub(crate) struct Remote {
    pid: Tid,
    /// Its registers as the kernel left them; `None` for a 32-bit program.
    start: Option<Registers>,
    /// The word at its first instruction, while `syscall` stands there.
    code: Option<u64>,
    mask: u64,
    held_back: Vec<i32>,
}

impl Remote {
    /// Takes a program from the event of its `execve` to the end of that system call.
    pub(crate) fn at_exec(pid: Tid) -> Result<Self> {
        let mut held_back = Vec::new();
        // At the event the call has not returned yet: its exit would overwrite the registers of another one.
        next_syscall_stop(pid, &mut held_back)?;
        let start = ptrace::registers(pid)?.filter(|registers| registers.cs == USER_CS);
        let mask = ptrace::signal_mask(pid)?;
        ptrace::set_signal_mask(pid, u64::MAX)?;
        Ok(Self { pid, start, code: None, mask, held_back })
    }

    /// The registers with which the program would start, `None` for a 32-bit one.
    pub(crate) fn start(&self) -> Option<Registers> {
        self.start
    }

    /// Maps writable anonymous memory at exactly `address`.
    pub(crate) fn map(&mut self, address: u64, length: u64) -> Result<()> {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
        let got = self.call(SYS_MMAP, [address, length, READ | WRITE, flags, u64::MAX, 0])?;
        if got != address {
            bail!("asked for {address:#x}, the kernel gave {got:#x}");
        }
        Ok(())
    }

    /// Sets the protection of a range.
    pub(crate) fn protect(&mut self, address: u64, length: u64, protection: u64) -> Result<()> {
        self.call(SYS_MPROTECT, [address, length, protection, 0, 0, 0])
            .with_context(|| format!("protecting the runtime at {address:#x}"))?;
        Ok(())
    }

    /// Makes one system call.
    fn call(&mut self, number: u64, arguments: [u64; 6]) -> Result<u64> {
        let mut registers = self.start.context("a 32-bit program")?;
        if self.code.is_none() {
            let word = ptrace::peek(self.pid, registers.rip).context("reading its first instruction")?;
            ptrace::poke(self.pid, registers.rip, (word & !0xffff) | SYSCALL_INSTRUCTION)?;
            self.code = Some(word);
        }
        registers.rax = number;
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
        ptrace::set_registers(self.pid, &registers)?;
        next_syscall_stop(self.pid, &mut self.held_back)?;

        let mut entry = ptrace::registers(self.pid)?.context("it has changed its mode")?;
        entry.rip = place::RUNTIME_BASE;
        ptrace::set_registers(self.pid, &entry)?;
        next_syscall_stop(self.pid, &mut self.held_back)?;

        let result = ptrace::registers(self.pid)?.context("it has changed its mode")?.rax;
        if result > u64::MAX - MAX_ERRNO {
            let errno = i32::try_from(result.wrapping_neg())?;
            return Err(std::io::Error::from_raw_os_error(errno).into());
        }
        Ok(result)
    }

    /// Puts everything back and lets the program run, from `entry` on, with these signals blocked as well.
    pub(crate) fn finish(self, entry: u64, blocked: u64) -> Result<()> {
        let mut registers = self.start.context("a 32-bit program")?;
        if let Some(word) = self.code {
            ptrace::poke(self.pid, registers.rip, word)?;
        }
        registers.rip = entry;
        // Not in a system call any more: nothing to restart.
        registers.orig_rax = u64::MAX;
        ptrace::set_registers(self.pid, &registers)?;
        ptrace::set_signal_mask(self.pid, self.mask | blocked)?;
        // All that can have come are stop signals: sent again, they stop the program as its sender wanted.
        for &signal in &self.held_back {
            ptrace::tgkill(self.pid, self.pid, signal)?;
        }
        ptrace::detach(self.pid, 0)?;
        Ok(())
    }
}
