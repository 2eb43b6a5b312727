//! Requests on a channel. Each is answered at once, without waiting for anybody.
//!
//! An operation that fails is answered with an errno; a message that no runtime sends is an [`Outrage`], after which
//! the channel is closed. Called by the event loop.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use usgx_sys::uffd::Userfaultfd;
use usgx_sys::{Errno, pidfd, socket};
use usgx_wire::channel::{Answer, Request, op};

use super::devices::{Device, Devices};
use crate::clients::{Client, ThreadSlot, worker};
use crate::system::{Host, OpenEnclave};

/// A message that only a broken or hostile client sends.
#[derive(Debug)]
pub(crate) struct Outrage(pub(crate) &'static str);

/// What goes back with the answer.
pub(crate) enum Attachment {
    None,
    Fd(OwnedFd),
    /// A view and a window.
    Enclave(Arc<OpenEnclave>),
    /// The process's end of a device; ours is to be watched.
    Device(Device, OwnedFd),
}

/// Results of an operation.
type Values = [u64; 4];

/// Carries out a request.
pub(crate) fn serve(
    host: &Arc<Host>,
    client: &Arc<Client>,
    devices: &Devices,
    request: &Request,
    fds: Vec<OwnedFd>,
) -> Result<(Answer, Attachment), Outrage> {
    let mut fds = fds.into_iter();
    let (fd, more) = (fds.next(), fds.next());
    let wants_fd = matches!(request.op, op::ATTACH | op::USERFAULTFD | op::DEBUGGEE);
    if more.is_some() || fd.is_some() != wants_fd {
        return Err(Outrage("wrong number of descriptors"));
    }
    let result = match (request.op, fd) {
        (op::OPEN, None) => Device::open(host, client, request.args[0])
            .map(|(device, theirs)| ([0; 4], Attachment::Device(device, theirs))),
        (op::ATTACH, Some(fd)) => attach(client, devices, &fd),
        (op::THREAD, None) => thread(host, client, request.args[0]),
        (op::THREAD_END, None) => end_thread(client, request.args[0]),
        (op::USERFAULTFD, Some(fd)) => userfaultfd(client, fd),
        (op::FORK, None) => {
            let [low, high] = host.tickets.issue(client);
            Ok(([low, high, 0, 0], Attachment::None))
        }
        (op::DEBUGGEE, Some(fd)) => debuggee(host, &fd),
        _ => return Err(Outrage("unknown operation")),
    };
    Ok(match result {
        Ok((values, attachment)) => (Answer { status: 0, values }, attachment),
        Err(error) => (Answer { status: -i64::from(error.raw_os_error()), values: [0; 4] }, Attachment::None),
    })
}

fn attach(client: &Arc<Client>, devices: &Devices, fd: &OwnedFd) -> Result<(Values, Attachment), Errno> {
    let enclave = devices.enclave(fd).ok_or(Errno::BADF)?;
    client.add_handle(enclave);
    enclave.view.add_member(client);
    Ok(([enclave.handle(), 0, 0, 0], Attachment::Enclave(Arc::clone(enclave))))
}

fn thread(host: &Arc<Host>, client: &Arc<Client>, tid: u64) -> Result<(Values, Attachment), Errno> {
    let (ours, theirs) = socket::stream_pair()?;
    // The number is for people and logs; a kick goes to the socket's owner.
    let tid = u32::try_from(tid).map_err(|_| Errno::INVAL)?;
    let slot = client.add_slot(|index| ThreadSlot::new(index, tid, ours)).ok_or(Errno::AGAIN)?;
    client.region().slot(slot.index()).reset();
    if let Err(error) = worker::start(host, client, &slot) {
        tracing::warn!(%error, "cannot start a worker");
        client.remove_slot(slot.index());
        return Err(Errno::AGAIN);
    }
    Ok(([u64::from(slot.index()), 0, 0, 0], Attachment::Fd(theirs)))
}

fn end_thread(client: &Arc<Client>, index: u64) -> Result<(Values, Attachment), Errno> {
    let slot = client.slot(index).ok_or(Errno::INVAL)?;
    slot.end();
    client.region().slot(slot.index()).close();
    Ok(([0; 4], Attachment::None))
}

fn userfaultfd(client: &Arc<Client>, fd: OwnedFd) -> Result<(Values, Attachment), Errno> {
    client.set_uffd(Userfaultfd::received(fd)?)?;
    Ok(([0; 4], Attachment::None))
}

/// Finds the image that a process runs. Whether the caller may look into it is checked when it does.
fn debuggee(host: &Arc<Host>, fd: &OwnedFd) -> Result<(Values, Attachment), Errno> {
    let pid = pidfd::process_behind(fd).ok_or(Errno::SRCH)?;
    let client = host.clients.of_process(pid).ok_or(Errno::SRCH)?;
    Ok(([client.id(), 0, 0, 0], Attachment::None))
}
