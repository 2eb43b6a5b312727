//! `execve`: the attendant must put the runtime into the new image.
//!
//! The attendant seizes the thread before the call and injects at the exec stop. The call itself is made in the
//! program's context, with the program's mask, so that the new image inherits exactly that; which of the runtime's
//! signals the program blocks, the attendant is told. Handlers are reset by the kernel; a signal that the program ignores must be ignored by the kernel, too.

use usgx_wire::boot::{
    EXEC_AWAITED, EXEC_BEGIN, EXEC_FAILED, EXEC_INHERIT, EXEC_TRACED, EXIT_NOTICE, ExecAnswer, ExecRequest,
    flags,
};

use super::{debug, stubs};
use crate::arch::syscall::{errno, nr, on_behalf};
use crate::arch::{close, complain, getpid, gettid};
use crate::devices::AT_FDCWD;
use crate::link;
use crate::process::{BOOT, is_first};
use crate::signals::frame::{OWNED, Sigaction, Ucontext, bit};
use crate::signals::tables::IGNORE;
use crate::sys;
use crate::thread::Thread;

const PR_GET_DUMPABLE: u64 = 3;
const PR_SET_DUMPABLE: u64 = 4;
const PR_SET_PTRACER: u64 = 0x5961_6d61;

/// Asks the attendant on behalf of the calling thread; `Ok` if it agrees.
fn ask(kind: u32, blocked: u32) -> Result<(), i64> {
    request(&ExecRequest { kind, pid: getpid(), tid: gettid(), blocked, rip: 0, rsp: 0 }).map(|_| ())
}

/// Makes a request of the attendant, and waits for its answer.
fn request(request: &ExecRequest) -> Result<ExecAnswer, i64> {
    let [ours, theirs] = link::socket_pair()?;
    let mut answer = ExecAnswer { status: 0, reserved: 0, entry: 0, blocked: 0 };
    let result = link::ask(BOOT.get().attendant_fd, request, theirs, ours, &mut answer);
    close(ours);
    result?;
    if answer.status < 0 { Err(-i64::from(answer.status)) } else { Ok(answer) }
}

/// Whether a process that the calling thread traces has announced an `execve`, and has had no runtime since.
pub fn is_awaited(tracee: u32) -> bool {
    let question = ExecRequest { kind: EXEC_AWAITED, pid: getpid(), tid: tracee, blocked: 0, rip: 0, rsp: 0 };
    request(&question).is_ok()
}

/// Has the attendant write the runtime into a process that the calling thread traces, where its memory is mapped
/// already; the process is about to start at `rip` with the stack pointer `rsp`.
pub fn ask_for_runtime(tracee: u32, rip: u64, rsp: u64) -> Result<ExecAnswer, i64> {
    request(&ExecRequest { kind: EXEC_INHERIT, pid: getpid(), tid: tracee, blocked: 0, rip, rsp })
}

/// `execve`, `execveat`. Returns what RAX becomes.
pub fn execve(uc: &mut Ucontext, number: u64, args: [u64; 6]) -> i64 {
    if BOOT.get().flags & flags::TRACES_ALL == 0 && is_unreadable(number, args) {
        complain(
            "usgx: cannot run a program that this user may execute but not read: its memory is kept from the process \
             that puts the runtime into it; make it readable, or run as root\n",
        );
        return -errno::EACCES;
    }
    // SAFETY: attributes of the process; the attendant must be allowed to trace it.
    unsafe {
        if sys!(nr::PRCTL, PR_GET_DUMPABLE) != 1 {
            sys!(nr::PRCTL, PR_SET_DUMPABLE, 1);
        }
        sys!(nr::PRCTL, PR_SET_PTRACER, BOOT.get().attendant_pid);
    }
    // SAFETY: handlers run on the runtime's stack.
    let thread = unsafe { Thread::current_from_sp() };
    let blocked = (thread.mask & OWNED) as u32;
    let kind = if debug::wants_tracer(thread) { EXEC_TRACED } else { EXEC_BEGIN };
    if ask(kind, blocked).is_err() {
        complain(
            "usgx: cannot run a new program: the process that puts the runtime into it is gone or may not \
             trace this one (a debugger that is attached must be of the same run)\n",
        );
        return -errno::EPERM;
    }
    show_ignored();
    if stubs::forward_exec(uc, number) {
        return number as i64;
    }
    // SAFETY: the program's own call.
    let result = unsafe { on_behalf(number, args) };
    failed();
    result
}

/// Whether the user may execute a file but not read it.
fn is_unreadable(number: u64, args: [u64; 6]) -> bool {
    const AT_EACCESS: u64 = 0x200;
    const R_OK: u64 = 4;
    const X_OK: u64 = 1;
    let (dirfd, path, options) =
        if number == nr::EXECVE { (AT_FDCWD as u64, args[0], 0) } else { (args[0], args[1], args[4]) };
    // SAFETY: the kernel reads the program's path, and judges it.
    let access = |wanted: u64| unsafe { sys!(nr::FACCESSAT2, dirfd, path, wanted, options | AT_EACCESS) };
    access(R_OK) == -errno::EACCES && access(X_OK) == 0
}

/// Makes the kernel ignore what the program ignores of the runtime's signals; an exec keeps that and resets the
/// rest. Until the exec, the runtime needs them: so only those, and few programs have any.
fn show_ignored() {
    // SAFETY: handlers run on the runtime's stack.
    let thread = unsafe { Thread::current_from_sp() };
    let actions = thread.process().actions.lock();
    for sig in (1..=64).filter(|sig| OWNED & bit(*sig) != 0) {
        if actions.get(sig).handler == IGNORE {
            let told = Sigaction { handler: IGNORE, ..Sigaction::default() };
            // SAFETY: the kernel reads `told`.
            unsafe { sys!(nr::RT_SIGACTION, sig, &raw const told, 0, 8) };
        }
    }
}

/// If the trap is that of a failed `execve`: lets the attendant go and returns to the program.
pub fn on_failed(thread: &mut Thread, uc: &mut Ucontext) -> bool {
    if !stubs::unwind_exec(uc) {
        return false;
    }
    failed();
    let actions = thread.process().actions.lock();
    for sig in (1..=64).filter(|sig| OWNED & bit(*sig) != 0) {
        crate::signals::tables::set_kernel(sig, &actions.get(sig));
    }
    true
}

fn failed() {
    // If the attendant is gone there is nobody to let go of.
    let _ = ask(EXEC_FAILED, 0);
}

/// Tells the attendant, if it wants to know, that the run's first process ends.
pub fn announce_exit() {
    if BOOT.get().flags & flags::ANNOUNCE_EXIT != 0 && is_first() {
        let _ = ask(EXIT_NOTICE, 0);
    }
}
