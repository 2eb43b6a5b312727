//! The line to the machine: the door, the channel, and slot calls.
//!
//! Each process image says hello once through the door and gets a channel and a region. A fork's child does so
//! when it first needs the machine, or at once if it inherits enclaves. A thread gets a slot with its first
//! slot call. If the machine dies, every call answers EIO from then on, and one message says so.

use core::sync::atomic::{AtomicI32, AtomicU32, Ordering, fence};

use usgx_wire::channel::{Answer, HELLO_MAGIC, Hello, Request, Welcome, op};
use usgx_wire::place::REGION_BASE;
use usgx_wire::process::{self, DATA_OFFSET, DATA_SIZE, Header, REGION_SIZE, SLOT_STRIDE, SLOTS_OFFSET};
use usgx_wire::slot::{NR_WORDS, Slot, turn, upcall, waiter};

use crate::arch::lock::Lock;
use crate::arch::syscall::{errno, nr};
use crate::arch::{close, complain, getpid, gettid, processor};
use crate::process::{BOOT, reserve};
use crate::signals::frame::{bit, signum};
use crate::thread::Thread;
use crate::{source, sys, usercopy};

/// The channel, or -1 before the hello.
static CHANNEL: Lock<i32> = Lock::new(-1);
/// A copy of the channel's number for those who only poll it.
static CHANNEL_FD: AtomicI32 = AtomicI32::new(-1);
/// Set when the machine is found dead.
static DEAD: AtomicU32 = AtomicU32::new(0);

/// Most descriptors in one message.
const MAX_FDS: usize = 2;

/// A message of a socket with descriptors: `struct msghdr` and friends.
mod message {
    use super::{MAX_FDS, errno, nr, sys};

    #[repr(C)]
    struct Iovec {
        base: u64,
        len: u64,
    }

    #[repr(C)]
    struct Msghdr {
        name: u64,
        namelen: u32,
        pad: u32,
        iov: *const Iovec,
        iovlen: u64,
        control: *mut Control,
        controllen: u64,
        flags: i32,
        pad2: i32,
    }

    #[repr(C, align(8))]
    struct Control {
        len: u64,
        level: i32,
        kind: i32,
        fds: [i32; MAX_FDS],
    }

    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    const MSG_NOSIGNAL: u64 = 0x4000;
    const MSG_CMSG_CLOEXEC: u64 = 0x4000_0000;

    /// Sends one message with at most one descriptor.
    pub(super) fn send<T>(socket: i32, message: &T, fd: Option<i32>) -> Result<(), i64> {
        let iov = Iovec { base: (&raw const *message) as u64, len: size_of::<T>() as u64 };
        let mut control =
            Control { len: 20, level: SOL_SOCKET, kind: SCM_RIGHTS, fds: [fd.unwrap_or(-1), -1] };
        let header = Msghdr {
            name: 0,
            namelen: 0,
            pad: 0,
            iov: &raw const iov,
            iovlen: 1,
            control: if fd.is_some() { &raw mut control } else { core::ptr::null_mut() },
            controllen: if fd.is_some() { 24 } else { 0 },
            flags: 0,
            pad2: 0,
        };
        loop {
            // SAFETY: all parts of the message live on this stack.
            match unsafe { sys!(nr::SENDMSG, socket, &raw const header, MSG_NOSIGNAL) } {
                result if result == -errno::EINTR => {}
                result if result < 0 => return Err(-result),
                _ => return Ok(()),
            }
        }
    }

