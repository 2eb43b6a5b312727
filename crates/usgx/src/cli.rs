//! The command line: what can be said, and help that teaches it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::engine;
use crate::size::Size;

/// Run unmodified SGX programs on any x86-64 Linux, with a real EPC limit and real paging.
#[derive(Debug, Parser)]
#[command(name = "usgx", version, after_help = TOP_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const TOP_HELP: &str = "\
Start here:
  usgx doctor                          can this machine do it?
  usgx demo                            see 64 MiB of enclave in 16 MiB of EPC
  usgx run -- ./my-sgx-app             run a program that needs SGX
  usgx run --epc 16M --stats -- ./app  the same with little EPC, and what that costs

usgx gives no secrecy: whoever runs the machine can read every enclave. It is for building, testing, sizing
and studying. USGX_LOG=debug shows what the attendant and the machine do.";

const RUN_HELP: &str = "\
Examples:
  usgx run -- ./my-sgx-app --port 8080
  usgx run --epc 16M --stats -- ./my-sgx-app      how does it do with 16 MiB of EPC?
  usgx run --stats-json out.json -- make test     every program that make starts sees SGX as well
  usgx run --machine /run/usgx.sock -- ./app      share the EPC of a machine with other programs
  usgx run --fault-around 15 -- ./my-sgx2-app     a fault for 16 pages of a growing heap instead of for one

The program keeps its process ID, terminal, signals and exit status. usgx itself exits with 127 if the
command does not exist, 126 if it cannot be executed, and 125 if usgx cannot run it.

What is different under usgx run:
  - Ordinary users' programs run with no_new_privs: sudo and other setuid programs gain nothing.
  - A program that a tracer outside of the run holds cannot run: instead of 'strace usgx run -- PROG' write
    'usgx run -- strace PROG'.
  - 16 descriptor numbers just below 1024 (or below 'ulimit -n', if that is less) are in use.
  - 32-bit programs cannot run.";

const MACHINE_HELP: &str = "\
A machine of its own is for programs that share one EPC:
  usgx machine start --epc 64M
  usgx run --machine /run/usgx.sock -- ./one &
  usgx run --machine /run/usgx.sock -- ./two &
  usgx machine status
  usgx machine stop

Without --socket the machine is at $XDG_RUNTIME_DIR/usgx.sock, for root at /run/usgx.sock.";

const SIGHT_HELP: &str = "\
Without --machine it is the one that 'usgx machine start' starts. Whoever may use a machine may see its numbers;
its events are for its own user and for root, as they tell which page of an enclave is touched when.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program that finds SGX
    #[command(after_help = RUN_HELP)]
    Run(RunArguments),
    /// Start, stop or look at a machine that several programs share
    #[command(subcommand, after_help = MACHINE_HELP)]
    Machine(MachineCommand),
    /// Show a machine's numbers: its EPC, its users, its enclaves, and how long things take
    #[command(after_help = SIGHT_HELP)]
    Stats {
        #[command(flatten)]
        target: Target,
        /// Print JSON, one line for each reading
        #[arg(long)]
        json: bool,
        /// Again and again, with this many seconds between two readings; from the second on with rates
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        interval: Option<Duration>,
    },
    /// Show a machine's enclaves as they work, and what they do to its EPC
    #[command(after_help = SIGHT_HELP)]
    Top {
        #[command(flatten)]
        target: Target,
        /// Seconds between two readings
        #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
        interval: Duration,
    },
    /// Print what happens in a machine, as it happens: loads, evictions, faults, kicks, reclaim passes, ...
    #[command(after_help = SIGHT_HELP)]
    Events {
        #[command(flatten)]
        target: Target,
        /// Print JSON, one line for each event
        #[arg(long)]
        json: bool,
        /// Print the names of all events, and what they mean
        #[arg(long)]
        list: bool,
        /// Only these events; all if none is named
        #[arg(value_name = "EVENT")]
        only: Vec<String>,
    },
    /// Say what this system lacks for usgx, and how to get it
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show an enclave of 64 MiB at work in an EPC of 16 MiB
    Demo,
    /// The program that the demonstration runs
    #[command(hide = true)]
    DemoProgram,
    /// Sleep until standard input ends, for `usgx doctor` to practise on
    #[command(hide = true)]
    DoctorPatient,
}

