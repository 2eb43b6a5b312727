//! Building a machine, running it, and ending it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, channel as queue};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use usgx_cpu::{Processor, Profile, XsaveLayout};
use usgx_driver::{Behaviour, Config, Driver, SectionConfig};
use usgx_sys::cpuid::cpuid;
use usgx_sys::{process, socket};

use crate::clients::register::Register;
use crate::clients::tickets::Tickets;
use crate::config::MachineConfig;
use crate::doors::activity::Activity;
use crate::doors::event_loop::{EventLoop, Handle, Order};
use crate::error::MachineError;
use crate::fuses;
use crate::hardware::frames::{FrameBytes, Frames};
use crate::hardware::spaces::{Spaces, Views};
use crate::hardware::threads::Threads;
use crate::header;
use crate::kernel::ksgxd;
use crate::kernel::platform::HostPlatform;
use crate::kernel::store::Store;
use crate::sight::endpoint::Endpoint;
use crate::sight::exposition;
use crate::stats::StatsSnapshot;
use crate::system::{Garbage, Host};
use crate::topology::{self, Topology};

/// How long the end of a machine waits for its workers.
const END_BOUND: Duration = Duration::from_secs(5);

/// A machine: an SGX processor, a driver, and the processes that use them.
///
/// Its threads run from the start. Dropping it ends it, and closes all doors and channels.
#[derive(Debug)]
pub struct Machine {
    host: Arc<Host>,
    handle: Arc<Handle>,
    endpoints: Mutex<Vec<Endpoint>>,
    threads: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Builds a machine and starts its threads.
    ///
    /// # Errors
    /// The configuration is not possible, or the system lacks something.
    pub fn new(config: MachineConfig) -> Result<Self, MachineError> {
        process::raise_descriptor_limit();
        let sections = topology::sections(&config.epc_bytes)?;
        let nr_pages = sections.iter().map(|section| section.pages).sum();
        let profile = Profile::by_name(&config.profile).ok_or_else(|| MachineError::Profile {
            known: Profile::all().map(|profile| profile.name()).collect::<Vec<_>>().join(", "),
            name: config.profile.clone(),
        })?;
        // Enclave code runs on this host, with this host's registers.
        let profile = profile.with_xsave(XsaveLayout::from_cpuid(cpuid));
        let store = Store::new(config.swap.as_deref())
            .map_err(|source| MachineError::Swap { path: config.swap.clone().unwrap_or_default(), source })?;

        let store = Arc::new(store);
        let views = Arc::new(Views::default());
        let frames = Arc::new(Frames::new(nr_pages)?);
        let platform = Arc::new(HostPlatform::new(Topology::new(sections.len())));
        let fuses = fuses::load(config.state_dir.as_deref());
        let hw = Arc::new(Processor::new(
            profile,
            fuses,
            nr_pages,
            FrameBytes(Arc::clone(&frames)),
            Threads(Arc::clone(&views)),
            &mut |bytes| process::random(bytes),
        ));
        let sight = Arc::clone(platform.sight());
        let spaces =
            Spaces::new(Arc::clone(&views), Arc::clone(&frames), Arc::clone(&hw), Arc::clone(&sight));
        let driver = Driver::new(
            driver_config(&profile, sections, config.behaviour),
            Arc::clone(&hw),
            Arc::clone(&platform),
            Arc::new(spaces),
            Arc::clone(&store),
        );
        if !config.behaviour.reclaim.wait_for_sanitizing {
            // On Linux, too, programs come when `ksgxd` is done with this: it does it as the computer starts.
            ksgxd::sanitize(&driver);
        }

        let (garbage, collected) = queue();
        let host = Arc::new(Host {
            driver: driver.clone(),
            region_header: header::header(&profile, &config.epc_bytes),
            hw,
            frames,
            views,
            platform: Arc::clone(&platform),
            store,
            clients: Register::default(),
            tickets: Tickets::default(),
            activity: Arc::new(Activity::default()),
            crowd: Arc::default(),
            provision: Mutex::default(),
            garbage: Mutex::new(garbage),
            sight,
            next_client: AtomicU64::new(1),
            calls: AtomicU64::new(0),
            upcalls: AtomicU64::new(0),
        });
        let (events, handle) = EventLoop::new(Arc::clone(&host))?;
        let threads = vec![
            ksgxd::start(driver, platform, Arc::clone(&host.frames), Arc::clone(&host.store))?,
            start_collector(collected)?,
            std::thread::Builder::new().name("events".into()).spawn(move || events.run())?,
        ];
        Ok(Self { host, handle: Arc::new(handle), endpoints: Mutex::default(), threads })
    }

