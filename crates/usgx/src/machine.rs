//! `usgx machine`: a machine that several programs share, behind a socket.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use usgx_machine::client::{self, Fate, Request, Response};
use usgx_machine::{EventRecord, Machine, MachineError, StatsSnapshot};
use usgx_sys::attendant::{self, Inherited, Role};
use usgx_sys::probe;

use crate::engine::{self, Config};
use crate::size::Size;
use crate::statistics::{Statistics, grouped};

/// The socket's permissions: for its user, or for everybody.
const PRIVATE: u32 = 0o600;
const SHARED: u32 = 0o666;
const PAGE_SIZE: u64 = 4096;

/// The socket that is meant when none is named.
///
/// # Errors
///
/// If there is no directory that it could be in.
pub(crate) fn default_socket() -> Result<PathBuf> {
    if probe::effective_user() == 0 {
        return Ok("/run/usgx.sock".into());
    }
    let directory = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let directory =
        directory.context("XDG_RUNTIME_DIR is not set; say where the socket is with --socket PATH")?;
    Ok(directory.join("usgx.sock"))
}

/// How a machine is served.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// To programs of all users.
    pub(crate) shared: bool,
    /// Its metrics, if they are served.
    pub(crate) metrics: Option<Metrics>,
}

/// Where a machine's metrics are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metrics {
    /// The address.
    pub(crate) address: SocketAddr,
    /// It may be one that other computers reach.
    pub(crate) anywhere: bool,
}

/// Starts a machine.
///
/// # Errors
///
/// Why it cannot be.
pub(crate) fn start(
    config: Config,
    service: Service,
    foreground: bool,
    inherited: Inherited,
) -> Result<ExitCode> {
    config.check()?;
    // The machine leaves this directory.
    let socket = std::path::absolute(&service.socket).context("the path of the socket")?;
    let service = Service { socket: socket.clone(), ..service };
    if foreground {
        let machine = open(config, &service)?;
        eprintln!("usgx: the machine is at {}; Ctrl-C ends it", socket.display());
        machine.run_until_stopped();
        return Ok(ExitCode::SUCCESS);
    }
    let swap = config.swap.as_deref().map(std::path::absolute).transpose().context("the path of --swap")?;
    let config = Config { swap, ..config };
    let (mut line, mut machine_line) = UnixStream::pair()?;
    if let Role::Companion = attendant::fork_detached().context("starting the machine")? {
        drop(line);
        let opened = attendant::settle(inherited, crate::is_verbose());
        attendant::name_thread(c"usgx-machine");
        return match opened.map_err(anyhow::Error::from).and_then(|()| open(config, &service)) {
            Ok(machine) => {
                machine_line.write_all(READY.as_bytes())?;
                drop(machine_line);
                machine.run_until_stopped();
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                // Whoever started it is told by its other process.
                let _ = machine_line.write_all(format!("{error:#}").as_bytes());
                Ok(ExitCode::FAILURE)
            }
        };
    }
    drop(machine_line);
    let mut answer = String::new();
    line.read_to_string(&mut answer).context("the machine has died")?;
    ensure!(!answer.is_empty(), "the machine has died at its start");
    ensure!(answer == READY, "{answer}");
    println!("The machine is at {0}. Use it with: usgx run --machine {0} -- PROGRAM", socket.display());
    Ok(ExitCode::SUCCESS)
}

/// The word by which a machine says that it can be used.
const READY: &str = "ready";

fn open(config: Config, service: &Service) -> Result<Machine> {
    let machine = engine::build(config)?;
    let mode = if service.shared { SHARED } else { PRIVATE };
    machine.listen(&service.socket, mode).map_err(|error| match &error {
        MachineError::Listen { source, .. } if *source == usgx_sys::Errno::ADDRINUSE => {
            anyhow!("a machine is at {} already; 'usgx machine status' shows it", service.socket.display())
        }
        _ => anyhow!("{error}"),
    })?;
    if let Some(metrics) = service.metrics {
        machine.serve_metrics(metrics.address, metrics.anywhere).map_err(|error| match &error {
            MachineError::MetricsAddress(_) => anyhow!("{error}: --metrics-anywhere says it"),
            _ => anyhow!("{error}"),
        })?;
    }
    Ok(machine)
}

