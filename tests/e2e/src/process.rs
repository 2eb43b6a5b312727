//! Processes with time limits.
//!
//! Every process that a test starts gets a mark of its own in its environment, which its descendants inherit:
//! so a test can end exactly what it started, whatever process group or session that is in by now, and can ask
//! what is left of it.

use std::io::{Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// The variable that carries the mark.
const MARK: &str = "USGX_E2E_MARK";
/// How long output may stay open after the process has ended: not for ever, however slow the computer is.
const AFTERMATH: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// Held shared while a process starts, and alone while a file is written that is to be executed: a child has all our
/// files open until it is its program, and nobody can execute what somebody may still write to.
static STARTING: RwLock<()> = RwLock::new(());

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) pid: u32,
}

/// A process under way. Dropped, it is killed with all that it started.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Arc<Stream>,
    stderr: Arc<Stream>,
    mark: String,
    shown: String,
    ended: bool,
}

/// What came out of a pipe so far.
#[derive(Default)]
struct Stream {
    state: Mutex<StreamState>,
    changed: Condvar,
}

#[derive(Default)]
struct StreamState {
    bytes: Vec<u8>,
    closed: bool,
}

/// Writes a file that is to be executed.
pub(crate) fn write_program(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let _alone = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    fs::write(path, content)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command, input: &[u8], limit: Duration) -> Result<Outcome> {
    let mut process = Process::start(command)?;
    process.write(input)?;
    process.finish(limit)
}

impl Process {
    /// Starts a command in a process group of its own, its streams being pipes.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let shown = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        command.env(MARK, &mark).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = {
            let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
            command.spawn().with_context(|| format!("cannot start `{shown}`"))?
        };
        let stdin = child.stdin.take();
        let stdout = Stream::collect(child.stdout.take());
        let stderr = Stream::collect(child.stderr.take());
        Ok(Self { child, stdin, stdout, stderr, mark, shown, ended: false })
    }

    /// The process's ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input. A reader that is gone is no error: the test will see why.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        match stdin.write_all(bytes).and_then(|()| stdin.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Sends a signal to the process alone.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.as_pid()?, signal)?)
    }

    /// Waits until its standard output contains a text.
    pub(crate) fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        self.wait_for_count(text, 1, limit)
    }

    /// Waits until its standard output contains a text so many times.
    pub(crate) fn wait_for_count(&mut self, text: &str, count: usize, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let (found, closed) = self.stdout.look(|state| {
                (String::from_utf8_lossy(&state.bytes).matches(text).count() >= count, state.closed)
            });
            if found {
                return Ok(());
            }
            if closed || Instant::now() >= deadline {
                let why = if closed { "it ended" } else { "time is up" };
                bail!("`{}` did not print {text:?} {count} times: {why}\n{}", self.shown, self.so_far());
            }
            self.stdout.wait_a_moment();
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// How often its standard output contains a text by now.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.stdout.text().matches(text).count()
    }

    /// Its standard output so far.
    pub(crate) fn text(&self) -> String {
        self.stdout.text()
    }

    /// Waits for its end, and kills it when time is up.
    pub(crate) fn finish(self, limit: Duration) -> Result<Outcome> {
        self.finish_within(limit, AFTERMATH)
    }

    fn finish_within(mut self, limit: Duration, aftermath: Duration) -> Result<Outcome> {
        self.stdin = None;
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                let left = self.left_over();
                self.kill_all();
                bail!(
                    "`{}` did not end within {limit:?}; it had these processes: {}\n{}",
                    self.shown,
                    left.join(", "),
                    self.so_far()
                );
            }
            thread::sleep(POLL);
        };
        self.ended = true;
        let deadline = Instant::now() + aftermath;
        while !(self.stdout.look(|state| state.closed) && self.stderr.look(|state| state.closed)) {
            if Instant::now() >= deadline {
                let left = self.left_over().join(", ");
                self.kill_all();
                bail!(
                    "`{}` has ended ({status}), but its output is still open; left are: {left}\n{}",
                    self.shown,
                    self.so_far()
                );
            }
            self.stdout.wait_a_moment();
        }
        let take = |stream: &Stream| stream.look(|state| std::mem::take(&mut state.bytes));
        Ok(Outcome { status, stdout: take(&self.stdout), stderr: take(&self.stderr), pid: self.child.id() })
    }

    /// Whether a panic has left its message on standard error.
    pub(crate) fn has_panicked(&self) -> bool {
        self.stderr.text().contains(" panicked at ")
    }

    /// Processes that carry this one's mark, as `PID NAME`.
    pub(crate) fn left_over(&self) -> Vec<String> {
        left_over(&self.mark)
    }

    /// The mark, to ask what is left after the end.
    pub(crate) fn mark(&self) -> String {
        self.mark.clone()
    }

    fn so_far(&self) -> String {
        format!("--- stdout so far\n{}--- stderr so far\n{}", self.stdout.text(), self.stderr.text())
    }

    fn as_pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process has a positive number")
    }

    fn kill_all(&mut self) {
        if !self.ended {
            // Not yet waited for, so the number is still its own. An error means that it has just ended.
            drop(self.child.kill());
            drop(self.child.wait());
            self.ended = true;
        }
        for pid in marked(&self.mark) {
            // An error means that it has ended by itself.
            let _ended = kill_process(pid, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A test that failed by what the panic has caused would not tell of it.
        if self.has_panicked() {
            eprintln!("`{}` has panicked\n{}", self.shown, self.so_far());
        }
        self.kill_all();
    }
}

impl Stream {
    /// Reads a pipe to its end, in a thread of its own.
    fn collect(pipe: Option<impl Read + Send + 'static>) -> Arc<Self> {
        let stream = Arc::new(Self::default());
        let reader = Arc::clone(&stream);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            if let Some(mut pipe) = pipe {
                while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                    reader.look(|state| state.bytes.extend_from_slice(&buffer[..length]));
                    reader.changed.notify_all();
                }
            }
            reader.look(|state| state.closed = true);
            reader.changed.notify_all();
        });
        stream
    }

    fn text(&self) -> String {
        self.look(|state| String::from_utf8_lossy(&state.bytes).into_owned())
    }

    fn look<T>(&self, look: impl FnOnce(&mut StreamState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wait_a_moment(&self) {
        let guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout(guard, 4 * POLL));
    }
}

