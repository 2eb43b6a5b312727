//! The event loop: one thread for all sockets.
//!
//! It owns doors, channels and devices; nobody else touches them. Other threads speak to it through [`Handle`].
//! It takes one message of a ready socket at a time, so that nobody who sends much keeps others waiting.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel as queue};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use usgx_sys::events::{Event, Poller, Waker};
use usgx_sys::{Errno, socket};
use usgx_wire::channel::{Answer, HELLO_MAGIC, Welcome};

use super::channel::{self, Attachment, Outrage};
use super::control::{self, Wish};
use super::devices::Devices;
use super::messages;
use crate::clients::Client;
use crate::hardware::region::Region;
use crate::stats::StatsSnapshot;
use crate::system::{Garbage, Host};

/// How often to look after clients that end and tickets that expire, while there are any.
const TICK: Duration = Duration::from_millis(100);
/// The waker's token.
const WAKER: u64 = 0;

/// An order to the loop.
pub(crate) enum Order {
    /// Serve a door.
    Door(OwnedFd),
    /// Serve a listener; its path goes away with it.
    Listener(OwnedFd, PathBuf),
    /// List the clients.
    Clients(Sender<Vec<Arc<Client>>>),
    /// End.
    Stop,
}

/// What other threads have of the loop.
#[derive(Debug)]
pub(crate) struct Handle {
    orders: Mutex<Sender<Order>>,
    waker: Arc<Waker>,
}

impl Handle {
    /// Gives an order; it is lost if the loop has ended.
    pub(crate) fn order(&self, order: Order) {
        let _ = self.orders.lock().send(order);
        self.waker.wake();
    }
}

impl Handle {
    /// Reads all counters.
    pub(crate) fn stats(&self, host: &Host) -> StatsSnapshot {
        let (sender, receiver) = queue();
        self.order(Order::Clients(sender));
        // No answer: the loop has ended, and so have all clients.
        let clients = receiver.recv().unwrap_or_default();
        StatsSnapshot::read(host, &clients)
    }
}

/// Something to wait for.
enum Source {
    Listener(OwnedFd, PathBuf),
    Door(OwnedFd),
    Channel(OwnedFd, Arc<Client>),
    Device,
}

/// The event loop.
pub(crate) struct EventLoop {
    host: Arc<Host>,
    poller: Poller,
    waker: Arc<Waker>,
    orders: Receiver<Order>,
    sources: HashMap<u64, Source>,
    devices: Devices,
    /// Clients that were given up, whose workers may not have noticed.
    ending: Vec<Weak<Client>>,
    next_token: u64,
    stopped: bool,
}

impl EventLoop {
    /// Makes a loop and the handle to it.
    pub(crate) fn new(host: Arc<Host>) -> Result<(Self, Handle), Errno> {
        let poller = Poller::new()?;
        let waker = Arc::new(Waker::new()?);
        poller.add(&*waker, WAKER)?;
        let (sender, orders) = queue();
        let handle = Handle { orders: Mutex::new(sender), waker: Arc::clone(&waker) };
        let this = Self {
            host,
            poller,
            waker,
            orders,
            sources: HashMap::new(),
            devices: Devices::default(),
            ending: Vec::new(),
            next_token: WAKER + 1,
            stopped: false,
        };
        Ok((this, handle))
    }

