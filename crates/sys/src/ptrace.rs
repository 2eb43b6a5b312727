//! `ptrace(2)` for one purpose: to hold a thread at an `execve` and put something into its new image.
//!
//! Every function takes a thread ID and fails with the kernel's errno; `ESRCH` means that the thread is not
//! traced by *this* thread, is not stopped, or is gone. All requests for a tracee must come from the thread
//! that seized it, which is the kernel's rule and not checked here. None of this can harm the caller's own
//! memory: a wrong address or register harms the tracee, which is why the functions are safe.

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;

/// A thread or process ID, as the kernel numbers them in the caller's namespace.
pub type Tid = i32;

/// The general registers of a 64-bit thread.
pub type Registers = libc::user_regs_struct;

/// Why a traced thread reported itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// It ended, with this wait status; it is no longer traced.
    Ended(i32),
    /// `PTRACE_EVENT_EXEC`: a new image is in place, the system call has not returned yet.
    Exec,
    /// A system call's entry or exit (after [`resume_to_syscall`]).
    Syscall,
    /// A signal is about to be delivered; it is lost unless it is passed on.
    Signal(i32),
    /// `PTRACE_EVENT_STOP` for job control: the thread group is stopped by this signal.
    Group(i32),
    /// `PTRACE_EVENT_STOP` that [`interrupt`] asked for.
    Interrupted,
    /// Another event, of no interest to us.
    Other(i32),
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Makes a request whose two arguments are plain numbers.
fn plain(request: libc::c_uint, tid: Tid, addr: u64, data: u64) -> io::Result<()> {
    // SAFETY: None of the requests passed here makes the kernel write to this process's memory: `addr` and
    // `data` are numbers, or addresses in the tracee.
    check(unsafe { libc::ptrace(request, tid, addr as *mut c_void, data as *mut c_void) })?;
    Ok(())
}

/// Starts tracing `tid` without stopping it. It will stop at its next `execve`, and system call stops are
/// told from signals.
///
/// # Errors
///
/// `EPERM`: another tracer has it, or it is another user's, or Yama forbids it. `ESRCH`: no such thread.
pub fn seize(tid: Tid) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_TRACESYSGOOD;
    plain(libc::PTRACE_SEIZE, tid, 0, options as u64)
}

/// Asks a seized, running thread to stop; it reports [`Stop::Interrupted`] (or something that came first).
///
/// # Errors
///
/// Any errno of the request.
pub fn interrupt(tid: Tid) -> io::Result<()> {
    plain(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets a stopped thread run on, with `signal` delivered (0 for none).
///
/// # Errors
///
/// Any errno of the request.
pub fn resume(tid: Tid, signal: i32) -> io::Result<()> {
    plain(libc::PTRACE_CONT, tid, 0, signal as u64)
}

/// As [`resume`], up to the next entry to or exit from a system call.
///
/// # Errors
///
/// Any errno of the request.
pub fn resume_to_syscall(tid: Tid, signal: i32) -> io::Result<()> {
    plain(libc::PTRACE_SYSCALL, tid, 0, signal as u64)
}

/// Leaves a thread in its group stop, and lets it report a later `SIGCONT`.
///
/// # Errors
///
/// Any errno of the request.
pub fn listen(tid: Tid) -> io::Result<()> {
    plain(libc::PTRACE_LISTEN, tid, 0, 0)
}

/// Stops tracing a stopped thread and lets it run, with `signal` delivered (0 for none).
///
/// # Errors
///
/// Any errno of the request.
pub fn detach(tid: Tid, signal: i32) -> io::Result<()> {
    plain(libc::PTRACE_DETACH, tid, 0, signal as u64)
}

/// Reads the registers of a stopped thread; `None` if it runs 32-bit code.
///
/// # Errors
///
/// Any errno of the request.
pub fn registers(tid: Tid) -> io::Result<Option<Registers>> {
    let mut registers = MaybeUninit::<Registers>::zeroed();
    let mut vector = libc::iovec { iov_base: registers.as_mut_ptr().cast(), iov_len: size_of::<Registers>() };
    // SAFETY: The kernel writes at most `iov_len` bytes to `iov_base`, which is the whole of `registers`, and
    // the length that it wrote to `vector`. Both live until the call returns.
    check(unsafe {
        libc::ptrace(libc::PTRACE_GETREGSET, tid, libc::NT_PRSTATUS as *mut c_void, &raw mut vector)
    })?;
    // A 32-bit thread's register set is shorter.
    if vector.iov_len != size_of::<Registers>() {
        return Ok(None);
    }
    // SAFETY: Every bit pattern is a valid `user_regs_struct`, and it was zeroed to begin with.
    Ok(Some(unsafe { registers.assume_init() }))
}

/// Writes the registers of a stopped thread.
///
/// # Errors
///
/// Any errno of the request.
pub fn set_registers(tid: Tid, registers: &Registers) -> io::Result<()> {
    // SAFETY: The kernel only reads `registers`, in full.
    check(unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0usize, std::ptr::from_ref(registers)) })?;
    Ok(())
}

/// Reads the signal mask of a stopped thread: bit `n - 1` for signal `n`.
///
/// # Errors
///
/// Any errno of the request.
pub fn signal_mask(tid: Tid) -> io::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: The kernel writes exactly the eight bytes that the third argument announces.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid, size_of::<u64>(), &raw mut mask) })?;
    Ok(mask)
}

/// Writes the signal mask of a stopped thread.
///
/// # Errors
///
/// Any errno of the request.
pub fn set_signal_mask(tid: Tid, mask: u64) -> io::Result<()> {
    // SAFETY: The kernel reads exactly the eight bytes that the third argument announces.
    check(unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid, size_of::<u64>(), &raw const mask) })?;
    Ok(())
}

