//! Signals that the program sends to itself and that have the number of one of the runtime's: SIGSYS, which traps
//! of system calls are, and SIGFPE, which kicks are.
//!
//! The kernel keeps at most one of a number for each thread and drops what comes meanwhile, so one that is sent while
//! a trap's or a kick's is on its way would be lost. Such sends trap, therefore ([`crate::filter`]), and the signal
//! goes into the record of its thread ([`Thread::posted`]), or to the process, with a call to look there. What other
//! processes send takes the kernel's way.

use super::frame::{SigInfo, signum};
use super::pending;
use crate::arch::getpid;
use crate::arch::syscall::nr;
use crate::thread::Thread;
use crate::{link, sys, usercopy};

const SI_USER: i32 = 0;
const SI_TKILL: i32 = -6;

/// Whom a signal is for, and which.
struct Send {
    /// The thread, or all of the process.
    tid: Option<u32>,
    sig: i32,
    /// Where its details are; 0 if the call says nothing.
    info: u64,
}

/// Does what `number`, a call that sends a signal, asks for. Nothing if that is the kernel's to do: for signals and
/// processes that are not meant here, and for every wrong call.
pub fn send(thread: &mut Thread, number: u64, args: [u64; 6]) -> Option<i64> {
    let own = u64::from(getpid());
    let [first, second, third, fourth, ..] = args;
    let (process, tid, sig, info) = match number {
        nr::KILL => (first, None, second, 0),
        nr::RT_SIGQUEUEINFO => (first, None, second, third),
        nr::TKILL => (own, Some(first as u32), second, 0),
        nr::TGKILL => (first, Some(second as u32), third, 0),
        nr::RT_TGSIGQUEUEINFO => (first, Some(second as u32), third, fourth),
        _ => return None,
    };
    let send = Send { tid, sig: sig as i32, info };
    if process as i32 != own as i32 || !SHARED.contains(&send.sig) {
        return None;
    }
    let info = send.details()?;
    match send.tid {
        None => pending::leave(thread, send.sig, &info),
        Some(tid) => {
            Thread::posted_of(tid, thread.process)?.put(send.sig, &info);
            pending::call(tid);
        }
    }
    Some(0)
}

/// The numbers that the runtime uses for itself.
pub const SHARED: [i32; 2] = [signum::SIGSYS, link::KICK_SIGNAL];

impl Send {
    fn details(&self) -> Option<SigInfo> {
        if self.info != 0 {
            let info = usercopy::get::<SigInfo>(self.info)?;
            return Some(SigInfo { signo: self.sig, ..info });
        }
        let code = if self.tid.is_some() { SI_TKILL } else { SI_USER };
        // SAFETY: asks for a number.
        let uid = unsafe { sys!(nr::GETUID) } as u64;
        let mut info = SigInfo { signo: self.sig, code, ..SigInfo::default() };
        info.fields[0] = u64::from(getpid()) | uid << 32;
        Some(info)
    }
}
