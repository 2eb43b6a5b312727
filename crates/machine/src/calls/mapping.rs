//! MMAP, MPROTECT, REGISTER and UNREGISTER: the client's mappings of an enclave.

use usgx_driver::Prot;
use usgx_isa::LinAddr;

use super::{EBADF, EINVAL, Words, negative, reply};
use crate::clients::worker::Link;

/// The end of user space.
const USER_END: u64 = 1 << 47;

pub(super) fn mmap(link: &Link, words: &Words) -> Words {
    check(link, words, true)
}

pub(super) fn mprotect(link: &Link, words: &Words) -> Words {
    check(link, words, false)
}

fn check(link: &Link, words: &Words, is_new: bool) -> Words {
    let [_, handle, start, length, prot, ..] = *words;
    let Some(open) = link.client.enclave(handle) else { return reply([negative(EBADF), 0, 0]) };
    let prot = Prot::from_bits_truncate((prot & 7) as u8);
    let checked = if is_new {
        open.enclave.mmap(start, length, prot)
    } else {
        open.enclave.mprotect(start, length, prot)
    };
    let (base, size) = open.enclave.base_size().unwrap_or_default();
    reply([checked.err().map_or(0, |error| negative(error.0)), base, size])
}

/// The end of a range of whole pages in user space.
fn end(start: u64, length: u64) -> Option<u64> {
    let aligned = LinAddr(start).is_page_aligned() && LinAddr(length).is_page_aligned() && length != 0;
    start.checked_add(length).filter(|end| aligned && *end <= USER_END)
}

pub(super) fn register(link: &Link, words: &Words) -> Words {
    let [_, handle, start, length, ..] = *words;
    let Some(open) = link.client.enclave(handle) else { return reply([negative(EBADF)]) };
    let Some(end) = end(start, length) else { return reply([negative(EINVAL)]) };
    match link.client.register(&open, start, end) {
        Ok(()) => reply([0]),
        Err(error) => reply([negative(error.raw_os_error())]),
    }
}

pub(super) fn unregister(link: &Link, words: &Words) -> Words {
    let [_, handle, start, length, ..] = *words;
    let Some(open) = link.client.enclave(handle) else { return reply([negative(EBADF)]) };
    let Some(end) = end(start, length) else { return reply([negative(EINVAL)]) };
    link.client.unregister(&open, start, end);
    reply([0])
}
