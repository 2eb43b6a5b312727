//! The calls that a client's thread makes through its slot, one file for each kind.
//!
//! Words are copied and unchecked: every function here checks what it uses. An enclave is named by a handle that
//! this client was given; another client's handle names nothing.

mod debug;
mod enclu;
mod fault;
mod implicit;
mod ioctl;
mod mapping;

use usgx_wire::slot::{NR_WORDS, call};

use crate::clients::worker::Link;
use crate::sight::timed;

/// The words of a call or a reply.
pub(crate) type Words = [u64; NR_WORDS];

/// A negative errno, as words carry it.
pub(crate) const fn negative(errno: i32) -> u64 {
    (-(errno as i64)) as u64
}

const EPERM: i32 = 1;
const ESRCH: i32 = 3;
const EBADF: i32 = 9;
const EFAULT: i32 = 14;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;

/// A reply with these results.
fn reply<const N: usize>(results: [u64; N]) -> Words {
    let mut words = [0; NR_WORDS];
    words[1..=N].copy_from_slice(&results);
    words
}

/// Carries out a call.
pub(crate) fn dispatch(link: &Link, words: &Words) -> Words {
    let times = &link.host.sight.latencies;
    match words[0] {
        call::FAULT => timed(&times.fault, || fault::fault(link, words)),
        call::IOCTL => timed(&times.ioctl, || ioctl::ioctl(link, words)),
        call::MMAP => mapping::mmap(link, words),
        call::MPROTECT => mapping::mprotect(link, words),
        call::REGISTER => mapping::register(link, words),
        call::UNREGISTER => mapping::unregister(link, words),
        call::ENCLU => timed(&times.enclu, || enclu::enclu(link, words)),
        call::STORE_TCS => implicit::store_tcs(link, words),
        call::STORE_SSA => implicit::store_ssa(link, words),
        call::DEBUG => debug::debug(link, words),
        _ => reply([negative(ENOSYS)]),
    }
}
