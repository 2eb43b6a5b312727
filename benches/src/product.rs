//! The product as a user has it: a machine in a process of its own, and a program under `usgx run`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use usgx_machine::StatsSnapshot;
use usgx_machine::client::{Request, Response, control};

use crate::guest::image::{Image, PAGE_SIZE};

/// How long a machine has to start.
const START: Duration = Duration::from_secs(60);
/// How long a machine has for something that it does in the background.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the product's binary is.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("USGX_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("usgx"));
    beside
        .into_iter()
        .find(|path| path.is_file())
        .context("there is no usgx beside this program: build it, or name it in USGX_BIN")
}

/// A running machine. Ends with this value.
pub(crate) struct Machine {
    process: Child,
    directory: tempfile::TempDir,
    binary: PathBuf,
}

impl Machine {
    /// Starts a machine with an EPC of so many pages.
    pub(crate) fn start(epc_pages: usize) -> Result<Rc<Self>> {
        Self::start_with(epc_pages, &[])
    }

    /// Starts one with more options.
    pub(crate) fn start_with(epc_pages: usize, options: &[&str]) -> Result<Rc<Self>> {
        let binary = binary()?;
        let directory = tempfile::Builder::new().prefix("usgx-bench-").tempdir()?;
        let complaints = directory.path().join("stderr");
        let process = Command::new(&binary)
            .args([
                "machine",
                "start",
                "--foreground",
                "--epc",
                &(epc_pages * PAGE_SIZE).to_string(),
                "--socket",
            ])
            .arg(socket(directory.path()))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&complaints)?)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut machine = Self { process, directory, binary };
        let start = Instant::now();
        while machine.stats().is_err() {
            ensure!(start.elapsed() < START, "the machine does not answer");
            if let Some(status) = machine.process.try_wait()? {
                bail!("the machine has ended: {status}: {}", fs::read_to_string(complaints)?.trim());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(Rc::new(machine))
    }

    /// Its counters.
    pub(crate) fn stats(&self) -> Result<StatsSnapshot> {
        match control(&socket(self.directory.path()), Request::Status)? {
            Response::Status { stats } => Ok(*stats),
            other => bail!("the machine says {other:?}"),
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    /// Has the machine that listens at `socket` evict all that it can.
    pub(crate) fn shrink(socket: &Path) -> Result<()> {
        match control(socket, Request::Shrink)? {
            Response::Shrunk { .. } => Ok(()),
            other => bail!("the machine says {other:?}"),
        }
    }

    /// Waits until the counters are as wanted.
    pub(crate) fn wait_until(&self, wanted: impl Fn(&StatsSnapshot) -> bool) -> Result<()> {
        let start = Instant::now();
        while !wanted(&self.stats()?) {
            ensure!(start.elapsed() < PATIENCE, "the machine is not what it should be: {:#?}", self.stats()?);
            sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    /// How long the thread with this name has had a processor for.
    pub(crate) fn thread_time(&self, name: &str) -> Result<Duration> {
        for task in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.trim() == name {
                let times = fs::read_to_string(task.join("schedstat"))?;
                let nanoseconds = times.split(' ').next().unwrap_or_default();
                return Ok(Duration::from_nanos(nanoseconds.parse().context("schedstat")?));
            }
        }
        bail!("the machine has no thread {name}")
    }

    /// Bytes of memory that it has: its own, and those of the memory files that it shares with programs.
    pub(crate) fn memory(&self) -> Result<u64> {
        let process = format!("/proc/{}", self.process.id());
        let rollup = fs::read_to_string(format!("{process}/smaps_rollup"))?;
        let anonymous = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"));
        let kibibytes = anonymous.and_then(|line| line.split_whitespace().next()).context("no Anonymous")?;
        let mut bytes = kibibytes.parse::<u64>()? * 1024;
        for fd in fs::read_dir(format!("{process}/fd"))? {
            let path = fd?.path();
            let is_memory = fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"));
            if is_memory {
                bytes += fs::metadata(&path)?.blocks() * 512;
            }
        }
        Ok(bytes)
    }

    /// [`memory`](Self::memory), when the machine has given back what it keeps for a moment in case that it is needed
    /// again: when there has not become less for a while.
    pub(crate) fn idle_memory(&self) -> Result<u64> {
        let (start, mut least) = (Instant::now(), self.memory()?);
        while start.elapsed() < PATIENCE {
            // Longer than the two seconds in which the machine notices that nobody needs it.
            sleep(Duration::from_millis(2500));
            let now = self.memory()?;
            if now >= least {
                return Ok(now);
            }
            least = now;
        }
        bail!("the machine's memory does not come to rest")
    }

    /// Starts the measured program under this machine.
    pub(crate) fn program(self: &Rc<Self>) -> Result<Program> {
        let mut process = Command::new(&self.binary)
            .args(["run", "--machine"])
            .arg(socket(self.directory.path()))
            .arg("--")
            .arg(std::env::current_exe()?)
            .arg("--guest")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take().context("no standard input")?;
        let output = BufReader::new(process.stdout.take().context("no standard output")?);
        Ok(Program { process, input: Some(input), output, machine: Rc::clone(self) })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if control(&socket(self.directory.path()), Request::Stop).is_err() {
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("socket")
}

/// The measured program. Ends with this value.
pub(crate) struct Program {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    // Ends after the program has.
    machine: Rc<Machine>,
}

impl Program {
    /// Has the program do something; how long it took.
    pub(crate) fn step(&mut self, step: &str) -> Result<Duration> {
        let input = self.input.as_mut().context("the program has ended")?;
        writeln!(input, "{step}")?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        let nanoseconds = answer.trim().parse();
        nanoseconds.map(Duration::from_nanos).with_context(|| format!("the program says {:?}", answer.trim()))
    }

    /// Signs an image and has the program hold its pages ready.
    pub(crate) fn prepare(&mut self, name: &str, image: Image) -> Result<()> {
        let path = self.machine.directory.path().join(name);
        fs::write(&path, sign(&image))?;
        let Image { data_pages, measured, heap_pages } = image;
        self.step(&format!("prepare {name} {data_pages} {measured} {heap_pages} {}", path.display()))
            .map(drop)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.process.wait();
    }
}

fn sign(image: &Image) -> Vec<u8> {
    let mut described = usgx_testkit::Image::new(0, image.size() as u64);
    for region in image.regions() {
        for index in region.first..region.first + region.count {
            let mut page = usgx_isa::Page::ZERO;
            if region.measured {
                Image::fill(index, &mut page.0);
            }
            described.push(index as u64, region.secinfo, page, region.measured);
        }
    }
    described.sigstruct()
}
