//! `usgx demo`: an enclave of 64 MiB at work in an EPC of 16 MiB, and what that takes.
//!
//! The demonstration starts this executable again under `usgx run`, as an ordinary program
//! ([`usgx_example_host`], which knows nothing of usgx). It reads the program's progress from one pipe and the
//! machine's numbers from another, and shows both in one line.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use usgx_example_host::{Enclave, Progress, work};
use usgx_sys::attendant::Bequest;

use crate::size::Size;
use crate::statistics::{Statistics, grouped};

/// A quarter of what the enclave works on.
const EPC: &str = "16M";
/// Between two updates of the line on a terminal.
const REFRESH: Duration = Duration::from_millis(100);

/// A line from one of the two pipes.
enum News {
    Program(String),
    Machine(String),
}

/// Shows the demonstration.
///
/// # Errors
///
/// If the program cannot be started. That it fails is told by the exit status.
pub(crate) fn show() -> Result<ExitCode> {
    println!("An enclave with a heap of 64 MiB, on a machine with an EPC of 16 MiB.");
    println!("The program fills the heap, and then checks every byte from inside and outside.\n");
    let begun = Instant::now();
    let (mut child, news) = start()?;
    let mut view = View::new();
    for item in news {
        match item {
            News::Program(line) => view.program(&line),
            News::Machine(line) => {
                if let Some(statistics) = Statistics::from_json(&line) {
                    view.machine(statistics);
                }
            }
        }
        view.refresh();
    }
    let status = child.wait().context("waiting for the program")?;
    view.finish();
    let seconds = begun.elapsed().as_secs_f64();
    let Some(outcome) = view.outcome.as_ref().filter(|outcome| status.success() && outcome.wrong == 0) else {
        match &view.outcome {
            Some(outcome) => println!("{} of the values checked were wrong.", grouped(outcome.wrong)),
            None => println!("The program ended early: {status}. 'usgx doctor' may know why."),
        }
        return Ok(ExitCode::FAILURE);
    };
    println!("\n{}", view.statistics.table());
    println!("{}", conclusion(outcome, &view.statistics, seconds));
    Ok(ExitCode::SUCCESS)
}

/// What has just happened, in one sentence.
fn conclusion(outcome: &Outcome, statistics: &Statistics, seconds: f64) -> String {
    let (total, _) = statistics.epc_bytes();
    let counts = &statistics.0;
    format!(
        "In {seconds:.1} s an unmodified SGX program worked on 64 MiB of enclave memory with {} of EPC: {} pages \
         were encrypted and written back, {} were loaded and verified, and all {} bytes checked were right.",
        Size(total),
        grouped(counts.evictions),
        grouped(counts.loads),
        grouped(outcome.checked),
    )
}

/// Starts the program under `usgx run`, with a thread for each pipe.
fn start() -> Result<(Child, Receiver<News>)> {
    let executable = std::env::current_exe().context("finding this executable")?;
    let (feed, feed_end) = io::pipe()?;
    let feed_end = Bequest::new(feed_end.into())?;
    let mut command = Command::new(&executable);
    command.args(["run", "--epc", EPC, "--feed", &feed_end.number().to_string(), "--"]);
    command.arg(&executable).arg("demo-program");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let spawned = command.spawn();
    // The other end belongs to the child now; the pipe must end with it.
    drop(feed_end);
    let mut child = spawned.context("starting the program")?;
    let output = child.stdout.take().context("the program's output")?;
    let (sender, news) = mpsc::channel();
    forward(File::from(std::os::fd::OwnedFd::from(feed)), sender.clone(), News::Machine);
    forward(output, sender, News::Program);
    Ok((child, news))
}

fn forward(pipe: impl io::Read + Send + 'static, sender: Sender<News>, wrap: fn(String) -> News) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(wrap(line)).is_err() {
                return;
            }
        }
    });
}

/// What the program says when it is done.
#[derive(Debug, Eq, PartialEq)]
struct Outcome {
    checked: u64,
    wrong: u64,
}