    /// Receives one message, and the descriptors that came with it (-1 where there is none).
    pub(super) fn receive<T: Copy>(socket: i32, into: &mut T, cloexec: bool) -> Result<[i32; MAX_FDS], i64> {
        let iov = Iovec { base: (&raw mut *into) as u64, len: size_of::<T>() as u64 };
        let mut control = Control { len: 0, level: 0, kind: 0, fds: [-1; MAX_FDS] };
        let mut header = Msghdr {
            name: 0,
            namelen: 0,
            pad: 0,
            iov: &raw const iov,
            iovlen: 1,
            control: &raw mut control,
            controllen: size_of::<Control>() as u64,
            flags: 0,
            pad2: 0,
        };
        let flags = if cloexec { MSG_CMSG_CLOEXEC } else { 0 };
        loop {
            // SAFETY: all parts of the message live on this stack.
            let result = unsafe { sys!(nr::RECVMSG, socket, &raw mut header, flags) };
            if result == -errno::EINTR {
                continue;
            }
            if result < 0 {
                return Err(-result);
            }
            let mut fds = [-1; MAX_FDS];
            if header.controllen >= 16 && control.level == SOL_SOCKET && control.kind == SCM_RIGHTS {
                let count = (control.len.saturating_sub(16) / 4) as usize;
                fds[..count.min(MAX_FDS)].copy_from_slice(&control.fds[..count.min(MAX_FDS)]);
            }
            if result as usize != size_of::<T>() {
                fds.into_iter().filter(|fd| *fd >= 0).for_each(crate::arch::close);
                return Err(errno::EIO);
            }
            return Ok(fds);
        }
    }
}

/// The region's first page. Valid from [`hello`] on; a fork's child still sees its parent's, which says the same.
pub fn header() -> &'static Header {
    // SAFETY: mapped at start and never unmapped.
    unsafe { &*(REGION_BASE as *const Header) }
}

/// A pair of connected `SOCK_SEQPACKET` sockets, close-on-exec.
pub fn socket_pair() -> Result<[i32; 2], i64> {
    const AF_UNIX: u64 = 1;
    const SOCK_SEQPACKET_CLOEXEC: u64 = 5 | 0o2000000;
    let mut pair = [-1i32; 2];
    // SAFETY: the kernel writes two descriptors.
    let result = unsafe { sys!(nr::SOCKETPAIR, AF_UNIX, SOCK_SEQPACKET_CLOEXEC, 0, pair.as_mut_ptr()) };
    if result < 0 { Err(-result) } else { Ok(pair) }
}

/// Says hello through the door and maps the region.
pub fn hello(ticket: [u64; 2]) -> Result<(), i64> {
    let mut channel = CHANNEL.lock();
    hello_locked(&mut channel, ticket)
}

fn hello_locked(channel: &mut i32, ticket: [u64; 2]) -> Result<(), i64> {
    let boot = BOOT.get();
    let [ours, theirs] = socket_pair()?;
    let hello = Hello { magic: HELLO_MAGIC, version: usgx_wire::VERSION, pid: getpid(), reserved: 0, ticket };
    let sent = message::send(boot.door_fd, &hello, Some(theirs));
    close(theirs);
    let ours = reserve(ours);
    let mut welcome = Welcome { status: 0, version: 0 };
    let result = sent.and_then(|()| message::receive(ours, &mut welcome, true)).and_then(|[region, _]| {
        let mapped = map_region(region, &welcome);
        close(region);
        mapped
    });
    if result.is_err() {
        close(ours);
        return result;
    }
    *channel = ours;
    CHANNEL_FD.store(ours, Ordering::Relaxed);
    Ok(())
}

fn map_region(region: i32, welcome: &Welcome) -> Result<(), i64> {
    if welcome.status < 0 {
        return Err(-i64::from(welcome.status));
    }
    if welcome.version != usgx_wire::VERSION || region < 0 {
        return Err(errno::EINVAL);
    }
    const PROT_RW: u64 = 3;
    const MAP_SHARED_FIXED_NORESERVE: u64 = 0x1 | 0x10 | 0x4000;
    // SAFETY: the place is the runtime's; at most the parent's region is replaced, which this process does not use.
    let result =
        unsafe { sys!(nr::MMAP, REGION_BASE, REGION_SIZE, PROT_RW, MAP_SHARED_FIXED_NORESERVE, region, 0) };
    if result < 0 {
        return Err(-result);
    }
    // Its size would swamp a core dump.
    const MADV_DONTDUMP: u64 = 16;
    // SAFETY: an attribute of the mapping.
    unsafe { sys!(nr::MADVISE, REGION_BASE, REGION_SIZE, MADV_DONTDUMP) };
    if header().magic != process::MAGIC || header().version != usgx_wire::VERSION {
        return Err(errno::EINVAL);
    }
    Ok(())
}