/// The hardware of a machine.
#[derive(Args, Clone, Debug)]
pub(crate) struct Hardware {
    /// Size of the EPC: 64M, 1G, ...; several, as 64M,64M, are sections on NUMA nodes of their own [default: 128M]
    #[arg(long, value_name = "SIZE", value_delimiter = ',', allow_negative_numbers = true)]
    pub(crate) epc: Vec<Size>,
    /// Which processor: coffee-lake (SGX1 client), tiger-lake (SGX2 client), ice-lake-sp (SGX2 server, the default)
    /// or sapphire-rapids (the same with AEX-Notify)
    #[arg(long, value_name = "PROFILE")]
    pub(crate) cpu: Option<String>,
    /// Keep evicted pages in a file in this directory instead of in memory
    #[arg(long, value_name = "DIR")]
    pub(crate) swap: Option<PathBuf>,
    /// Behave exactly like another SGX driver, where usgx does better: 'linux' fails or repeats where usgx waits
    #[arg(long, value_name = "DRIVER")]
    pub(crate) compat: Option<Compat>,
    /// How many missing pages after the touched one a page fault adds as well (EAUG), as long as EPC is plenty: an
    /// enclave that grows page by page then sees fewer faults. It still accepts every page itself [default: 0, as
    /// Linux]
    #[arg(long, value_name = "PAGES", conflicts_with = "compat", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=MOST_AROUND))]
    pub(crate) fault_around: Option<u32>,
}

/// 4 MiB: a fault has its enclave locked while it adds them.
const MOST_AROUND: i64 = 1024;

/// A driver to behave like.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Compat {
    /// The one in the Linux kernel
    Linux,
}

impl From<Hardware> for engine::Config {
    fn from(Hardware { epc, cpu, swap, compat, fault_around }: Hardware) -> Self {
        Self { epc, cpu, swap, compat, fault_around }
    }
}

#[derive(Args, Debug)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) hardware: Hardware,
    /// Use the machine behind this socket instead of one for this run alone
    #[arg(long, value_name = "SOCKET")]
    #[arg(conflicts_with_all = ["epc", "cpu", "swap", "compat", "fault_around", "stats", "stats_json", "feed"])]
    pub(crate) machine: Option<PathBuf>,
    /// At the end, print what happened to the EPC on standard error
    #[arg(long)]
    pub(crate) stats: bool,
    /// At the end, write what happened to the EPC to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) stats_json: Option<PathBuf>,
    /// Write numbers to this inherited descriptor all the time
    #[arg(long, hide = true, value_name = "FD")]
    pub(crate) feed: Option<i32>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    /// Start a machine in the background
    Start {
        #[command(flatten)]
        hardware: Hardware,
        #[command(flatten)]
        place: Place,
        /// Let programs of all users in, not only your own
        #[arg(long)]
        shared: bool,
        /// Stay in the foreground, for service managers
        #[arg(long)]
        foreground: bool,
        /// Serve the machine's numbers to Prometheus at this address: 127.0.0.1:9465
        #[arg(long, value_name = "ADDRESS:PORT")]
        metrics: Option<SocketAddr>,
        /// Let --metrics be an address that other computers can reach; there is no password
        #[arg(long, requires = "metrics")]
        metrics_anywhere: bool,
    },
    /// Stop a machine; enclaves that are still there are lost
    Stop {
        #[command(flatten)]
        place: Place,
    },
    /// Evict all that a machine can evict; what is needed comes back by itself
    Shrink {
        #[command(flatten)]
        place: Place,
    },
    /// Break EPC pages, as a machine check reports broken memory: they are never handed out again
    Poison {
        #[command(flatten)]
        place: Place,
        /// Numbers of pages, from 0 on over all sections
        #[arg(required = true, value_name = "PAGE")]
        pages: Vec<u32>,
    },
    /// Show a machine's EPC and who uses it
    Status {
        #[command(flatten)]
        place: Place,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which machine to look at.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// The machine's socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) machine: Option<PathBuf>,
}

