//! Device descriptors: sockets whose other end the machine keeps.
//!
//! The hang-up of the machine's end is the kernel's `release`: the last copy of the descriptor is closed,
//! whatever dup, fork or `SCM_RIGHTS` did with it. A descriptor that a process shows is recognised by the socket
//! behind it, never by a number that the process names. Called by the event loop only.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use usgx_sys::process::{SocketId, socket_id};
use usgx_sys::{Errno, socket};
use usgx_wire::channel::device;

use crate::clients::Client;
use crate::system::{Host, OpenEnclave};

/// Most devices that one process may have open: the machine's descriptors are for everybody.
const MAX_DEVICES: usize = 1024;

/// What is behind a device descriptor.
#[derive(Debug)]
enum Kind {
    Enclave(Arc<OpenEnclave>),
    Provision,
}

/// The machine's end of a device descriptor.
#[derive(Debug)]
pub(crate) struct Device {
    ours: OwnedFd,
    id: SocketId,
    kind: Kind,
    opener: Weak<Client>,
}

impl Device {
    /// Opens a device for a process; returns the process's end, too.
    pub(crate) fn open(host: &Host, client: &Arc<Client>, number: u64) -> Result<(Self, OwnedFd), Errno> {
        if client.open_devices.load(Relaxed) >= MAX_DEVICES {
            return Err(Errno::MFILE);
        }
        let (ours, theirs) = socket::stream_pair()?;
        let id = socket_id(&theirs).ok_or(Errno::IO)?;
        let kind = match number {
            device::ENCLAVE => {
                let enclave = host.driver.open().map_err(|error| Errno::from_raw_os_error(error.0))?;
                let record = host.sight.owners.enclave_opened(enclave.id(), client.owner());
                let view = host.views.open(enclave.id())?;
                Kind::Enclave(Arc::new(OpenEnclave::new(enclave, view, record, Arc::clone(&host.views))))
            }
            device::PROVISION => {
                host.provision.lock().insert(id.inode);
                Kind::Provision
            }
            _ => return Err(Errno::NODEV),
        };
        client.open_devices.fetch_add(1, Relaxed);
        Ok((Self { ours, id, kind, opener: Arc::downgrade(client) }, theirs))
    }

    /// The last copy of the process's end is closed. Returns the enclave, for somebody to drop.
    pub(crate) fn close(self, host: &Host) -> Option<Arc<OpenEnclave>> {
        if let Some(opener) = self.opener.upgrade() {
            opener.open_devices.fetch_sub(1, Relaxed);
        }
        match self.kind {
            Kind::Enclave(enclave) => Some(enclave),
            Kind::Provision => {
                host.provision.lock().remove(&self.id.inode);
                None
            }
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ours.as_fd()
    }
}

/// All devices that are open.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    by_token: HashMap<u64, Device>,
    by_socket: HashMap<SocketId, u64>,
}

impl Devices {
    pub(crate) fn insert(&mut self, token: u64, device: Device) {
        self.by_socket.insert(device.id, token);
        self.by_token.insert(token, device);
    }

    pub(crate) fn remove(&mut self, token: u64) -> Option<Device> {
        let device = self.by_token.remove(&token)?;
        self.by_socket.remove(&device.id);
        Some(device)
    }

    /// The tokens of all devices.
    pub(crate) fn tokens(&self) -> Vec<u64> {
        self.by_token.keys().copied().collect()
    }

    /// The enclave behind a descriptor that a process has sent.
    pub(crate) fn enclave(&self, fd: impl AsFd) -> Option<&Arc<OpenEnclave>> {
        let token = self.by_socket.get(&socket_id(fd)?)?;
        match &self.by_token.get(token)?.kind {
            Kind::Enclave(enclave) => Some(enclave),
            Kind::Provision => None,
        }
    }
}