/// Processes that carry a mark, as `PID NAME`.
pub(crate) fn left_over(mark: &str) -> Vec<String> {
    let name = |pid: Pid| {
        let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).unwrap_or_default();
        format!("{} {}", pid.as_raw_nonzero(), name.trim())
    };
    marked(mark).into_iter().map(name).collect()
}

fn marked(mark: &str) -> Vec<Pid> {
    let entry = format!("{MARK}={mark}");
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let carries = |number: &i32| {
        let environment = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == entry.as_bytes())
    };
    numbers.filter(carries).filter_map(Pid::from_raw).collect()
}

impl Outcome {
    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub(crate) fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Everything, for messages.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("{}\n--- stdout\n{}", self.status, self.text());
        if !self.stderr.is_empty() {
            text += &format!("--- stderr\n{}", self.errors());
        }
        text
    }

    /// What its parent learns: exit status or signal.
    pub(crate) fn end(&self) -> (Option<i32>, Option<i32>) {
        (self.status.code(), self.status.signal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long anything may take before a test fails.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn input_output_and_status_are_passed() {
        let outcome = run(&mut shell("cat; echo oops >&2; exit 3"), b"hello", PATIENCE).unwrap();
        assert_eq!((outcome.text(), outcome.errors()), ("hello".to_owned(), "oops\n".to_owned()));
        assert_eq!(outcome.end(), (Some(3), None));
    }

    #[test]
    fn a_time_limit_ends_the_process_and_what_it_left_elsewhere() {
        let process = Process::start(&mut shell("setsid sleep 600 & exec sleep 600")).unwrap();
        let mark = process.mark();
        let error = process.finish(Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("did not end within"), "{error}");
        let deadline = Instant::now() + PATIENCE;
        while !left_over(&mark).is_empty() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        assert_eq!(left_over(&mark), [""; 0]);
    }

    #[test]
    fn output_that_stays_open_is_reported() {
        let process = Process::start(&mut shell("sleep 600 & exit 0")).unwrap();
        let error = process.finish_within(PATIENCE, Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("still open"), "{error}");
    }

    #[test]
    fn lines_can_be_awaited() {
        let mut process = Process::start(&mut shell("echo one; read x; echo $x")).unwrap();
        process.wait_for("one\n", PATIENCE).unwrap();
        process.write(b"two\n").unwrap();
        process.wait_for("two\n", PATIENCE).unwrap();
        assert_eq!(process.count("o"), 2);
        assert!(process.wait_for("three", PATIENCE).is_err());
    }
}