/// What is known so far, and the line that shows it.
struct View {
    terminal: bool,
    shown: Option<Instant>,
    phase: String,
    done: u64,
    total: u64,
    statistics: Statistics,
    /// EPC in use, while the enclave was there.
    used: u64,
    outcome: Option<Outcome>,
}

impl View {
    fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            shown: None,
            phase: String::new(),
            done: 0,
            total: 0,
            statistics: Statistics::default(),
            used: 0,
            outcome: None,
        }
    }

    /// Takes a line that [`program`] has printed.
    fn program(&mut self, line: &str) {
        if let Some((phase, done, total)) = parse_progress(line) {
            if phase != self.phase {
                self.end_of_phase();
                self.phase = phase.to_owned();
            }
            (self.done, self.total) = (done, total);
        } else if let Some(outcome) = parse_outcome(line) {
            self.outcome = Some(outcome);
        }
    }

    /// Takes the machine's numbers.
    fn machine(&mut self, statistics: Statistics) {
        if statistics.0.enclaves > 0 {
            self.used = statistics.epc_used_bytes();
        }
        self.statistics = statistics;
    }

    fn refresh(&mut self) {
        if self.terminal
            && !self.phase.is_empty()
            && self.shown.is_none_or(|shown| shown.elapsed() >= REFRESH)
        {
            print!("\r{self}\x1b[K");
            let _ = io::stdout().flush();
            self.shown = Some(Instant::now());
        }
    }

    /// Leaves the last line of a phase standing.
    fn end_of_phase(&mut self) {
        if !self.phase.is_empty() {
            println!(
                "{}{self}{}",
                if self.terminal { "\r" } else { "" },
                if self.terminal { "\x1b[K" } else { "" }
            );
            self.shown = None;
        }
    }

    fn finish(&mut self) {
        self.end_of_phase();
        self.phase.clear();
    }
}

impl fmt::Display for View {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "  {:<20} {:>6} of {:>6}   EPC {:>8} of {}   {:>7} evictions   {:>7} loads",
            self.phase,
            grouped(self.done),
            grouped(self.total),
            Size(self.used).to_string(),
            Size(self.statistics.epc_bytes().0),
            grouped(self.statistics.0.evictions),
            grouped(self.statistics.0.loads),
        )
    }
}

/// `progress DONE TOTAL PHASE`
fn parse_progress(line: &str) -> Option<(&str, u64, u64)> {
    let mut words = line.strip_prefix("progress ")?.splitn(3, ' ');
    let (done, total) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some((words.next()?, done, total))
}

/// `outcome CHECKED WRONG`
fn parse_outcome(line: &str) -> Option<Outcome> {
    let (checked, wrong) = line.strip_prefix("outcome ")?.split_once(' ')?;
    Some(Outcome { checked: checked.parse().ok()?, wrong: wrong.parse().ok()? })
}

/// The program of the demonstration: hidden behind `usgx demo-program`, for [`show`] to start.
///
/// # Errors
///
/// Whatever the enclave does not do.
pub(crate) fn program() -> Result<ExitCode> {
    let enclave = Enclave::load()?;
    let outcome =
        work(&enclave, &mut |Progress { phase, done, total }| println!("progress {done} {total} {phase}"))?;
    println!("outcome {} {}", outcome.checked, outcome.wrong);
    Ok(ExitCode::from(u8::from(outcome.wrong != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_prints_is_understood() {
        assert_eq!(parse_progress("progress 64 16384 checking inside"), Some(("checking inside", 64, 16384)));
        assert_eq!(parse_progress("progress x 1 y"), None);
        assert_eq!(parse_outcome("outcome 100 2"), Some(Outcome { checked: 100, wrong: 2 }));
        assert_eq!(parse_outcome("outcome 100"), None);
    }

    #[test]
    fn the_view_follows_the_program() {
        let mut view = View::new();
        view.program("progress 64 128 filling");
        assert_eq!((view.phase.as_str(), view.done, view.total), ("filling", 64, 128));
        view.program("something else");
        view.program("outcome 9 0");
        assert_eq!(view.outcome, Some(Outcome { checked: 9, wrong: 0 }));
    }
}