/// Asks a machine; `what` it does not do if it refuses.
fn ask(socket: &Path, request: Request, what: &str) -> Result<Response> {
    match client::control(socket, request) {
        Ok(Response::Refused { reason }) => bail!("the machine does not {what}: {reason}"),
        Ok(response) => Ok(response),
        Err(error) => bail!("{error}; 'usgx machine start' starts one"),
    }
}

/// The machine has not answered what it was asked.
fn misunderstood(socket: &Path) -> anyhow::Error {
    anyhow!("the machine at {} answers something else", socket.display())
}

/// Stops a machine.
///
/// # Errors
///
/// If none answers, or it does not stop for this user.
pub(crate) fn stop(socket: &Path) -> Result<ExitCode> {
    let Response::Stopping = ask(socket, Request::Stop, "stop")? else { return Err(misunderstood(socket)) };
    Ok(ExitCode::SUCCESS)
}

/// Has a machine evict all that it can.
///
/// # Errors
///
/// If none answers, or it does not do that for this user.
pub(crate) fn shrink(socket: &Path) -> Result<ExitCode> {
    let Response::Shrunk { pages } = ask(socket, Request::Shrink, "shrink")? else {
        return Err(misunderstood(socket));
    };
    println!("{} of EPC became free", Size(pages * PAGE_SIZE));
    Ok(ExitCode::SUCCESS)
}

/// Reports machine checks on EPC pages to a machine.
///
/// # Errors
///
/// If none answers, it does not take reports of this user, or it has no such page.
pub(crate) fn poison(socket: &Path, pages: &[u32]) -> Result<ExitCode> {
    for page in pages.iter().copied() {
        let Response::Poisoned { fate } = ask(socket, Request::Poison { page }, "poison")? else {
            return Err(misunderstood(socket));
        };
        match fate {
            Fate::Retired => println!("page {page} was free and is retired"),
            Fate::InUse => println!("page {page} is in use; it will be retired when it is given back"),
            Fate::Known => println!("page {page} was broken before"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a machine's numbers.
///
/// # Errors
///
/// If none answers.
pub(crate) fn snapshot(socket: &Path) -> Result<StatsSnapshot> {
    let Response::Status { stats } = ask(socket, Request::Status, "tell")? else {
        return Err(misunderstood(socket));
    };
    Ok(*stats)
}

/// Listens to what happens in a machine.
///
/// # Errors
///
/// If none answers.
pub(crate) fn listen(
    socket: &Path,
) -> Result<impl Iterator<Item = Result<(u64, Vec<EventRecord>), MachineError>> + use<>> {
    client::events(socket).map_err(|error| anyhow!("{error}; 'usgx machine start' starts one"))
}

/// Shows a machine.
///
/// # Errors
///
/// If none answers.
pub(crate) fn status(socket: &Path, json: bool) -> Result<ExitCode> {
    let stats = snapshot(socket)?;
    if json {
        println!("{}", Statistics(stats).json());
    } else {
        print!("{}", describe(stats));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(stats: StatsSnapshot) -> String {
    let clients = stats.clients.clone();
    let (up, enclaves) = (stats.uptime_seconds, stats.enclaves);
    let statistics = Statistics(stats);
    let used = Size(statistics.epc_used_bytes());
    let mut text = format!("up {up} s, {enclaves} enclaves, {used} of EPC in use\n{}", statistics.table());
    if !clients.is_empty() {
        text.push_str("\n     PID      USER  ENCLAVES       IN EPC      EVICTED       FAULTS\n");
    }
    for client in clients {
        text.push_str(&format!(
            "{:>8}  {:>8}  {:>8} {:>12} {:>12} {:>12}\n",
            client.pid,
            client.uid,
            client.enclaves,
            Size(client.resident_pages * PAGE_SIZE).to_string(),
            Size(client.evicted_pages * PAGE_SIZE).to_string(),
            grouped(client.epc_faults),
        ));
    }
    text
}
