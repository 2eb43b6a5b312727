//! Signals of the runtime's own ([`OWNED`]) that somebody sent and the program blocks: the kernel does not know
//! them to be blocked, so what it would do with them is done here.
//!
//! A signal for one thread waits in that thread's record. One for the process waits in
//! [`crate::process::Process::pending`], where every thread looks before it goes to sleep with a mask and whenever
//! its mask changes; a thread that lets it through or waits for it already is called. A thread that waits says for
//! what in [`Thread::waits`]: it stores that before it looks at the process's signals, and whoever leaves a signal
//! with the process looks at the threads afterwards, so one of the two sees the other.

use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use super::deliver::deliver_async;
use super::frame::{OWNED, SigInfo, Ucontext, bit};
use super::tables;
use crate::arch::lock::Lock;
use crate::arch::syscall::nr;
use crate::arch::{getpid, gettid};
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

    /// Adds a signal; another one of its number is one too many.
    pub fn put(&self, sig: i32, info: &SigInfo) {
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
    // In this order: the next of the kind may come on top of this one, and is one too many. Nobody takes it before
    // both are done.
    if thread.held.fetch_or(bit(sig), Ordering::Relaxed) & bit(sig) == 0 {
        thread.held_info[index(sig)] = *info;
    }
}

/// Marks the frame of a handler that will not look at held signals any more. The kernel writes 0 there in every
/// frame, and never reads it.
pub fn close(thread: &Thread, uc: &mut Ucontext) {
    thread.closing.store(&raw const *uc as u64, Ordering::Relaxed);
    mark(uc, CLOSING);
}

/// Takes back [`close`].
pub fn reopen(uc: &mut Ucontext) {
    mark(uc, 0);
}

fn mark(uc: &mut Ucontext, mark: u64) {
    // SAFETY: a field of the frame. Volatile: a handler on top of this one reads it.
    unsafe { (&raw mut uc.link).write_volatile(mark) };
    compiler_fence(Ordering::SeqCst);
}

/// [`Ucontext::link`] of a closed frame.
const CLOSING: u64 = 0x5347_c105;

/// Keeps a signal that came on top of a handler: for that handler's last look or, if that is over, as pending in the
/// kernel until it has returned.
pub fn postpone(thread: &mut Thread, uc: &mut Ucontext, sig: i32, info: &SigInfo) {
    let outer = thread.closing.load(Ordering::Relaxed) as *const Ucontext;
    // SAFETY: the address is 0 or one in this thread's runtime stack, whatever is there by now.
    let closed = !outer.is_null() && unsafe { (&raw const (*outer).link).read_volatile() } == CLOSING;
    if !closed {
        hold(thread, sig, info);
        return;
    }
    const SIG_BLOCK: u64 = 0;
    let blocked = tables::OPEN;
    // Nothing in the rest of that handler faults, so they may stay blocked until it returns.
    uc.sigmask |= blocked;
    // SAFETY: the kernel reads a mask and the information.
    unsafe {
        sys!(nr::RT_SIGPROCMASK, SIG_BLOCK, &raw const blocked, 0, 8);
        sys!(nr::RT_TGSIGQUEUEINFO, getpid(), gettid(), sig, &raw const *info);
    }
}

/// Takes a signal among `wanted` that waits for this thread or for the process.
pub fn take(thread: &mut Thread, wanted: u64) -> Option<(i32, SigInfo)> {
    if let Some(sig) = lowest(thread.held.load(Ordering::Relaxed) & wanted) {
        // In this order: another one of the kind may come at any time, and must not change this one's details.
        let info = thread.held_info[index(sig)];
        thread.held.fetch_and(!bit(sig), Ordering::Relaxed);
        return Some((sig, info));
    }
    thread.posted.take(wanted).or_else(|| thread.process().pending.take(wanted))
}

/// Signals that wait for this thread or for the process.
pub fn of(thread: &Thread) -> u64 {
    thread.held.load(Ordering::Relaxed) | thread.posted.signals() | thread.process().pending.signals()
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
    leave(thread, sig, info);
}

/// Leaves a signal with the process, for whichever thread may take it.
pub fn leave(thread: &Thread, sig: i32, info: &SigInfo) {
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
        call(tid);
    }
}

/// Makes a thread of this process look.
pub fn call(tid: u32) {
    let info = SigInfo { signo: KICK_SIGNAL, code: LOOK, ..SigInfo::default() };
    // SAFETY: the kernel reads the information.
    unsafe { sys!(nr::RT_TGSIGQUEUEINFO, getpid(), tid, KICK_SIGNAL, &raw const info) };
}
