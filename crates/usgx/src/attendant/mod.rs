//! The process that `usgx run` leaves behind: it puts the runtime into every image of the run, and is home to
//! the machine when the run has one of its own.
//!
//! It waits for three things: messages of the run's processes ([`requests`]), reports of the threads that it
//! traces for the moment of an `execve` ([`tracees`]), and the machine having nobody left to serve. All
//! tracing is done by the thread that runs [`Attendant::serve`], because a tracee belongs to a thread; the
//! machine has threads of its own. It ends when the last process of the run has gone.

mod report;
mod requests;
mod tracees;

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use usgx_sys::attendant::{self, ChildNotices};
use usgx_sys::ptrace::Tid;

use crate::engine::Engine;
use crate::inject::{Injector, RunParameters};
pub(crate) use report::{Feed, Report};
use requests::Event;
use tracees::Tracees;

/// What the attendant is given by the process that forks it.
#[derive(Debug)]
pub(crate) struct Duties {
    /// The process that is about to become the program.
    pub(crate) first: Tid,
    /// The attendant's end of the socket that all processes of the run share.
    pub(crate) socket: OwnedFd,
    /// The run's own machine and its end of the door; `None` if the machine is elsewhere.
    pub(crate) machine: Option<(crate::engine::Config, OwnedFd)>,
    /// What all images have in common.
    pub(crate) run: RunParameters,
    /// `--stats`: print a table on standard error.
    pub(crate) table: bool,
    /// `--stats-json`: the file, created already.
    pub(crate) json: Option<File>,
    /// `--feed`: where to write numbers all the time.
    pub(crate) feed: Option<File>,
}

/// The attendant, ready to serve.
#[derive(Debug)]
pub(crate) struct Attendant {
    socket: OwnedFd,
    notices: ChildNotices,
    engine: Option<Engine>,
    tracees: Tracees,
    report: Report,
    feed: Option<Feed>,
}

impl Attendant {
    /// Starts the machine, if there is one to start, and seizes the process that will be the program. To be
    /// called in a process of its own, with one thread.
    ///
    /// # Errors
    ///
    /// Whatever keeps the run from starting, worded for its user.
    pub(crate) fn prepare(duties: Duties) -> Result<Self> {
        attendant::name_thread(c"usgx-attendant");
        attendant::outlast_termination();
        attendant::report_senders(duties.socket.as_fd())?;
        // Before the machine makes threads, so that all of them leave SIGCHLD to this descriptor.
        let notices = ChildNotices::new().context("watching for traced processes")?;
        let injector = Injector::new(duties.run)?;
        let engine = match duties.machine {
            Some((config, door)) => Some(Engine::start(config, door)?),
            None => None,
        };
        let tracees = Tracees::seize_first(injector, duties.first)?;
        let report = Report::new(duties.table, duties.json);
        let feed = duties.feed.map(Feed::new);
        Ok(Self { socket: duties.socket, notices, engine, tracees, report, feed })
    }

    /// Serves the run until its last process has gone.
    ///
    /// # Errors
    ///
    /// Only if waiting itself fails.
    pub(crate) fn serve(mut self) -> Result<()> {
        let mut processes_left = true;
        while processes_left || self.engine.as_ref().is_some_and(Engine::is_busy) {
            let [message, notice, idle] = attendant::wait_readable(
                [
                    processes_left.then(|| self.socket.as_fd()),
                    Some(self.notices.as_fd()),
                    self.engine.as_ref().and_then(Engine::busy_descriptor),
                ],
                self.feed.as_ref().map(Feed::interval_ms),
            )?;
            if notice {
                self.notices.clear();
            }
            // Also without a notice: one may stand for many, and asking costs one system call.
            self.tracees.handle_reports();
            if message {
                processes_left = self.handle_messages()?;
            }
            if let Some(engine) = &mut self.engine {
                if idle {
                    engine.rest();
                }
                if let Some(feed) = &mut self.feed {
                    feed.write(&engine.statistics());
                }
            }
        }
        self.finish_report();
        Ok(())
    }

    /// Takes all messages that have come; false after the last process's hang-up.
    fn handle_messages(&mut self) -> Result<bool> {
        loop {
            match requests::next(self.socket.as_fd())? {
                Event::None => return Ok(true),
                Event::HangUp => return Ok(false),
                Event::Malformed => {}
                Event::ExecBegin(thread, legacy, reply) => {
                    let status = self.tracees.seize(thread, legacy);
                    reply.answer(status);
                }
                Event::ExecFailed(thread, reply) => {
                    let status = self.tracees.release(thread);
                    reply.answer(status);
                }
                Event::ExecAwaited(traced, reply) => {
                    let status = self.tracees.is_awaited(traced);
                    reply.answer(status);
                }
                Event::ExecInherit(traced, registers, reply) => {
                    reply.answer_start(self.tracees.fill(traced, registers));
                }
                Event::ExitNotice(reply) => {
                    self.finish_report();
                    reply.answer(0);
                }
            }
        }
    }

    fn finish_report(&mut self) {
        if let Some(engine) = &self.engine {
            let statistics = engine.statistics();
            self.report.finish(&statistics);
            if let Some(feed) = &mut self.feed {
                feed.write_now(&statistics);
            }
        }
    }
}
