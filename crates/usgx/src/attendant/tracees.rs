//! The threads that are traced just now, each from its announcement of an `execve` to the end of it.
//!
//! A thread is seized while it waits for the attendant's answer. It then reports its new image, or that it has
//! failed, or its death. Signals on the way are passed on, and stops of job control are left as they are.
//!
//! A thread that a program of the run traces cannot be seized. Its tracer then holds it at its new image, and asks for
//! the runtime.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;

use anyhow::{Result, bail};
use usgx_sys::attendant;
use usgx_sys::ptrace::{self, Stop, Tid};

use super::requests::{Start, Traced};
use crate::inject::{Injector, Legacy, Refusal};

const EPERM: i32 = 1;
const ESRCH: i32 = 3;
const EIO: i32 = 5;

/// All traced threads.
#[derive(Debug)]
pub(super) struct Tracees {
    injector: Injector,
    /// Threads that are seized, and what is for their new images.
    seized: HashMap<Tid, Legacy>,
    /// Processes that another program of the run traces, from the announcement of an `execve` until that program
    /// asks for the new image's runtime.
    lent: HashMap<Tid, Legacy>,
    /// The run's first process, until it has its image.
    first: Option<Tid>,
}

impl Tracees {
    /// Seizes the process that will be the run's first program.
    ///
    /// # Errors
    ///
    /// If it cannot be, with what may be the reason.
    pub(super) fn seize_first(injector: Injector, pid: Tid) -> Result<Self> {
        if let Err(error) = ptrace::seize(pid) {
            let tracer = tracer_of(pid);
            match tracer {
                Some(other) => bail!(
                    "process {other} already traces the program, and only one can; start the tracer inside of the \
                     run instead: usgx run -- strace PROG"
                ),
                None => bail!(
                    "the kernel does not let usgx trace the program at its start ({error}); \
                     'usgx doctor' says what forbids it"
                ),
            }
        }
        Ok(Self {
            injector,
            seized: HashMap::from([(pid, Legacy::default())]),
            lent: HashMap::new(),
            first: Some(pid),
        })
    }

    /// Seizes a thread that is about to call `execve`; 0 or a negative errno.
    pub(super) fn seize(&mut self, thread: Option<Tid>, legacy: Legacy) -> i32 {
        let Some(tid) = thread else { return -ESRCH };
        if let Some(known) = self.seized.get_mut(&tid) {
            *known = legacy;
            return 0;
        }
        match ptrace::seize(tid) {
            Ok(()) => {
                self.seized.insert(tid, legacy);
                0
            }
            Err(error) => {
                // Only the runtimes of this run ask here.
                let socket = self.injector.attendant_socket();
                let tracer = tracer_of(tid).filter(|&tracer| are_of_one_run(socket, tracer, tid));
                let (Some(process), Some(_)) = (process_of(tid), tracer) else {
                    return -error.raw_os_error().unwrap_or(EPERM);
                };
                self.lent.retain(|&pid, _| is_alive(pid));
                self.lent.insert(process, legacy);
                0
            }
        }
    }

    /// Whether a process has announced an `execve` and waits for its tracer's help: 0, or a negative errno.
    pub(super) fn is_awaited(&self, traced: Traced) -> i32 {
        if self.find_lent(traced).is_some() { 0 } else { -ESRCH }
    }

    /// A process of which its tracer speaks, by the number that it has here.
    fn find_lent(&self, traced: Traced) -> Option<Tid> {
        let is_meant = |pid: Tid| {
            tracer_of(pid).and_then(process_of) == Some(traced.tracer) && has_number(pid, traced.pid)
        };
        self.lent.keys().copied().find(|&pid| is_meant(pid))
    }

    /// Puts the runtime into a new image that its tracer holds; how to start it, or a negative errno.
    pub(super) fn fill(&mut self, traced: Traced, [rip, rsp]: [u64; 2]) -> Result<Start, i32> {
        let pid = self.find_lent(traced).ok_or(-ESRCH)?;
        let legacy = self.lent.remove(&pid).unwrap_or_default();
        match self.injector.fill(pid, rip, rsp, false, legacy) {
            Ok(entry) => Ok(Start { entry, blocked: legacy.blocked }),
            Err(error) => {
                explain(pid, &format!("usgx: process {pid} cannot run here: {error:#}\n"));
                Err(-EIO)
            }
        }
    }

