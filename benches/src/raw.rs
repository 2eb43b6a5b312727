//! Signals, userfaultfd and a second process: the few system calls of the floors that no safe crate makes.
#![expect(unsafe_code, reason = "signal handlers, fork and mappings are unsafe by nature")]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FallocateFlags, MemfdFlags};

/// Bytes of a page.
pub(crate) const PAGE_SIZE: usize = 4096;

/// Traps that the handler has skipped.
static HANDLED: AtomicU64 = AtomicU64::new(0);
/// Bytes of the `ud2` instruction.
const UD2_SIZE: i64 = 2;

/// A handler for SIGILL is installed that skips `ud2`.
pub(crate) struct IllegalInstruction(());

impl IllegalInstruction {
    /// Installs the handler, for the rest of the process's life.
    pub(crate) fn install() -> Result<Self> {
        // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_flags = libc::SA_SIGINFO;
        action.sa_sigaction = skip_ud2 as *const () as usize;
        // SAFETY: the handler has the type that SA_SIGINFO asks for, and does only what a handler may.
        let result = unsafe { libc::sigaction(libc::SIGILL, &raw const action, ptr::null_mut()) };
        ensure!(result == 0, "sigaction: {}", io::Error::last_os_error());
        Ok(Self(()))
    }

    /// Executes `ud2` once.
    pub(crate) fn raise(&self) {
        // SAFETY: the handler is installed (or there would be no `self`) and goes on behind the instruction.
        unsafe { std::arch::asm!("ud2", options(nostack)) }
    }

    /// How many were skipped so far.
    pub(crate) fn handled(&self) -> u64 {
        HANDLED.load(Ordering::Relaxed)
    }
}

extern "C" fn skip_ud2(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes the interrupted context, which is ours until we return.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] += UD2_SIZE }
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// How the two sides of a shared word tell each other.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Wake {
    /// Sleep in the kernel.
    Futex,
    /// Look again and again.
    Spin,
}

/// Values of the shared word.
mod turn {
    pub(super) const NOBODY: u32 = 0;
    pub(super) const PARTNER: u32 = 1;
    pub(super) const END: u32 = 2;
}

/// A second process that answers. It ends with this value.
pub(crate) struct Partner {
    pid: libc::pid_t,
    /// None for a partner that answers on a socket.
    word: Option<(Word, Wake)>,
}

/// A page of memory shared with the partner, of which one word is used. Never unmapped: a page for each partner.
#[derive(Clone, Copy)]
struct Word(&'static AtomicU32);

impl Word {
    fn new() -> Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE_SIZE, protection, flags, -1, 0) };
        ensure!(page != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        // SAFETY: the page is zeroed, aligned, never unmapped, and only used as this atomic word.
        Ok(Self(unsafe { &*page.cast::<AtomicU32>() }))
    }

    /// Waits until the word is not `value`, and returns what it is then.
    fn wait_while(self, value: u32, wake: Wake) -> u32 {
        loop {
            // Pairs with the `Release` in `set`.
            let now = self.0.load(Ordering::Acquire);
            if now != value {
                return now;
            }
            match wake {
                Wake::Spin => std::hint::spin_loop(),
                Wake::Futex => self.futex(libc::FUTEX_WAIT, value),
            }
        }
    }

    fn set(self, value: u32, wake: Wake) {
        self.0.store(value, Ordering::Release);
        if wake == Wake::Futex {
            self.futex(libc::FUTEX_WAKE, 1);
        }
    }

    fn futex(self, operation: i32, value: u32) {
        // A wait may return early for any reason: the caller looks again.
        // SAFETY: the word lives for ever, and without a timeout these operations use no other pointer.
        unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), operation, value, ptr::null::<u8>()) };
    }
}

impl Partner {
    /// A partner that answers through a shared word.
    pub(crate) fn start(wake: Wake) -> Result<Self> {
        let word = Word::new()?;
        let pid = fork(|| {
            loop {
                match word.wait_while(turn::NOBODY, wake) {
                    turn::END => return,
                    _ => word.set(turn::NOBODY, wake),
                }
            }
        })?;
        Ok(Self { pid, word: Some((word, wake)) })
    }

    /// A partner that sends back every byte, until the other end is closed.
    pub(crate) fn echo(mut socket: UnixStream) -> Result<Self> {
        let pid = fork(move || {
            let mut byte = [0];
            while socket.read_exact(&mut byte).and_then(|()| socket.write_all(&byte)).is_ok() {}
        })?;
        Ok(Self { pid, word: None })
    }

    /// Asks and waits for the answer.
    pub(crate) fn round_trip(&self) -> Result<()> {
        let (word, wake) = self.word.context("this partner answers on a socket")?;
        word.set(turn::PARTNER, wake);
        word.wait_while(turn::PARTNER, wake);
        Ok(())
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        if let Some((word, wake)) = self.word {
            word.set(turn::END, wake);
        } else {
            // It would wait for a socket whose copies it has itself.
            // SAFETY: our child, and not yet waited for, so the number is its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        // SAFETY: our child; no status is asked for.
        unsafe { libc::waitpid(self.pid, ptr::null_mut(), 0) };
    }
}

/// Runs a function in a child process, which ends with it.
fn fork(child: impl FnOnce()) -> Result<libc::pid_t> {
    // SAFETY: this process has one thread, so the child finds no lock held by another.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("fork"),
        0 => {
            // SAFETY: asks for a signal when the parent ends, so that no child outlives an aborted measurement.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            child();
            // SAFETY: ends the child at once; nothing that it inherited is run or flushed.
            unsafe { libc::_exit(0) }
        }
        pid => Ok(pid),
    }
}

