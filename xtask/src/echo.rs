//! Standard error of a command, passed on as it comes and remembered: the last lines say why a build failed.
//!
//! Only where ours is no terminal: there nobody has watched, and logs of CI are cut in the middle. On a terminal
//! the command has it for itself, with colours and progress.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How many lines are remembered: a compiler's message with its source lines.
const LINES: usize = 20;
/// How long the rest may take after the command's end. What it left running may hold the pipe open for ever.
const AFTERMATH: Duration = Duration::from_secs(10);

/// The last lines of a command's standard error.
pub(crate) struct Echo {
    last: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Echo {
    /// Starts a command whose standard error is to be remembered.
    pub(crate) fn start(command: &mut Command) -> io::Result<(Child, Self)> {
        if io::stderr().is_terminal() {
            return Ok((command.spawn()?, Self { last: Arc::default(), reader: None }));
        }
        Self::piped(command)
    }

    fn piped(command: &mut Command) -> io::Result<(Child, Self)> {
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let last = Arc::default();
        let reader = child.stderr.take().map(|errors| {
            let last = Arc::clone(&last);
            thread::spawn(move || pass_on(errors, &last))
        });
        Ok((child, Self { last, reader }))
    }

    /// The last lines, once the command has ended; none if they went to a terminal.
    pub(crate) fn last_lines(self) -> Vec<String> {
        self.last_lines_within(AFTERMATH)
    }

    fn last_lines_within(self, bound: Duration) -> Vec<String> {
        let deadline = Instant::now() + bound;
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        self.last.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

fn pass_on(errors: ChildStderr, last: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(errors).split(b'\n') {
        let Ok(mut line) = line else { return };
        let text = String::from_utf8_lossy(&line).into_owned();
        line.push(b'\n');
        // If ours is closed, there is nobody to tell; the command's is read on, so that it does not block.
        drop(io::stderr().write_all(&line));
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LINES {
            last.pop_front();
        }
        last.push_back(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Child, Echo) {
        Echo::piped(Command::new("sh").args(["-c", script]).stdout(Stdio::piped())).unwrap()
    }

    #[test]
    fn the_last_lines_are_remembered() {
        let (mut child, errors) = shell("for number in $(seq 100); do echo \"line $number\" >&2; done");
        assert!(child.wait().unwrap().success());
        let expected: Vec<_> = (101 - LINES..=100).map(|number| format!("line {number}")).collect();
        assert_eq!(errors.last_lines_within(Duration::from_secs(60)), expected);
    }

    #[test]
    fn what_is_left_running_is_not_waited_for() {
        let (mut child, errors) = shell("echo why >&2; sleep 600 >&1 & echo $!; exit 1");
        let mut sleeper = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut sleeper).unwrap();
        assert!(!child.wait().unwrap().success());
        let start = Instant::now();
        while errors.last.lock().unwrap().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(60), "the line does not come");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(errors.last_lines_within(Duration::from_millis(100)), ["why"]);
        let killed = Command::new("kill").arg(sleeper.trim()).status().unwrap();
        assert!(killed.success());
    }
}