    /// Lets a thread go whose `execve` has failed; 0 or a negative errno.
    pub(super) fn release(&mut self, thread: Option<Tid>) -> i32 {
        let Some(tid) = thread else { return -ESRCH };
        if self.seized.remove(&tid).is_none() {
            process_of(tid).and_then(|pid| self.lent.remove(&pid));
            return 0;
        }
        let released = || -> std::io::Result<()> {
            ptrace::interrupt(tid)?;
            match ptrace::wait(tid)? {
                Stop::Ended(_) => Ok(()),
                Stop::Signal(signal) => ptrace::detach(tid, signal),
                _ => ptrace::detach(tid, 0),
            }
        };
        released().map_or_else(|error| -error.raw_os_error().unwrap_or(EIO), |()| 0)
    }

    /// Deals with every report that has come.
    pub(super) fn handle_reports(&mut self) {
        loop {
            match ptrace::poll() {
                Ok(Some((tid, stop))) => self.handle(tid, stop),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "waiting for traced processes");
                    return;
                }
            }
        }
    }

    fn handle(&mut self, tid: Tid, stop: Stop) {
        // A tracee that is killed at any moment answers ESRCH; its death is reported by itself.
        let result = match stop {
            Stop::Ended(_) => {
                self.seized.remove(&tid);
                Ok(())
            }
            Stop::Exec => {
                self.handle_exec(tid);
                Ok(())
            }
            Stop::Signal(signal) => ptrace::resume(tid, signal),
            Stop::Group(_) => ptrace::listen(tid),
            Stop::Interrupted | Stop::Syscall | Stop::Other(_) => ptrace::resume(tid, 0),
        };
        if let Err(error) = result {
            tracing::debug!(tid, ?stop, %error, "a traced thread has gone");
        }
    }

    /// Puts the runtime into a new image, or ends the process: it must not run on without.
    fn handle_exec(&mut self, pid: Tid) {
        // The thread that called execve has become the process's first; all others have ended.
        let first_thread = self.seized.remove(&pid);
        let caller = ptrace::former_tid(pid).ok().and_then(|former| self.seized.remove(&former));
        let legacy = caller.or(first_thread).unwrap_or_default();
        let first = self.first == Some(pid);
        match self.injector.inject(pid, first, legacy) {
            Ok(()) => {
                if first {
                    self.first = None;
                }
            }
            Err(Refusal::Gone) => {}
            Err(Refusal::Unfit(error)) => {
                explain(pid, &format!("usgx: process {pid} cannot run here: {error:#}\n"));
                let _ = ptrace::kill(pid);
            }
        }
    }
}

/// Says something on the standard error of another process. The very same open file, so that nothing written
/// later covers it. Where that is not allowed, the program could not be traced either, and stays mute.
fn explain(pid: Tid, message: &str) {
    if let Ok(stderr) = attendant::descriptor_of(pid, 2) {
        let _ = File::from(stderr).write_all(message.as_bytes());
    }
    tracing::error!("{message}");
}

/// The thread that traces another, if any does.
fn tracer_of(tid: Tid) -> Option<Tid> {
    status_number(tid, "TracerPid:").filter(|&tracer| tracer != 0)
}

/// The process that a thread belongs to.
fn process_of(tid: Tid) -> Option<Tid> {
    status_number(tid, "Tgid:")
}

fn status_number(tid: Tid, field: &str) -> Option<Tid> {
    status_line(tid, field)?.trim().parse().ok()
}

/// Whether a process has a number in one of the PID namespaces that it is in.
fn has_number(pid: Tid, number: Tid) -> bool {
    status_line(pid, "NSpid:")
        .is_some_and(|numbers| numbers.split_whitespace().any(|each| each.parse() == Ok(number)))
}

/// What a line of a thread's `status` says.
fn status_line(tid: Tid, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)).map(str::to_owned)
}

fn is_alive(pid: Tid) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// Whether two processes are of the same run: they have the same socket to the attendant, under its number.
fn are_of_one_run(socket: i32, one: Tid, other: Tid) -> bool {
    let behind = |pid: Tid| fs::read_link(format!("/proc/{pid}/fd/{socket}")).ok();
    behind(one).is_some_and(|socket| behind(other) == Some(socket))
}
