//! Signals, userfaultfd and a second process: the few system calls of the floors that no safe crate makes.
#![expect(unsafe_code, reason = "signal handlers, fork and mappings are unsafe by nature")]

use std::fs::File;
use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::ops::Deref;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FallocateFlags, MemfdFlags};
use usgx_sys::arena::Frame;
use usgx_sys::memfd::Memfd;

/// Bytes of a page.
pub(crate) const PAGE_SIZE: usize = 4096;

/// How long the calling thread has had a processor for.
pub(crate) fn thread_time() -> Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes the time there.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    ensure!(result == 0, "clock_gettime: {}", io::Error::last_os_error());
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

/// Traps that the handler has skipped.
static HANDLED: AtomicU64 = AtomicU64::new(0);
/// Bytes of the `ud2` instruction.
const UD2_SIZE: i64 = 2;

/// A handler for SIGILL is installed that skips `ud2`.
pub(crate) struct IllegalInstruction(());

impl IllegalInstruction {
    /// Installs the handler, for the rest of the process's life.
    pub(crate) fn install() -> Result<Self> {
        on_alternate_stack(libc::SIGILL, skip_ud2)?;
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

/// What `SA_SIGINFO` asks for.
type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Bytes of the alternate stack.
const STACK_SIZE: usize = 0x2_0000;

/// Installs a handler that runs on an alternate stack, as the runtime's do, for the rest of the process's life.
pub(crate) fn on_alternate_stack(signal: i32, handler: Handler) -> Result<()> {
    // Never freed: one for each handler that is installed, a few.
    let memory = Box::leak(vec![0_u8; STACK_SIZE].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
    // SAFETY: the memory is nobody else's and lives for ever.
    let result = unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) };
    ensure!(result == 0, "sigaltstack: {}", io::Error::last_os_error());
    // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    action.sa_sigaction = handler as *const () as usize;
    // SAFETY: the handler has the type that SA_SIGINFO asks for, and does only what a handler may.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    ensure!(result == 0, "sigaction: {}", io::Error::last_os_error());
    Ok(())
}

/// A page of zeros that this process and its children share, never unmapped.
pub(crate) fn shared_page() -> Result<NonNull<u8>> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, at a place that the kernel chooses.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE_SIZE, protection, flags, -1, 0) };
    ensure!(page != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    NonNull::new(page.cast()).context("mapped at 0")
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
    /// None for a partner that answers on a socket.
    word: Option<(Word, Wake)>,
    // Waits for the child, so it goes after `drop` has told the child to end.
    child: Child,
}

/// A page of memory shared with the partner, of which one word is used. Never unmapped: a page for each partner.
#[derive(Clone, Copy)]
struct Word(&'static AtomicU32);

impl Word {
    fn new() -> Result<Self> {
        let page = shared_page()?;
        // SAFETY: the page is zeroed, aligned, never unmapped, and only used as this atomic word.
        Ok(Self(unsafe { &*page.as_ptr().cast::<AtomicU32>() }))
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
        let child = Child::start(|| {
            loop {
                match word.wait_while(turn::NOBODY, wake) {
                    turn::END => return,
                    _ => word.set(turn::NOBODY, wake),
                }
            }
        })?;
        Ok(Self { word: Some((word, wake)), child })
    }

    /// A partner that sends back every byte, until the other end is closed.
    pub(crate) fn echo(mut socket: UnixStream) -> Result<Self> {
        let child = Child::start(move || {
            let mut byte = [0];
            while socket.read_exact(&mut byte).and_then(|()| socket.write_all(&byte)).is_ok() {}
        })?;
        Ok(Self { word: None, child })
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
            self.child.kill();
        }
    }
}

/// A child process that runs a function and ends; waited for when the value goes.
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Starts it.
    pub(crate) fn start(child: impl FnOnce()) -> Result<Self> {
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
            pid => Ok(Self(pid)),
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        // SAFETY: our child, and not yet waited for, so the number is its own.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our child; no status is asked for.
        unsafe { libc::waitpid(self.0, ptr::null_mut(), 0) };
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

/// A memfd that is mapped and registered with a userfaultfd, as an enclave's view is: here or in another process.
pub(crate) struct Space {
    uffd: OwnedFd,
    file: File,
    start: usize,
    pages: usize,
}

/// A [`Space`] of this process.
///
/// # Invariants
///
/// The space is a mapping that lives as long as this value.
pub(crate) struct View(Space);

/// A [`Space`] of another process, which does nothing else than use it. What is done to it goes through that
/// process's userfaultfd, as the machine does it.
pub(crate) struct ForeignView {
    space: Space,
    /// The same file, as the machine holds it.
    memory: Memfd,
    requests: OwnedFd,
    child: Child,
}

impl ForeignView {
    /// A view without a page in it, and its process.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let (near, far) = usgx_sys::socket::pair()?;
        let child = Child::start(move || {
            // What fails here shows as a hang-up at the other side.
            let Ok(view) = View::new(pages) else { return };
            let fds = [view.uffd.as_fd(), view.file.as_fd()];
            let _ = usgx_sys::socket::send(&far, &view.start.to_le_bytes(), &fds);
            while usgx_sys::socket::receive_waiting(&far, &mut [0]).is_ok_and(|request| request.length == 1) {
                let answer = u8::from(view.map_and_touch().is_ok());
                let _ = usgx_sys::socket::send(&far, &[answer], &[]);
            }
        })?;
        let mut start = [0; size_of::<usize>()];
        let received = usgx_sys::socket::receive_waiting(&near, &mut start)?;
        let [uffd, file] =
            <[OwnedFd; 2]>::try_from(received.fds).ok().context("the other process has no view")?;
        let memory = Memfd::from(file.try_clone()?);
        let space = Space { uffd, file: File::from(file), start: usize::from_le_bytes(start), pages };
        Ok(Self { space, memory, requests: near, child })
    }

    /// Has the process map all pages, none of which is there, and touch them.
    pub(crate) fn map_all(&self) -> Result<()> {
        usgx_sys::socket::send(&self.requests, &[1], &[])?;
        let mut answer = [0];
        usgx_sys::socket::receive_waiting(&self.requests, &mut answer)?;
        ensure!(answer == [1], "the other process cannot map its pages");
        Ok(())
    }

    /// Reads pages' bytes into frames, by the call that the machine makes.
    pub(crate) fn copy_to(&self, page: usize, frames: &mut [Frame]) -> Result<()> {
        let mut buffers: Vec<_> = frames.iter_mut().map(|frame| IoSliceMut::new(&mut frame[..])).collect();
        Ok(self.memory.read_vectored((page * PAGE_SIZE) as u64, &mut buffers)?)
    }
}