/// What `<linux/userfaultfd.h>` defines.
mod uffd {
    pub(super) const API: u64 = 0xAA;
    pub(super) const USER_MODE_ONLY: i32 = 1;
    pub(super) const FEATURE_SIGBUS: u64 = 1 << 7;
    pub(super) const FEATURE_WP_SHMEM: u64 = 1 << 12;
    pub(super) const MODE_MISSING: u64 = 1 << 0;
    pub(super) const MODE_WP: u64 = 1 << 1;
    pub(super) const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
    pub(super) const UFFDIO_API: u64 = 0xC018_AA3F;
    pub(super) const UFFDIO_REGISTER: u64 = 0xC020_AA00;
    pub(super) const UFFDIO_COPY: u64 = 0xC028_AA03;
    pub(super) const UFFDIO_WRITEPROTECT: u64 = 0xC018_AA06;
}

/// A memfd that is mapped and registered with a userfaultfd, as an enclave's view is.
///
/// # Invariants
///
/// `base` is the start of a mapping of `pages` pages that lives as long as this value.
pub(crate) struct View {
    uffd: OwnedFd,
    file: File,
    base: NonNull<libc::c_void>,
    pages: usize,
}

impl View {
    /// A view without a page in it.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let length = pages * PAGE_SIZE;
        let file = File::from(rustix::fs::memfd_create("view", MemfdFlags::CLOEXEC)?);
        file.set_len(length as u64)?;
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, 0) };
        ensure!(base != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        let flags = libc::O_CLOEXEC | uffd::USER_MODE_ONLY;
        // SAFETY: takes no pointer; makes a descriptor.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        ensure!(number >= 0, "userfaultfd: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is new, so nobody else owns it.
        let uffd = unsafe { OwnedFd::from_raw_fd(i32::try_from(number)?) };
        // INVARIANT: the mapping is new, has this length, and only `drop` unmaps it.
        let view = Self { uffd, file, base: NonNull::new(base).context("mapped at 0")?, pages };
        view.ioctl(uffd::UFFDIO_API, &mut [uffd::API, uffd::FEATURE_SIGBUS | uffd::FEATURE_WP_SHMEM, 0])?;
        let register = [view.address(0)?, length as u64, uffd::MODE_MISSING | uffd::MODE_WP, 0];
        view.ioctl(uffd::UFFDIO_REGISTER, &mut { register })?;
        Ok(view)
    }

    /// Puts a page in.
    pub(crate) fn copy_in(&self, page: usize, content: &[u8; PAGE_SIZE]) -> Result<()> {
        let source = content.as_ptr() as u64;
        self.ioctl(uffd::UFFDIO_COPY, &mut [self.address(page)?, source, PAGE_SIZE as u64, 0, 0])
    }

    /// Makes a page read-only in this process.
    pub(crate) fn write_protect(&self, page: usize) -> Result<()> {
        let range = [self.address(page)?, PAGE_SIZE as u64, uffd::WRITEPROTECT_MODE_WP];
        self.ioctl(uffd::UFFDIO_WRITEPROTECT, &mut { range })
    }

    /// Reads a page's bytes.
    pub(crate) fn copy_out(&self, page: usize, to: &mut [u8; PAGE_SIZE]) -> Result<()> {
        Ok(self.file.read_exact_at(to, (page * PAGE_SIZE) as u64)?)
    }

    /// Takes pages out.
    pub(crate) fn punch(&self, page: usize, count: usize) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, (page * PAGE_SIZE) as u64, (count * PAGE_SIZE) as u64)?)
    }

    fn address(&self, page: usize) -> Result<u64> {
        ensure!(page < self.pages, "page {page} of {}", self.pages);
        Ok(self.base.as_ptr() as u64 + (page * PAGE_SIZE) as u64)
    }

    /// A userfaultfd ioctl. Its argument is a structure of 64-bit words.
    fn ioctl<const WORDS: usize>(&self, command: u64, argument: &mut [u64; WORDS]) -> Result<()> {
        // SAFETY: the four commands above encode their argument's size, and each caller passes that many words.
        // Addresses in them are of our mapping or of a live page, which the kernel writes or reads.
        let result = unsafe { libc::ioctl(self.uffd.as_raw_fd(), command, argument.as_mut_ptr()) };
        ensure!(result == 0, "userfaultfd ioctl {command:#x}: {}", io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: by the invariant this is a whole mapping, and nothing points into it once the value is gone.
        unsafe { libc::munmap(self.base.as_ptr(), self.pages * PAGE_SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_comes_back_as_it_went_in() {
        let view = View::new(4).unwrap();
        let (content, mut back) = ([0xc3; PAGE_SIZE], [0; PAGE_SIZE]);
        view.copy_in(2, &content).unwrap();
        assert!(view.copy_in(2, &content).is_err(), "it is there already");
        view.write_protect(2).unwrap();
        view.copy_out(2, &mut back).unwrap();
        assert_eq!(back, content);
        view.punch(2, 1).unwrap();
        view.copy_out(2, &mut back).unwrap();
        assert_eq!(back, [0; PAGE_SIZE]);
        assert!(view.copy_in(4, &content).is_err(), "there is no such page");
    }

    #[test]
    fn a_trap_is_counted() {
        let trap = IllegalInstruction::install().unwrap();
        let before = trap.handled();
        trap.raise();
        assert_eq!(trap.handled(), before + 1);
    }
}