    /// Serves a door: a connected `SOCK_SEQPACKET` socket whose other end a program has or will inherit.
    ///
    /// # Errors
    /// [`MachineError::Door`]: it is something else.
    pub fn serve_door(&self, door: OwnedFd) -> Result<(), MachineError> {
        if !socket::is_seqpacket(&door) {
            return Err(MachineError::Door);
        }
        // Counted here, so that `run_until_idle` does not find the machine idle before the loop has seen it.
        self.host.activity.door_opened();
        self.handle.order(Order::Door(door));
        Ok(())
    }

    /// Listens at `path`; every connection is a door. The socket gets the permissions `mode`: 0o600 for one
    /// user, 0o666 for a machine that several users share. It is removed when the machine ends; a left-over
    /// socket at which nobody listens is replaced.
    ///
    /// # Errors
    /// [`MachineError::Listen`], `EADDRINUSE` if a machine listens there.
    pub fn listen(&self, path: &Path, mode: u32) -> Result<(), MachineError> {
        let failed = |source| MachineError::Listen { path: path.to_owned(), source };
        let listener = match socket::listen(path) {
            Err(usgx_sys::Errno::ADDRINUSE)
                if socket::connect(path).is_err_and(|error| error == usgx_sys::Errno::CONNREFUSED) =>
            {
                std::fs::remove_file(path)?;
                socket::listen(path)
            }
            other => other,
        };
        let listener = listener.map_err(failed)?;
        process::set_mode(path, mode).map_err(failed)?;
        self.handle.order(Order::Listener(listener, path.to_owned()));
        Ok(())
    }

    /// Waits until all doors and channels have hung up, or somebody has stopped the machine: for a machine that
    /// serves one program.
    pub fn run_until_idle(&self) {
        self.host.activity.wait_idle();
    }

    /// Waits until somebody stops the machine (see [`crate::client::Request::Stop`]): for a machine that listens.
    pub fn run_until_stopped(&self) {
        self.host.activity.wait_stopped();
    }

    /// Reads all counters.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.handle.stats(&self.host)
    }

    /// Serves the counters over HTTP at `address`, for Prometheus; returns the address, for a port that was 0.
    ///
    /// Whoever can connect may read which users' enclaves do what, so addresses other than this computer's own are
    /// refused unless `anywhere` is set.
    ///
    /// # Errors
    /// [`MachineError::MetricsAddress`], or [`MachineError::Metrics`] if the address cannot be used.
    pub fn serve_metrics(&self, address: SocketAddr, anywhere: bool) -> Result<SocketAddr, MachineError> {
        if !anywhere && !address.ip().is_loopback() {
            return Err(MachineError::MetricsAddress(address));
        }
        let (host, handle) = (Arc::clone(&self.host), Arc::clone(&self.handle));
        let endpoint = Endpoint::start(address, move || exposition::write(&handle.stats(&host)))
            .map_err(|source| MachineError::Metrics { address, source })?;
        let address = endpoint.address();
        self.endpoints.lock().push(endpoint);
        Ok(address)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.endpoints.get_mut().clear();
        self.handle.order(Order::Stop);
        let events = self.threads.pop();
        if events.is_some_and(|events| events.join().is_err()) {
            tracing::error!("the event loop has panicked");
        }
        if !self.host.activity.wait_no_clients(END_BOUND) {
            tracing::warn!("some clients do not end");
        }
        // The collector ends when nobody can send it anything.
        let (nobody, _) = queue();
        *self.host.garbage.lock() = nobody;
        self.host.platform.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the machine has panicked");
            }
        }
    }
}

fn driver_config(profile: &Profile, sections: Vec<SectionConfig>, behaviour: Behaviour) -> Config {
    Config {
        sections,
        sgx2: profile.has_sgx2(),
        misc_reserved: !profile.miscselect(),
        attributes_reserved: !profile.attributes(),
        xfrm_reserved: !profile.xfrm(),
        behaviour,
    }
}

/// Starts the thread that drops what may take a while.
fn start_collector(collected: Receiver<Garbage>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("collector".into()).spawn(move || {
        for garbage in collected {
            match garbage {
                Garbage::Client(client) => drop(client),
                Garbage::Enclave(enclave) => drop(enclave),
            }
        }
    })
}
