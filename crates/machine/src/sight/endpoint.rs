//! The metrics endpoint: a listener of its own thread, and a thread for each of a few connections.
//!
//! A connection gets one answer and is closed. It has [`PATIENCE`] for its request and for taking the answer, and
//! there are never more than [`MAX_CONNECTIONS`]; who comes then is hung up on. The endpoint ends when it is
//! dropped.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use usgx_sys::events::{Poller, Waker};

use super::http::{self, Progress};

/// Most connections at a time: Prometheus uses one, and a person a few.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection has for everything.
const PATIENCE: Duration = Duration::from_secs(5);
/// Numbers of descriptors in the poller.
const LISTENER: u64 = 0;
const WAKER: u64 = 1;

/// A listener that answers with what a function writes.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    waker: Arc<Waker>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Listens at `address`.
    pub(crate) fn start(
        address: SocketAddr,
        write: impl Fn() -> String + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (poller, waker) = (Poller::new()?, Arc::new(Waker::new()?));
        poller.add(&listener, LISTENER)?;
        poller.add(&*waker, WAKER)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let server = Server {
            listener,
            poller,
            stopped: Arc::clone(&stopped),
            connections: Arc::default(),
            local_only: address.ip().is_loopback(),
            write: Arc::new(write),
        };
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || server.run())?;
        Ok(Self { address, waker, stopped, thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stopped.store(true, SeqCst);
        self.waker.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the metrics endpoint has panicked");
        }
    }
}

struct Server<W> {
    listener: TcpListener,
    poller: Poller,
    stopped: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    local_only: bool,
    write: Arc<W>,
}

/// A connection's place among the few.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(connections: &Arc<AtomicUsize>) -> Option<Self> {
        let add = |count| (count < MAX_CONNECTIONS).then_some(count + 1);
        connections.fetch_update(SeqCst, SeqCst, add).ok()?;
        Some(Self(Arc::clone(connections)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl<W: Fn() -> String + Send + Sync + 'static> Server<W> {
    fn run(self) {
        let mut events = Vec::new();
        while !self.stopped.load(SeqCst) {
            if let Err(error) = self.poller.wait(&mut events, None) {
                tracing::error!(%error, "the metrics endpoint cannot wait");
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.take(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Out of descriptors: the listener stays ready, so give others time to end.
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn take(&self, stream: TcpStream) {
        // Without a place the stream is dropped, which closes it.
        let Some(place) = Place::take(&self.connections) else { return };
        let (write, local_only) = (Arc::clone(&self.write), self.local_only);
        let serve = move || {
            // A peer that goes away is its own affair.
            let _ = serve(stream, local_only, &*write);
            drop(place);
        };
        if let Err(error) = std::thread::Builder::new().name("scrape".into()).spawn(serve) {
            tracing::warn!(%error, "cannot answer a scrape");
        }
    }
}

fn serve(mut stream: TcpStream, local_only: bool, write: &dyn Fn() -> String) -> std::io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let left = || deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
    stream.set_nonblocking(false)?;
    let mut request = Vec::new();
    let answer = loop {
        let mut bytes = [0; 1024];
        stream.set_read_timeout(Some(left().ok_or(ErrorKind::TimedOut)?))?;
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        request.extend_from_slice(&bytes[..count]);
        match http::parse(&request, local_only) {
            Progress::More => {}
            Progress::Answer(answer) => break answer,
        }
    };
    let bytes = http::respond(answer, write);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        // Once for each write, so that a peer which takes a byte at a time does not stay for ever.
        stream.set_write_timeout(Some(left().ok_or(ErrorKind::TimedOut)?))?;
        let count = stream.write(rest)?;
        rest = &rest[count..];
    }
    stream.shutdown(std::net::Shutdown::Write)
}
