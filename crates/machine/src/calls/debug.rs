//! DEBUG: a debugger reads or writes another process's memory, of which some may be an enclave's.
//!
//! On Linux such an access to a mapping of an enclave comes to the driver, which asks the processor word by word
//! (EDBGRD, EDBGWR). Here the debugger's runtime asks. The kernel has let it trace the process; as a client may say
//! what it likes, the machine lets it look only into processes of its own user, and root into all.

use usgx_driver::Prot;
use usgx_isa::LinAddr;
use usgx_wire::slot::{DEBUG_MAX, debug};
use usgx_wire::window::entry;

use super::{EINVAL, EPERM, ESRCH, Words, negative, reply};
use crate::clients::worker::Link;
use crate::system::OpenEnclave;

pub(super) fn debug(link: &Link, words: &Words) -> Words {
    let [_, process, addr, length, direction, ..] = *words;
    let Some(target) = link.host.clients.numbered(process) else { return reply([negative(ESRCH)]) };
    let debugger = link.client.credentials().uid;
    if debugger != 0 && debugger != target.credentials().uid {
        return reply([negative(EPERM)]);
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length == 0 || length > DEBUG_MAX || direction > debug::WRITE {
        return reply([negative(EINVAL)]);
    }
    let Some((start, open)) = target.next_mapped(addr) else { return reply([0, u64::MAX]) };
    if start > addr {
        return reply([0, start - addr]);
    }
    let mut bytes = [0; DEBUG_MAX];
    let bytes = &mut bytes[..length];
    let is_write = direction == debug::WRITE;
    if is_write {
        link.memory().read_data(0, bytes);
    }
    match access(link, &open, addr, bytes, is_write) {
        Ok(moved) => {
            if !is_write {
                link.memory().write_data(bytes);
            }
            reply([moved as u64])
        }
        Err(errno) => reply([negative(errno)]),
    }
}

/// Has the driver read or write. The mapping's protection is not known here; that it allows no more than its pages
/// do was checked when it was made.
fn access(
    link: &Link,
    open: &OpenEnclave,
    addr: u64,
    bytes: &mut [u8],
    is_write: bool,
) -> Result<usize, i32> {
    let last = addr.saturating_add(bytes.len() as u64 - 1);
    let pages = [LinAddr(addr).page().0, LinAddr(last).page().0];
    // A TCS that is shown in the window has its fields there: what a debugger sees is what became of them, and what
    // it changes is seen by the next entry.
    hide_tcs(link, open, pages);
    let moved = open.enclave.access(addr, Prot::empty(), bytes, is_write).map_err(|error| error.0);
    if is_write {
        hide_tcs(link, open, pages);
    }
    moved
}

/// Takes the TCS among these pages out of the window.
fn hide_tcs(link: &Link, open: &OpenEnclave, pages: [u64; 2]) {
    // An enclave whose SECS is not in the EPC has no page in the window.
    let _ = open.enclave.with_pages(|_, look_up| {
        for addr in pages {
            if let Some(page) = look_up(addr).filter(|_| open.view.entry(addr) & entry::TCS != 0) {
                open.view.unmap(&link.host.hw, &link.host.frames, &[(addr, page)], entry::PRESENT);
            }
        }
    });
}
