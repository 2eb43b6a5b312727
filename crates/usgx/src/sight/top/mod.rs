//! `usgx top`: a machine at work, in the manner of htop.
//!
//! [`model`] knows, [`keys`] change it, [`screen`] draws it; this file reads the machine and the keyboard in turn.
//! It ends processes with the rights of whoever runs it; the machine has no part in that.

mod keys;
mod model;
mod screen;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use usgx_sys::pidfd::ProcessHandle;

use super::names;
use crate::machine;
use keys::Act;
use model::Model;

/// Shows the machine at `socket` until the person leaves.
///
/// # Errors
///
/// If no machine answers at first, or there is no terminal.
pub(crate) fn run(socket: &Path, interval: Duration) -> Result<ExitCode> {
    let terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    ensure!(terminal, "this is no terminal; 'usgx stats' prints the numbers");
    let users = names::Users::read();
    let mut top = Top { socket, users, model: Model::default(), aimed: None };
    top.model.update(machine::snapshot(socket)?, |uid| top.users.name(uid), names::process);
    let mut terminal = ratatui::try_init()?;
    let result = top.attend(&mut terminal, interval);
    ratatui::try_restore()?;
    result.map(|()| ExitCode::SUCCESS)
}

struct Top<'a> {
    socket: &'a Path,
    users: names::Users,
    model: Model,
    /// The process that [`Model::doomed`] names: taken hold of before the question, so that the answer is about it.
    aimed: Option<ProcessHandle>,
}

impl Top<'_> {
    fn attend(&mut self, terminal: &mut DefaultTerminal, interval: Duration) -> Result<()> {
        let mut next = Instant::now() + interval;
        loop {
            terminal.draw(|frame| screen::draw(frame, &self.model))?;
            let mut refresh = false;
            if event::poll(next.saturating_duration_since(Instant::now()))?
                && let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                match keys::press(&mut self.model, key) {
                    Act::Quit => return Ok(()),
                    Act::Refresh => {
                        terminal.clear()?;
                        refresh = true;
                    }
                    act => self.act(act),
                }
            }
            if refresh || Instant::now() >= next {
                next = Instant::now() + interval;
                self.read();
            }
        }
    }

    fn read(&mut self) {
        if self.model.paused {
            return;
        }
        match machine::snapshot(self.socket) {
            Ok(stats) => self.model.update(stats, |uid| self.users.name(uid), names::process),
            // It may come back.
            Err(error) => self.model.message = Some(format!("{error:#}")),
        }
    }

    fn act(&mut self, act: Act) {
        let aimed = self.aimed.take();
        match act {
            Act::None | Act::Quit | Act::Refresh => {
                self.aimed = aimed;
                return;
            }
            Act::Aim => {
                let Some(doomed) = &self.model.doomed else { return };
                match ProcessHandle::open(doomed.pid) {
                    Ok(handle) => {
                        self.aimed = Some(handle);
                        return;
                    }
                    Err(error) => self.model.message = Some(format!("process {}: {error}", doomed.pid)),
                }
            }
            Act::Terminate | Act::Kill => {
                if let (Some(handle), Some(doomed)) = (aimed, &self.model.doomed) {
                    let (sent, name) = match act {
                        Act::Kill => (handle.kill(), "SIGKILL"),
                        _ => (handle.terminate(), "SIGTERM"),
                    };
                    self.model.message = Some(match sent {
                        Ok(()) => format!("{name} sent to process {}", doomed.pid),
                        Err(error) => format!("process {} does not get {name}: {error}", doomed.pid),
                    });
                }
            }
            Act::Spare => {}
        }
        self.model.doomed = None;
    }
}
