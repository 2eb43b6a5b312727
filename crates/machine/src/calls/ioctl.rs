//! IOCTL: the driver's work, and what the machine has to do about its results.

use usgx_driver::{Errno, command};

use super::{EBADF, Words, negative, reply};
use crate::clients::worker::Link;
use crate::kernel::caller::ClientCaller;
use crate::system::OpenEnclave;

pub(super) fn ioctl(link: &Link, words: &Words) -> Words {
    let [_, handle, command, argument, ..] = *words;
    let Some(open) = link.client.enclave(handle) else { return reply([negative(EBADF)]) };
    // Linux takes the low 32 bits of a command.
    let command = command as u32;
    let result = open.enclave.ioctl(command, argument, &ClientCaller::new(link));
    if result.is_ok() {
        match command {
            command::CREATE => created(link, &open),
            command::INIT => initialised(link, &open),
            _ => {}
        }
    }
    reply([match result {
        Ok(value) => value,
        // A signal is on its way to the thread; it is for the program to call again.
        Err(Errno::ERESTARTSYS) => negative(Errno::EINTR.0),
        Err(Errno(errno)) => negative(errno),
    }])
}

/// Learns what the processor knows of a new enclave.
fn created(link: &Link, open: &OpenEnclave) {
    let state = open.enclave.with_pages(|secs, _| link.host.hw.enclave(secs)).ok().flatten();
    match state {
        Some(state) => link.host.views.bind(&open.view, &state),
        None => tracing::error!(enclave = open.handle(), "a new enclave has no SECS in the EPC"),
    }
}

/// Shows everybody that the enclave can be entered.
fn initialised(link: &Link, open: &OpenEnclave) {
    let _ = open.enclave.with_pages(|secs, _| {
        if let Some(state) = link.host.hw.enclave(secs) {
            open.view.initialised(&state, &link.host.hw);
        }
    });
}