/// Drops what belongs to the parent, in a fork's child. Preconditions: the channel's lock is free.
pub fn forget_parent() {
    let mut channel = CHANNEL.lock();
    close(*channel);
    *channel = -1;
    CHANNEL_FD.store(-1, Ordering::Relaxed);
}

/// The channel's lock, for fork.
pub fn channel_lock() -> &'static crate::arch::lock::RawLock {
    CHANNEL.raw()
}

/// Sends a request, with a descriptor if one is given, and waits for its answer. A fork's child connects first.
pub fn channel_call(request: Request, fd: Option<i32>, cloexec: bool) -> (Answer, [i32; MAX_FDS]) {
    let failed = |error: i64| (Answer { status: -error, values: [0; 4] }, [-1; MAX_FDS]);
    if DEAD.load(Ordering::Relaxed) != 0 {
        return failed(errno::EIO);
    }
    let mut channel = CHANNEL.lock();
    if *channel < 0 && hello_locked(&mut channel, [0; 2]).is_err() {
        drop(channel);
        return failed(died());
    }
    let mut answer = Answer { status: 0, values: [0; 4] };
    let result = match message::send(*channel, &request, fd) {
        Ok(()) => message::receive(*channel, &mut answer, cloexec),
        // The descriptor was not one: the caller's fault, not the machine's.
        Err(error) if error == errno::EBADF && fd.is_some() => return failed(error),
        Err(error) => Err(error),
    };
    drop(channel);
    match result {
        Ok(fds) => (answer, fds),
        Err(_) => failed(died()),
    }
}

/// Notes that the machine is gone; returns the error that everybody gets.
fn died() -> i64 {
    if DEAD.swap(1, Ordering::Relaxed) == 0 {
        complain("usgx: the machine has gone away; SGX calls fail with EIO from here on\n");
    }
    errno::EIO
}

/// Sends a message with one descriptor and waits for a plain answer on `reply`; for the attendant.
pub fn ask<Q, A: Copy>(socket: i32, request: &Q, passed: i32, reply: i32, answer: &mut A) -> Result<(), i64> {
    let sent = message::send(socket, request, Some(passed));
    close(passed);
    sent?;
    message::receive(reply, answer, true).map(|_| ())
}

/// A thread's slot. Preconditions: the thread has one.
pub fn slot(thread: &Thread) -> &'static Slot {
    let index = thread.slot as usize;
    // SAFETY: the machine gave this index, the region holds so many slots, and all fields are atomic.
    unsafe { &*((REGION_BASE as usize + SLOTS_OFFSET + index * SLOT_STRIDE) as *const Slot) }
}

/// A thread's data area. Preconditions: the thread has a slot.
pub fn data(thread: &Thread) -> *mut u8 {
    (REGION_BASE as usize + DATA_OFFSET + thread.slot as usize * DATA_SIZE) as *mut u8
}

/// Gets the thread its slot, if it has none yet.
pub fn ensure_slot(thread: &mut Thread) -> Result<(), i64> {
    if thread.slot >= 0 {
        return Ok(());
    }
    let request = Request { op: op::THREAD, reserved: 0, args: [u64::from(gettid()), 0, 0, 0] };
    let (answer, [kick, _]) = channel_call(request, None, true);
    if answer.status < 0 {
        return Err(-answer.status);
    }
    if answer.values[0] as usize >= process::MAX_SLOTS {
        return Err(errno::EIO);
    }
    thread.kick_fd = reserve(kick);
    arm_kick(thread.kick_fd);
    thread.slot = answer.values[0] as i32;
    Ok(())
}

/// The signal of a kick. One that is pending swallows an exception of the same number, so it must be one whose
/// exceptions are faults: those come again with their instruction. (A system call whose SIGSYS were swallowed
/// would be skipped.)
pub const KICK_SIGNAL: i32 = signum::SIGFPE;