/// The thread ID that a thread had before the `execve` whose [`Stop::Exec`] it reported: a process's image is
/// always reported under the ID of its first thread.
///
/// # Errors
///
/// Any errno of the request.
pub fn former_tid(tid: Tid) -> io::Result<Tid> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: The kernel writes one `unsigned long` to `message`.
    check(unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, tid, 0usize, &raw mut message) })?;
    Tid::try_from(message).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Reads one word of a stopped thread's memory, whatever the protection of the page.
///
/// # Errors
///
/// Any errno of the request; `EIO` or `EFAULT` for an address that is not mapped.
pub fn peek(tid: Tid, address: u64) -> io::Result<u64> {
    let mut word: libc::c_long = 0;
    // SAFETY: The raw system call (unlike the C library's wrapper) writes the word to `word`.
    check(unsafe {
        libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA as libc::c_long, tid, address, &raw mut word)
    })?;
    Ok(word.cast_unsigned())
}

/// Writes one word of a stopped thread's memory, whatever the protection of the page (a private copy of a
/// file's page is made if need be).
///
/// # Errors
///
/// Any errno of the request; `EIO` or `EFAULT` for an address that is not mapped.
pub fn poke(tid: Tid, address: u64, word: u64) -> io::Result<()> {
    plain(libc::PTRACE_POKEDATA, tid, address, word)
}

/// Reads memory of another process; returns how many bytes were readable from `address` on.
///
/// # Errors
///
/// `EFAULT` if nothing is readable there; `EPERM`, `ESRCH`.
pub fn read_memory(pid: Tid, address: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: bytes.len() };
    // SAFETY: `local` describes exactly the exclusive slice `bytes`; `remote` is looked up in the other
    // process only.
    let done = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Writes memory of another process, which must be mapped writable there.
///
/// # Errors
///
/// `EFAULT` if the whole of it could not be written; `EPERM`, `ESRCH`; `EINVAL` for the caller's own memory.
pub fn write_memory(pid: Tid, address: u64, bytes: &[u8]) -> io::Result<()> {
    if pid.cast_unsigned() == std::process::id() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: bytes.len() };
    // SAFETY: The kernel only reads `local`, which describes exactly the slice `bytes`; `remote` is looked up
    // in the other process only.
    let done = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(done) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(done) if done == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

fn classify(status: i32) -> Stop {
    if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
        return Stop::Ended(status);
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupted,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        event => Stop::Other(event),
    }
}

fn wait_with(tid: Tid, flags: i32) -> io::Result<Option<(Tid, Stop)>> {
    loop {
        let mut status = 0;
        // SAFETY: The kernel writes one `int` to `status`.
        let who = unsafe { libc::waitpid(tid, &raw mut status, flags | libc::__WALL) };
        match who {
            0 => return Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::ECHILD) if flags & libc::WNOHANG != 0 => return Ok(None),
                    _ => return Err(error),
                }
            }
            who => return Ok(Some((who, classify(status)))),
        }
    }
}

/// Waits until `tid` reports itself.
///
/// # Errors
///
/// `ECHILD`: it is not traced by this process.
pub fn wait(tid: Tid) -> io::Result<Stop> {
    match wait_with(tid, 0)? {
        Some((_, stop)) => Ok(stop),
        None => Err(io::Error::from_raw_os_error(libc::ECHILD)),
    }
}

/// Takes the next report of any traced thread, without waiting.
///
/// # Errors
///
/// Any errno of `waitpid`; that there is nothing to wait for is no error.
pub fn poll() -> io::Result<Option<(Tid, Stop)>> {
    wait_with(-1, libc::WNOHANG)
}

/// Sends a signal to one thread of a process.
///
/// # Errors
///
/// `ESRCH`: it is gone.
pub fn tgkill(pid: Tid, tid: Tid, signal: i32) -> io::Result<()> {
    // SAFETY: `tgkill` touches no memory of this process.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) })?;
    Ok(())
}

/// Kills a process that is traced or about to be.
///
/// # Errors
///
/// `ESRCH`: it is gone. `EINVAL`: not the ID of one process.
pub fn kill(pid: Tid) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `kill` touches no memory of this process.
    check(unsafe { libc::kill(pid, libc::SIGKILL) }.into())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_told_apart() {
        let stopped = |signal: i32, event: i32| (event << 16) | (signal << 8) | 0x7f;
        assert_eq!(classify(0x300), Stop::Ended(0x300));
        assert_eq!(classify(libc::SIGKILL), Stop::Ended(libc::SIGKILL));
        assert_eq!(classify(stopped(libc::SIGTRAP | 0x80, 0)), Stop::Syscall);
        assert_eq!(classify(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXEC)), Stop::Exec);
        assert_eq!(classify(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_STOP)), Stop::Interrupted);
        assert_eq!(classify(stopped(libc::SIGTSTP, libc::PTRACE_EVENT_STOP)), Stop::Group(libc::SIGTSTP));
        assert_eq!(classify(stopped(libc::SIGUSR1, 0)), Stop::Signal(libc::SIGUSR1));
    }

    #[test]
    fn own_memory_is_never_written() {
        let pid = i32::try_from(std::process::id()).expect("process IDs fit");
        let target = [1u8, 2, 3, 4];
        let mut back = [0; 4];
        let address = target.as_ptr() as u64;
        assert!(write_memory(pid, address, &[9, 8, 7, 6]).is_err());
        assert_eq!(read_memory(pid, address, &mut back).expect("own memory is readable"), 4);
        assert_eq!(back, [1, 2, 3, 4]);
    }
}
