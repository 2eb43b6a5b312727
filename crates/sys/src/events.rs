//! Waiting for many descriptors at once (epoll), and waking whoever waits (eventfd).

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec};
use rustix::io::Errno;

/// A set of descriptors to wait for, each with a number.
#[derive(Debug)]
pub struct Poller(OwnedFd);

/// What happened to a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The number that the descriptor was added with.
    pub token: u64,
    /// There is something to read (or to accept).
    pub readable: bool,
    /// The other side is gone; there may still be something to read.
    pub hung_up: bool,
}

impl Poller {
    /// Makes an empty set.
    ///
    /// # Errors
    /// Whatever `epoll_create1` says.
    pub fn new() -> Result<Self, Errno> {
        epoll::create(CreateFlags::CLOEXEC).map(Self)
    }

    /// Adds a descriptor, to wait for messages and for the hang-up.
    ///
    /// # Errors
    /// Whatever `epoll_ctl` says.
    pub fn add(&self, fd: impl AsFd, token: u64) -> Result<(), Errno> {
        epoll::add(&self.0, fd, EventData::new_u64(token), EventFlags::IN | EventFlags::RDHUP)
    }

    /// Adds a descriptor of which only the hang-up matters: that the other side has closed it, not that it has
    /// shut down one direction.
    ///
    /// # Errors
    /// Whatever `epoll_ctl` says.
    pub fn add_hang_up(&self, fd: impl AsFd, token: u64) -> Result<(), Errno> {
        epoll::add(&self.0, fd, EventData::new_u64(token), EventFlags::empty())
    }

    /// Removes a descriptor. To be called before it is closed: if a client holds a copy of it, closing ours
    /// would leave it in the set.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits for events, at most for `timeout`; fills `out` with at most its spare capacity.
    ///
    /// # Errors
    /// Whatever `epoll_wait` says; a signal is no error, only no event.
    pub fn wait(&self, out: &mut Vec<Event>, timeout: Option<Duration>) -> Result<(), Errno> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        let timeout = timeout.map(|duration| Timespec {
            tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(duration.subsec_nanos()),
        });
        match epoll::wait(&self.0, spare_capacity(&mut events), timeout.as_ref()) {
            Err(Errno::INTR) | Ok(_) => {}
            Err(error) => return Err(error),
        }
        out.clear();
        out.extend(events.iter().map(|event| {
            // The fields are unaligned in the kernel's layout: copy before use.
            let (flags, data) = (event.flags, event.data);
            Event {
                token: data.u64(),
                readable: flags.contains(EventFlags::IN),
                hung_up: flags.intersects(EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR),
            }
        }));
        Ok(())
    }
}

/// Wakes a [`Poller`] from another thread.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Makes one; add it to the poller.
    ///
    /// # Errors
    /// Whatever `eventfd` says.
    pub fn new() -> Result<Self, Errno> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    /// Makes the poller return.
    pub fn wake(&self) {
        // Fails only when the counter is full, which wakes as well.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes the wakes back, once the poller has returned.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