/// Makes the kick socket signal the calling thread.
fn arm_kick(fd: i32) {
    const F_SETFL: u64 = 4;
    const F_SETSIG: u64 = 10;
    const F_SETOWN_EX: u64 = 15;
    const F_OWNER_TID: i32 = 0;
    const O_ASYNC_NONBLOCK: u64 = 0o20000 | 0o4000;
    let owner = [F_OWNER_TID, gettid() as i32];
    // SAFETY: `owner` is a `struct f_owner_ex`.
    unsafe {
        sys!(nr::FCNTL, fd, F_SETOWN_EX, owner.as_ptr());
        sys!(nr::FCNTL, fd, F_SETSIG, KICK_SIGNAL);
        sys!(nr::FCNTL, fd, F_SETFL, O_ASYNC_NONBLOCK);
    }
}

/// Empties the kick socket.
pub fn drain_kicks(thread: &Thread) {
    let mut buffer = [0u8; 64];
    // SAFETY: the kernel writes into the buffer; the socket does not block.
    while unsafe { sys!(nr::READ, thread.kick_fd, buffer.as_mut_ptr(), buffer.len()) } > 0 {}
}

/// Whether a kick has come that nobody has looked at.
fn is_kicked(thread: &Thread) -> bool {
    const MSG_PEEK_DONTWAIT: u64 = 0x2 | 0x40;
    let mut byte = 0u8;
    // SAFETY: the kernel writes at most one byte; without a socket it refuses.
    unsafe { sys!(nr::RECVFROM, thread.kick_fd, &raw mut byte, 1, MSG_PEEK_DONTWAIT) > 0 }
}

/// Gives the slot of `thread` back. `own_fds`: whether its descriptors are the calling process's.
pub fn end_slot(thread: &mut Thread, own_fds: bool) {
    if thread.slot < 0 {
        return;
    }
    let request = Request { op: op::THREAD_END, reserved: 0, args: [thread.slot as u64, 0, 0, 0] };
    thread.slot = -1;
    channel_call(request, None, true);
    if own_fds {
        close(thread.kick_fd);
    }
    thread.kick_fd = -1;
}

const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;

/// Makes a call and waits for its result; serves the machine's upcalls meanwhile. `words[0]` is the call; in the
/// result `words[1]` is -EIO if the machine is gone.
///
/// Runs in a handler: the program's signals are blocked, and kicks as well.
pub fn slot_call(thread: &mut Thread, words: [u64; NR_WORDS]) -> [u64; NR_WORDS] {
    let mut failed = [0; NR_WORDS];
    failed[1] = errno::EIO.wrapping_neg() as u64;
    if DEAD.load(Ordering::Relaxed) != 0 || ensure_slot(thread).is_err() {
        return failed;
    }
    thread.calling = 1;
    let slot = slot(thread);
    put_words(slot, &words);
    pass_turn(slot, turn::CALL);
    let result = loop {
        match await_turn(slot) {
            Some(turn::REPLY) => {
                let result = core::array::from_fn(|i| slot.words[i].load(Ordering::Relaxed));
                slot.turn.store(turn::IDLE, Ordering::Release);
                break result;
            }
            Some(turn::UPCALL) => {
                let question: [u64; NR_WORDS] =
                    core::array::from_fn(|i| slot.words[i].load(Ordering::Relaxed));
                let answer = serve(thread, &question);
                slot.words[1].store(answer, Ordering::Relaxed);
                pass_turn(slot, turn::ANSWER);
            }
            _ => {
                died();
                break failed;
            }
        }
    };
    thread.calling = 0;
    result
}

fn put_words(slot: &Slot, words: &[u64; NR_WORDS]) {
    for (to, from) in slot.words.iter().zip(words) {
        to.store(*from, Ordering::Relaxed);
    }
}

/// Gives the turn to the machine and wakes it if it sleeps.
fn pass_turn(slot: &Slot, to: u32) {
    slot.processor.store(processor(), Ordering::Relaxed);
    slot.turn.store(to, Ordering::Release);
    // Pairs with the machine's fence between setting its waiter bit and looking at `turn`.
    fence(Ordering::SeqCst);
    if slot.waiting.load(Ordering::Relaxed) & waiter::MACHINE != 0 {
        // SAFETY: the kernel takes the word's address only.
        unsafe { sys!(nr::FUTEX, slot.turn.as_ptr(), FUTEX_WAKE, i32::MAX) };
    }
}