/// Reads a time between two readings.
fn seconds(text: &str) -> Result<Duration, String> {
    let range = 0.1..=86_400.0;
    let seconds = text.parse::<f64>().ok().filter(|seconds| range.contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write seconds, from 0.1 to 86400".to_owned())
}

/// Where a machine listens.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// The machine's socket
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_programs_own_options_are_left_to_it() {
        let cli = Cli::try_parse_from(["usgx", "run", "--epc", "16M", "--", "ls", "--stats", "-l"]);
        let Command::Run(run) = cli.expect("it is valid").command else { panic!("run was asked for") };
        assert_eq!(run.hardware.epc, [Size(16 << 20)]);
        assert_eq!(run.program, ["ls", "--stats", "-l"]);
        assert!(!run.stats);
    }

    #[test]
    fn an_option_that_does_not_exist_is_no_program() {
        for wrong in [&["--no-such", "--", "ls"][..], &["--no-such", "ls"], &["-x"], &["--stat", "ls"]] {
            let message =
                Cli::try_parse_from([&["usgx", "run"], wrong].concat()).expect_err("wrong").to_string();
            assert!(message.contains(wrong[0]) && message.contains("--help"), "{message}");
        }
        for right in [&["ls", "--no-such", "-x"][..], &["--", "--no-such", "-x"], &["ls", "--", "--stats"]] {
            let cli = Cli::try_parse_from([&["usgx", "run"], right].concat()).expect("it is valid");
            let Command::Run(run) = cli.command else { panic!("run was asked for") };
            assert_eq!(run.program, right[usize::from(right[0] == "--")..]);
            assert!(!run.stats);
        }
    }

    #[test]
    fn pages_around_a_fault_are_bounded_and_not_linux() {
        let parse = |options: &[&str]| {
            let line = [&["usgx", "run"], options, &["--", "ls"]].concat();
            match Cli::try_parse_from(line).map(|cli| cli.command) {
                Ok(Command::Run(run)) => Ok(run.hardware.fault_around),
                Ok(_) => panic!("run was asked for"),
                Err(error) => Err(error.to_string()),
            }
        };
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&["--fault-around", "16"]), Ok(Some(16)));
        for wrong in ["1025", "-1", "many"] {
            assert!(
                parse(&["--fault-around", wrong]).expect_err(wrong).contains("--fault-around"),
                "{wrong}"
            );
        }
        assert!(parse(&["--fault-around", "16", "--compat", "linux"]).is_err());
        assert!(parse(&["--fault-around", "16", "--machine", "/s"]).is_err());
    }

    #[test]
    fn times_between_readings_are_checked() {
        assert!(Cli::try_parse_from(["usgx", "stats", "--interval", "0.5"]).is_ok());
        for wrong in ["0", "-1", "nan", "x", "1e9"] {
            assert!(Cli::try_parse_from(["usgx", "top", "--interval", wrong]).is_err(), "{wrong}");
        }
        assert!(Cli::try_parse_from(["usgx", "machine", "start", "--metrics-anywhere"]).is_err());
    }

    #[test]
    fn another_machines_hardware_cannot_be_chosen() {
        assert!(Cli::try_parse_from(["usgx", "run", "--machine", "/s", "--epc", "1G", "--", "ls"]).is_err());
        assert!(Cli::try_parse_from(["usgx", "run"]).is_err());
    }
}