    /// Serves until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut events: Vec<Event> = Vec::new();
        let mut is_ticking = false;
        let mut last_tick = Instant::now();
        while !self.stopped {
            if let Err(error) = self.poller.wait(&mut events, is_ticking.then_some(TICK)) {
                tracing::error!(%error, "the event loop cannot wait");
                break;
            }
            for event in &events {
                self.handle(*event);
            }
            if !is_ticking || last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                is_ticking = self.tick(last_tick);
            }
        }
        self.end();
    }

    fn handle(&mut self, event: Event) {
        if event.token == WAKER {
            self.waker.clear();
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            return;
        }
        match self.sources.get(&event.token) {
            None => {}
            Some(Source::Listener(..)) => self.accept(event.token),
            Some(Source::Door(_)) => self.read_door(event.token, event.readable),
            Some(Source::Channel(..)) => self.read_channel(event.token, event.readable),
            Some(Source::Device) if event.hung_up => self.remove(event.token),
            Some(Source::Device) => {}
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Door(door) => {
                if self
                    .watch(door.as_fd())
                    .is_ok_and(|token| self.sources.insert(token, Source::Door(door)).is_none())
                {
                    return;
                }
                self.host.activity.door_closed();
            }
            Order::Listener(listener, path) => {
                if let Ok(token) = self.watch(listener.as_fd()) {
                    self.sources.insert(token, Source::Listener(listener, path));
                }
            }
            Order::Clients(sender) => {
                let _ = sender.send(self.clients());
            }
            Order::Stop => self.stopped = true,
        }
    }

    /// Adds a descriptor to the set; its token.
    fn watch(&mut self, fd: BorrowedFd<'_>) -> Result<u64, Errno> {
        let token = self.next_token;
        self.poller
            .add(fd, token)
            .inspect_err(|error| tracing::warn!(%error, "cannot watch a descriptor"))?;
        self.next_token += 1;
        Ok(token)
    }

    /// The clients, in the order in which they came.
    fn clients(&self) -> Vec<Arc<Client>> {
        let clients = self.sources.values().filter_map(|source| match source {
            Source::Channel(_, client) => Some(Arc::clone(client)),
            _ => None,
        });
        let mut clients: Vec<_> = clients.collect();
        clients.sort_by_key(|client| client.id());
        clients
    }

    fn accept(&mut self, token: u64) {
        let Some(Source::Listener(listener, _)) = self.sources.get(&token) else { return };
        match socket::accept(listener) {
            Ok(door) => {
                self.host.activity.door_opened();
                self.obey(Order::Door(door));
            }
            Err(Errno::AGAIN | Errno::CONNABORTED) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot let anybody in");
                // Out of descriptors or memory: the listener stays ready, so give others time to end.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Removes a source, and all that hangs on it.
    fn remove(&mut self, token: u64) {
        let Some(source) = self.sources.remove(&token) else { return };
        match source {
            Source::Listener(listener, path) => {
                self.poller.remove(&listener);
                let _ = std::fs::remove_file(path);
            }
            Source::Door(door) => {
                self.poller.remove(&door);
                drop(door);
                self.host.activity.door_closed();
            }
            Source::Channel(channel, client) => {
                self.poller.remove(&channel);
                client.close();
                self.host.tickets.parent_went(client.id());
                self.ending.push(Arc::downgrade(&client));
                self.host.discard(Garbage::Client(client));
            }
            Source::Device => {
                if let Some(device) = self.devices.remove(token) {
                    self.poller.remove(&device);
                    if let Some(enclave) = device.close(&self.host) {
                        self.host.discard(Garbage::Enclave(enclave));
                    }
                }
            }
        }
    }

    /// Reads one message of a door: a Hello or an operator's request.
    fn read_door(&mut self, token: u64, readable: bool) {
        let Some(Source::Door(door)) = self.sources.get(&token) else { return };
        let mut bytes = [0; 512];
        let received = match socket::receive(door, &mut bytes) {
            Ok(received) if received.length > 0 => received,
            Err(Errno::AGAIN) if readable => return,
            _ => return self.remove(token),
        };
        let bytes = &bytes[..received.length];
        if control::is_control(bytes) {
            if control::serve(&self.host, door, bytes, self.clients()) == Wish::Stop {
                self.stopped = true;
            }
            return;
        }
        // A door is shared by all processes of a run: what one of them sends does not close it for the others.
        let mut fds = received.fds.into_iter();
        match (messages::hello(bytes), fds.next(), fds.next()) {
            (Some(hello), Some(channel), None)
                if hello.magic == HELLO_MAGIC && !received.truncated && socket::is_seqpacket(&channel) =>
            {
                self.welcome(hello.version, hello.ticket, channel);
            }
            _ => tracing::warn!("somebody says something other than hello at a door"),
        }
    }

    fn welcome(&mut self, version: u32, ticket: [u64; 2], channel: OwnedFd) {
        let status = match (version == usgx_wire::VERSION).then(|| self.admit(ticket, &channel)) {
            None => -Errno::PROTO.raw_os_error(),
            Some(Err(error)) => -error.raw_os_error(),
            Some(Ok(client)) => {
                let welcome = messages::welcome(&Welcome { status: 0, version: usgx_wire::VERSION });
                let sent = socket::send(&channel, &welcome, &[client.region().file().as_fd()]);
                match sent.and_then(|()| self.watch(channel.as_fd())) {
                    Ok(token) => {
                        self.sources.insert(token, Source::Channel(channel, client));
                    }
                    Err(error) => tracing::debug!(%error, "a client is gone before it is welcome"),
                }
                return;
            }
        };
        let welcome = messages::welcome(&Welcome { status, version: usgx_wire::VERSION });
        let _ = socket::send(&channel, &welcome, &[]);
    }

    fn admit(&self, ticket: [u64; 2], channel: &OwnedFd) -> Result<Arc<Client>, Errno> {
        let credentials = socket::peer(channel)?;
        let region = Region::new(&self.host.region_header)?;
        let activity = Arc::clone(&self.host.activity);
        let client = Arc::new(Client::new(self.host.new_client_id(), credentials, region, activity));
        self.host.clients.enter(&client);
        if ticket != [0; 2] {
            for enclave in self.host.tickets.redeem(ticket).unwrap_or_default() {
                client.add_handle(&enclave);
                enclave.view.add_member(&client);
                self.host.discard(Garbage::Enclave(enclave));
            }
        }
        tracing::debug!(pid = credentials.pid, uid = credentials.uid, "a client comes");
        Ok(client)
    }

    /// Reads one message of a channel and answers it.
    fn read_channel(&mut self, token: u64, readable: bool) {
        let Some(Source::Channel(channel, client)) = self.sources.get(&token) else { return };
        let mut bytes = [0; 256];
        let received = match socket::receive(channel, &mut bytes) {
            Ok(received) if received.length > 0 => received,
            Err(Errno::AGAIN) if readable => return,
            _ => return self.remove(token),
        };
        let request = messages::request(&bytes[..received.length]).filter(|_| !received.truncated);
        let served = match request {
            Some(request) => channel::serve(&self.host, client, &self.devices, &request, received.fds),
            None => Err(Outrage("not a request")),
        };
        let sent = served.and_then(|(answer, attachment)| {
            self.answer(token, &answer, attachment).map_err(|_| Outrage("it does not read answers"))
        });
        if let Err(Outrage(what)) = sent {
            if let Some(Source::Channel(_, client)) = self.sources.get(&token) {
                tracing::warn!(pid = client.credentials().pid, what, "a client is given up");
            }
            self.remove(token);
        }
    }

    fn answer(&mut self, token: u64, answer: &Answer, attachment: Attachment) -> Result<(), Errno> {
        let Some(Source::Channel(channel, _)) = self.sources.get(&token) else { return Ok(()) };
        let bytes = messages::answer(answer);
        match attachment {
            Attachment::None => socket::send(channel, &bytes, &[]),
            Attachment::Fd(fd) => socket::send(channel, &bytes, &[fd.as_fd()]),
            Attachment::Enclave(enclave) => {
                let view = &enclave.view;
                let sent = socket::send(channel, &bytes, &[view.file().as_fd(), view.window_file().as_fd()]);
                self.host.discard(Garbage::Enclave(enclave));
                sent
            }
            Attachment::Device(device, theirs) => {
                let sent = socket::send(channel, &bytes, &[theirs.as_fd()]);
                let watched = sent.and_then(|()| self.poller.add_hang_up(&device, self.next_token));
                if let Err(error) = watched {
                    if let Some(enclave) = device.close(&self.host) {
                        self.host.discard(Garbage::Enclave(enclave));
                    }
                    return Err(error);
                }
                self.sources.insert(self.next_token, Source::Device);
                self.devices.insert(self.next_token, device);
                self.next_token += 1;
                Ok(())
            }
        }
    }

    /// Looks after what has no event of its own; whether there is more to look after.
    fn tick(&mut self, now: Instant) -> bool {
        self.ending.retain(|client| {
            // Again: a client that lives on can undo what its workers look at.
            client.upgrade().is_some_and(|client| {
                client.close();
                let ends = client.slots().is_empty();
                self.host.discard(Garbage::Client(client));
                !ends
            })
        });
        let (expired, more) = self.host.tickets.expire(now);
        for enclave in expired {
            self.host.discard(Garbage::Enclave(enclave));
        }
        more || !self.ending.is_empty()
    }

    /// Lets go of everything.
    fn end(mut self) {
        let mut tokens: Vec<u64> = self.sources.keys().copied().collect();
        tokens.extend(self.devices.tokens());
        for token in tokens {
            self.remove(token);
        }
        self.host.tickets.clear();
        self.host.activity.stop();
        // Workers notice within moments; a client that plays with its words is told again.
        let patience = Instant::now() + Duration::from_secs(5);
        while self.tick(Instant::now()) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