impl Deref for ForeignView {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}

impl Drop for ForeignView {
    fn drop(&mut self) {
        self.child.kill();
    }
}

impl Deref for View {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.0
    }
}

impl View {
    /// A view without a page in it.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let length = pages * PAGE_SIZE;
        let file = File::from(rustix::fs::memfd_create("view", MemfdFlags::CLOEXEC)?);
        file.set_len(length as u64)?;
        let flags = libc::O_CLOEXEC | uffd::USER_MODE_ONLY;
        // SAFETY: takes no pointer; makes a descriptor.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        ensure!(number >= 0, "userfaultfd: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is new, so nobody else owns it.
        let uffd = unsafe { OwnedFd::from_raw_fd(i32::try_from(number)?) };
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, 0) };
        ensure!(base != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        // INVARIANT: the mapping is new, has this length, and only `drop` unmaps it.
        let view = Self(Space { uffd, file, start: base.expose_provenance(), pages });
        view.ioctl(uffd::UFFDIO_API, &mut [uffd::API, uffd::FEATURE_SIGBUS | uffd::FEATURE_WP_SHMEM, 0])?;
        let register = [view.address(0)?, length as u64, uffd::MODE_MISSING | uffd::MODE_WP, 0];
        view.ioctl(uffd::UFFDIO_REGISTER, &mut { register })?;
        Ok(view)
    }
}

impl View {
    /// Maps all pages, none of which is there, and touches them.
    fn map_and_touch(&self) -> Result<()> {
        let content = Box::new([0x5a; PAGE_SIZE]);
        for page in 0..self.0.pages {
            self.copy_in(page, &content)?;
            self.touch(page);
        }
        Ok(())
    }

    /// Reads from a page. If it is not there, the process ends by SIGBUS or its handler brings the page.
    pub(crate) fn touch(&self, page: usize) {
        assert!(page < self.0.pages, "there is no such page");
        let word = ptr::with_exposed_provenance::<u64>(self.0.start + page * PAGE_SIZE);
        // SAFETY: within the mapping, by the invariant; nobody holds a reference to it.
        unsafe { word.read_volatile() };
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: by the invariant this is a whole mapping, and nothing points into it once the value is gone.
        unsafe { libc::munmap(start, self.pages * PAGE_SIZE) };
    }
}

impl Space {
    /// The same space, to be handed to a child process.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let (uffd, file) = (self.uffd.try_clone()?, self.file.try_clone()?);
        Ok(Self { uffd, file, ..*self })
    }

    /// Its first address.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Puts a page in.
    pub(crate) fn copy_in(&self, page: usize, content: &[u8; PAGE_SIZE]) -> Result<()> {
        let source = content.as_ptr() as u64;
        self.ioctl(uffd::UFFDIO_COPY, &mut [self.address(page)?, source, PAGE_SIZE as u64, 0, 0])
    }

    /// Makes pages read-only in the process.
    pub(crate) fn write_protect(&self, page: usize, count: usize) -> Result<()> {
        let range = [self.address(page)?, (count * PAGE_SIZE) as u64, uffd::WRITEPROTECT_MODE_WP];
        self.ioctl(uffd::UFFDIO_WRITEPROTECT, &mut { range })
    }

    /// Reads pages' bytes.
    pub(crate) fn copy_out(&self, page: usize, to: &mut [u8]) -> Result<()> {
        Ok(self.file.read_exact_at(to, (page * PAGE_SIZE) as u64)?)
    }

    /// Takes pages out.
    pub(crate) fn punch(&self, page: usize, count: usize) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.file, flags, (page * PAGE_SIZE) as u64, (count * PAGE_SIZE) as u64)?)
    }

    fn address(&self, page: usize) -> Result<u64> {
        ensure!(page < self.pages, "page {page} of {}", self.pages);
        Ok(self.start as u64 + (page * PAGE_SIZE) as u64)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_comes_back_as_it_went_in() {
        let view = View::new(4).unwrap();
        let (content, mut back) = ([0xc3; PAGE_SIZE], [0; PAGE_SIZE]);
        view.copy_in(2, &content).unwrap();
        assert!(view.copy_in(2, &content).is_err(), "it is there already");
        view.write_protect(2, 1).unwrap();
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
