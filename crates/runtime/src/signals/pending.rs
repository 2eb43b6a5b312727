//! Signals of the runtime's own ([`OWNED`]) that somebody sent and the program blocks: the kernel does not know
//! them to be blocked, so what it would do with them is done here.
//!
//! A signal for one thread waits in that thread's record. One for the process waits in
//! [`crate::process::Process::pending`], where every thread looks before it goes to sleep with a mask and whenever
//! its mask changes; a thread that lets it through or waits for it already is called. A thread that waits says for
//! what in [`Thread::waits`]: it stores that before it looks at the process's signals, and whoever leaves a signal
//! with the process looks at the threads afterwards, so one of the two sees the other.

use core::sync::atomic::{AtomicU64, Ordering};

use super::deliver::deliver_async;
use super::frame::{OWNED, SigInfo, Ucontext, bit};
use crate::arch::getpid;
use crate::arch::lock::Lock;
use crate::arch::syscall::nr;
use crate::link::KICK_SIGNAL;
use crate::sys;
use crate::syscalls::stubs;
use crate::thread::{self, Thread};

/// `si_code` of the signal that calls a thread. (Of negative ones, a process may send itself any but two.)
pub const LOOK: i32 = -0x5347;

/// Signals that wait for any thread of the process.
pub struct Pending {
    signals: AtomicU64,
    details: Lock<[SigInfo; 32]>,
}

impl Pending {
    /// None.
    pub const fn new() -> Self {
        let none = SigInfo { signo: 0, errno: 0, code: 0, pad: 0, fields: [0; 14] };
        Self { signals: AtomicU64::new(0), details: Lock::new([none; 32]) }
    }

    /// Which ones.
    pub fn signals(&self) -> u64 {
        self.signals.load(Ordering::SeqCst)
    }

    /// Forgets signals.
    pub fn forget(&self, signals: u64) {
        self.signals.fetch_and(!signals, Ordering::SeqCst);
    }

    /// The lock, for fork.
    pub fn lock(&self) -> &crate::arch::lock::RawLock {
        self.details.raw()
    }

    fn put(&self, sig: i32, info: &SigInfo) {
        let mut details = self.details.lock();
        if self.signals() & bit(sig) == 0 {
            details[index(sig)] = *info;
            self.signals.fetch_or(bit(sig), Ordering::SeqCst);
        }
    }

    /// Takes one of `wanted`.
    fn take(&self, wanted: u64) -> Option<(i32, SigInfo)> {
        if self.signals() & wanted == 0 {
            return None;
        }
        let details = self.details.lock();
        let sig = lowest(self.signals() & wanted)?;
        self.forget(bit(sig));
        Some((sig, details[index(sig)]))
    }
}

fn index(sig: i32) -> usize {
    (sig as usize).min(31)
}

fn lowest(signals: u64) -> Option<i32> {
    (signals != 0).then(|| signals.trailing_zeros() as i32 + 1)
}

/// Keeps a signal for this thread until the program lets it through.
pub fn hold(thread: &mut Thread, sig: i32, info: &SigInfo) {
    if thread.held & bit(sig) == 0 {
        thread.held |= bit(sig);
        thread.held_info[index(sig)] = *info;
    }
}

/// Takes a signal among `wanted` that waits for this thread or for the process.
pub fn take(thread: &mut Thread, wanted: u64) -> Option<(i32, SigInfo)> {
    if let Some(sig) = lowest(thread.held & wanted) {
        thread.held &= !bit(sig);
        return Some((sig, thread.held_info[index(sig)]));
    }
    thread.process().pending.take(wanted)
}

/// Signals that wait for this thread or for the process.
pub fn of(thread: &Thread) -> u64 {
    thread.held | thread.process().pending.signals()
}

/// Says what the thread is about to wait for. To be followed by a look at what there is.
pub fn announce(thread: &Thread, signals: u64) {
    thread.waits.store(signals & OWNED, Ordering::SeqCst);
}

/// A signal has come that the program blocks in this thread.
pub fn keep(thread: &mut Thread, uc: &mut Ucontext, sig: i32, info: &SigInfo) {
    if stubs::complete_wait(uc, sig, info) {
        return;
    }
    if !is_for_process(info) {
        hold(thread, sig, info);
        return;
    }
    thread.process().pending.put(sig, info);
    call_taker(thread, sig);
}

/// Another thread has left a signal with the process that this one lets through or waits for.
pub fn look(thread: &mut Thread, uc: &mut Ucontext) {
    let wanted = !thread.mask | stubs::awaited(uc);
    if let Some((sig, info)) = take(thread, wanted) {
        deliver_async(thread, uc, sig, &info, None);
    } else if let Some(sig) = lowest(thread.process().pending.signals()) {
        // This thread has changed its mind; there may be others.
        call_taker(thread, sig);
    }
}

/// Whether a signal was sent to the process rather than to a thread. `SI_QUEUE` and timers leave it open: what
/// another process queues is for the process, what this one queues is for the thread that got it.
fn is_for_process(info: &SigInfo) -> bool {
    const SI_USER: i32 = 0;
    const SI_QUEUE: i32 = -1;
    const SI_TIMER: i32 = -2;
    match info.code {
        SI_USER => true,
        SI_QUEUE => info.fields[0] as u32 != getpid(),
        code => code != SI_TIMER && code > -6,
    }
}

/// Makes a thread look that lets `sig` through or waits for it, if there is one.
fn call_taker(thread: &Thread, sig: i32) {
    let suits = |mask: u64, waits: u64| mask & bit(sig) == 0 || waits & bit(sig) != 0;
    if let Some(tid) = thread::find_other(thread, suits) {
        let info = SigInfo { signo: KICK_SIGNAL, code: LOOK, ..SigInfo::default() };
        // SAFETY: the kernel reads the information.
        unsafe { sys!(nr::RT_TGSIGQUEUEINFO, getpid(), tid, KICK_SIGNAL, &raw const info) };
    }
}