/// Waits until it is the runtime's turn; `None` if the machine is gone.
fn await_turn(slot: &Slot) -> Option<u32> {
    let ours = |turn: u32| turn == turn::REPLY || turn == turn::UPCALL || turn == turn::CLOSED;
    for _ in 0..slot.looks.load(Ordering::Relaxed) {
        let turn = slot.turn.load(Ordering::Acquire);
        if ours(turn) {
            return Some(turn);
        }
        core::hint::spin_loop();
    }
    slot.waiting.fetch_or(waiter::RUNTIME, Ordering::SeqCst);
    let result = loop {
        let turn = slot.turn.load(Ordering::SeqCst);
        if ours(turn) {
            break Some(turn);
        }
        let timeout: [u64; 2] = [1, 0];
        // SAFETY: the kernel reads the word and the timeout.
        let result = unsafe { sys!(nr::FUTEX, slot.turn.as_ptr(), FUTEX_WAIT, turn, timeout.as_ptr()) };
        const ETIMEDOUT: i64 = 110;
        if result == -ETIMEDOUT && hung_up() {
            break None;
        }
    };
    slot.waiting.fetch_and(!waiter::RUNTIME, Ordering::Relaxed);
    result
}

/// Whether the machine has closed the channel.
fn hung_up() -> bool {
    const POLLHUP: u64 = 0x10;
    let mut poll: u64 = u64::from(CHANNEL_FD.load(Ordering::Relaxed) as u32);
    // SAFETY: `poll` is a `struct pollfd`: descriptor, events, revents.
    unsafe { sys!(nr::POLL, &raw mut poll, 1, 0) };
    (poll >> 48) & POLLHUP != 0
}

/// Answers an upcall.
fn serve(thread: &Thread, question: &[u64; NR_WORDS]) -> u64 {
    let length = (question[2] as usize).min(DATA_SIZE);
    match question[0] {
        // SAFETY: the data area is as long, and it is this call's.
        upcall::READ => unsafe { usercopy::copy_in(data(thread), question[1], length) as u64 },
        // SAFETY: the same.
        upcall::WRITE => unsafe { usercopy::copy_out(question[1], data(thread), length) as u64 },
        upcall::SOURCE => source::copy(thread, question[1], length, question[3] as usize),
        upcall::SIGNAL_PENDING => u64::from(signal_pending(thread)),
        upcall::SOCKET_INODE => socket_inode(question[1] as i32).unwrap_or(0),
        _ => 0,
    }
}

/// Whether a signal waits that the program's mask lets through and that would do something.
fn signal_pending(thread: &Thread) -> bool {
    let mut pending = 0u64;
    // SAFETY: the kernel writes one word.
    unsafe { sys!(nr::RT_SIGPENDING, &raw mut pending, 8) };
    if is_kicked(thread) {
        // It is the runtime's, and no reason for the program to be interrupted.
        pending &= !bit(KICK_SIGNAL);
    }
    let actions = thread.process().actions.lock();
    (1..=64).any(|sig| {
        let harmless =
            bit(signum::SIGCHLD) | bit(signum::SIGCONT) | bit(signum::SIGURG) | bit(signum::SIGWINCH);
        let handler = actions.get(sig).handler;
        pending & !thread.mask & bit(sig) != 0 && handler != 1 && !(handler == 0 && harmless & bit(sig) != 0)
    })
}

/// The inode number of the socket behind `fd`, if it is an open socket.
pub fn socket_inode(fd: i32) -> Option<u64> {
    let mut stat = [0u64; 18];
    // SAFETY: the kernel writes a `struct stat` of 144 bytes.
    let result = unsafe { sys!(nr::FSTAT, fd, stat.as_mut_ptr()) };
    const S_IFMT: u64 = 0o170000;
    const S_IFSOCK: u64 = 0o140000;
    (result == 0 && stat[3] & S_IFMT == S_IFSOCK).then_some(stat[1])
}
