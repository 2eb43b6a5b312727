//! Debuggers among the programs of a run: `ptrace` and `/proc/PID/mem`.
//!
//! What they read and write of an enclave goes to the machine, where the driver does it word by word (EDBGRD and
//! EDBGWR), as Linux does it for mappings of an enclave. The kernel, which sees ordinary memory there, is asked for
//! everything else, and whether the debugger may look at all: before a word is moved by `ptrace` the process must be
//! traced and stopped, and `/proc/PID/mem` must have been opened.

use core::sync::atomic::Ordering;

use usgx_wire::channel::{Request, op};
use usgx_wire::slot::{DEBUG_MAX, NR_WORDS, call, debug};

use super::tracer;
use crate::arch::close;
use crate::arch::syscall::{errno, nr, on_behalf};
use crate::enclu;
use crate::signals::frame::{SigInfo, Ucontext, signum};
use crate::thread::Thread;
use crate::{filter, link, procfs, sys, usercopy};

const TRACEME: u64 = 0;
const PEEKTEXT: u64 = 1;
const PEEKDATA: u64 = 2;
const POKETEXT: u64 = 4;
const POKEDATA: u64 = 5;
const CONT: u64 = 7;
const SINGLESTEP: u64 = 9;
const DETACH: u64 = 17;
const SYSCALL: u64 = 24;
const SYSEMU: u64 = 31;
const SYSEMU_SINGLESTEP: u64 = 32;
const SINGLEBLOCK: u64 = 33;
const GETEVENTMSG: u64 = 0x4201;
const SEIZE: u64 = 0x4206;
/// `PTRACE_O_TRACEEXEC`.
const TRACEEXEC: u64 = 0x10;
const WORD: usize = 8;
/// Bytes of SYSCALL, which the kernel has stepped over.
const SYSCALL_LEN: u64 = 2;

const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// `ptrace`. Its requests do not wait.
pub fn ptrace(thread: &mut Thread, args: [u64; 6]) -> i64 {
    match args[0] {
        TRACEME => trace_me(thread),
        PEEKTEXT | PEEKDATA | POKETEXT | POKEDATA => move_word(thread, args),
        // Every way to let a process run on; of one that is told to listen nothing runs.
        CONT | SINGLESTEP | DETACH | SYSCALL | SYSEMU | SYSEMU_SINGLESTEP | SINGLEBLOCK => {
            tracer::prepare(args[1]);
            tracer::note(args[0], args[1]);
            // SAFETY: the program's own call.
            unsafe { on_behalf(nr::PTRACE, args) }
        }
        SEIZE => {
            let [request, pid, address, options, ..] = args;
            // Without this event a new image would run on at once.
            // SAFETY: the program's own call.
            unsafe { on_behalf(nr::PTRACE, [request, pid, address, options | TRACEEXEC, 0, 0]) }
        }
        // SAFETY: the program's own call.
        _ => unsafe { on_behalf(nr::PTRACE, args) },
    }
}

/// `PTRACE_TRACEME`: takes effect with the next image, or before the thread sends itself a signal or raises an
/// exception. From the call on each trapped call would stop the thread, for a parent that expects nothing of it (and
/// in a vfork waits for the new image). Until then the kernel hands over all calls of the thread ([`on_call`]), since
/// unlike a filter that can be ended.
fn trace_me(thread: &mut Thread) -> i64 {
    if wants_tracer(thread) || procfs::is_traced() {
        return -errno::EPERM;
    }
    if !enclu::block_calls(thread) {
        // SAFETY: no memory is touched.
        return unsafe { sys!(nr::PTRACE, TRACEME) };
    }
    thread.process().trace_me.store(1, Ordering::Relaxed);
    0
}

/// A call of a thread that wants a tracer. One that signals is made with it, by the program's own instruction.
pub fn on_call(thread: &mut Thread, info: &SigInfo, uc: &mut Ucontext) {
    match info.syscall() {
        nr::KILL | nr::TKILL | nr::TGKILL | nr::RT_SIGQUEUEINFO | nr::RT_TGSIGQUEUEINFO => {
            be_traced_now(thread);
            uc.mcontext.rip -= SYSCALL_LEN;
        }
        number => super::on_trap(thread, number, uc),
    }
}

/// Whether the program has asked its parent to trace it, and the kernel does not know yet.
pub fn wants_tracer(thread: &Thread) -> bool {
    thread.process().trace_me.load(Ordering::Relaxed) != 0
}

/// Lets the parent trace the process from here on, if it wants that and does not do so yet; whether it does now.
pub fn be_traced_now(thread: &mut Thread) -> bool {
    enclu::allow_calls(thread);
    thread.process().trace_me.swap(0, Ordering::Relaxed) != 0
        // SAFETY: no memory is touched.
        && unsafe { sys!(nr::PTRACE, TRACEME) == 0 }
}

/// Makes the instruction run again that has raised an exception, so that it stops the thread for its parent.
pub fn raise_again(uc: &mut Ucontext, sig: i32) {
    const INT3: u8 = 0xcc;
    let before = uc.mcontext.rip.wrapping_sub(1);
    // The only exception of which the context is that behind the instruction.
    if sig == signum::SIGTRAP && usercopy::get::<u8>(before) == Some(INT3) {
        uc.mcontext.rip = before;
    }
}

/// `PTRACE_PEEKDATA`, `PTRACE_POKEDATA` and their like.
fn move_word(thread: &mut Thread, args: [u64; 6]) -> i64 {
    let [request, pid, address, data, ..] = args;
    let mut message = 0u64;
    // SAFETY: the kernel writes one word. It refuses if the process is not traced by this thread, or runs.
    let held = unsafe { sys!(nr::PTRACE, GETEVENTMSG, pid, 0, &raw mut message) };
    if held < 0 {
        return held;
    }
    // SAFETY: the program's own call.
    let ordinary = || unsafe { on_behalf(nr::PTRACE, args) };
    let Some(target) = Target::of(pid as u32) else { return ordinary() };
    let is_write = matches!(request, POKETEXT | POKEDATA);
    let word = if is_write { data.to_le_bytes() } else { [0; WORD] };
    match target.access(thread, address, WORD, is_write.then_some((&raw const word) as u64)) {
        Access::Ordinary(_) => ordinary(),
        Access::Moved(WORD) if is_write => 0,
        Access::Moved(WORD) => {
            // SAFETY: the thread has a slot, whose data area holds the word.
            let copied = unsafe { usercopy::copy_out(data, link::data(thread), WORD) };
            if copied == WORD { 0 } else { -errno::EFAULT }
        }
        Access::Moved(_) | Access::Failed => -errno::EIO,
    }
}

/// A process that a debugger looks into, as the machine numbers it.
pub struct Target(u64);

/// What became of an access.
enum Access {
    /// So many bytes were moved, to or from the slot's data area.
    Moved(usize),
    /// No enclave is mapped at the address and so many bytes behind it.
    Ordinary(u64),
    /// It is refused.
    Failed,
}

impl Target {
    /// The process of a thread, if the machine serves it.
    pub fn of(tid: u32) -> Option<Self> {
        // SAFETY: opens a descriptor, close-on-exec.
        let open = |pid: u32| unsafe { sys!(nr::PIDFD_OPEN, pid, 0) };
        let mut fd = open(tid);
        if fd < 0 {
            // Only a process's first thread has the process's number.
            fd = open(procfs::process_of(tid)?);
        }
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        let request = Request { op: op::DEBUGGEE, reserved: 0, args: [0; 4] };
        let (answer, _) = link::channel_call(request, Some(fd), true);
        close(fd);
        (answer.status == 0).then_some(Self(answer.values[0]))
    }

    /// Bytes from `address` to where an enclave is mapped.
    fn bytes_to_enclave(&self, thread: &mut Thread, address: u64) -> u64 {
        match self.access(thread, address, 1, None) {
            Access::Ordinary(bytes) => bytes,
            Access::Moved(_) | Access::Failed => 0,
        }
    }

    /// Whether an enclave is mapped at `address`.
    pub fn has_enclave_at(&self, thread: &mut Thread, address: u64) -> bool {
        self.bytes_to_enclave(thread, address) == 0
    }

    /// Reads at most [`DEBUG_MAX`] bytes at `address` into the data area of the thread's slot, or writes those at
    /// `source`, an address in this process.
    fn access(&self, thread: &mut Thread, address: u64, length: usize, source: Option<u64>) -> Access {
        if link::ensure_slot(thread).is_err() {
            return Access::Failed;
        }
        let mut length = length;
        if let Some(source) = source {
            // SAFETY: the thread has a slot, whose data area is longer.
            length = unsafe { usercopy::copy_in(link::data(thread), source, length) };
        }
        let direction = if source.is_some() { debug::WRITE } else { debug::READ };
        let mut words = [0; NR_WORDS];
        words[..5].copy_from_slice(&[call::DEBUG, self.0, address, length as u64, direction]);
        loop {
            let reply = link::slot_call(thread, words);
            match reply[1] as i64 {
                0 => return Access::Ordinary(reply[2]),
                moved @ 1.. => return Access::Moved(moved as usize),
                // Signals do not end it on Linux.
                error if error == -errno::EINTR => {}
                // It has ended, or has another image.
                error if error == -errno::ESRCH => return Access::Ordinary(u64::MAX),
                _ => return Access::Failed,
            }
        }
    }
}

/// `process_vm_readv`, `process_vm_writev`: as on Linux they move nothing of an enclave, and end where one begins.
pub fn process_vm(thread: &mut Thread, number: u64, args: [u64; 6]) -> i64 {
    const MAX_COUNT: u64 = 1024;
    let [pid, local, local_count, remote, remote_count, flags] = args;
    // SAFETY: the program's own call.
    let ordinary = || unsafe { on_behalf(number, args) };
    if remote_count > MAX_COUNT || flags != 0 || link::ensure_slot(thread).is_err() {
        return ordinary();
    }
    let Some(target) = Target::of(pid as u32) else { return ordinary() };
    for index in 0..remote_count {
        let Some([start, length]) = usercopy::get::<[u64; 2]>(remote + 16 * index) else { return ordinary() };
        let before = target.bytes_to_enclave(thread, start);
        if length <= before {
            continue;
        }
        if before == 0 && index == 0 {
            return -errno::EFAULT;
        }
        // The ranges up to here, the last one shorter; nobody else uses the data area now.
        let (shorter, size) = (link::data(thread), 16 * (index as usize + 1));
        // SAFETY: the thread has a slot, and its data area is longer than all ranges together.
        unsafe {
            if usercopy::copy_in(shorter, remote, size) != size {
                return -errno::EFAULT;
            }
            shorter.add(size - 8).cast::<u64>().write_unaligned(before);
            return on_behalf(number, [pid, local, local_count, shorter as u64, index + 1, 0]);
        }
    }
    ordinary()
}

/// The open family: reads and writes of a process's memory are to trap. `None` if it is something else.
pub fn open(number: u64, args: [u64; 6]) -> Option<i64> {
    const AT_FDCWD: u64 = -100i64 as u64;
    const O_PATH_CLOEXEC: u64 = 0o10000000 | 0o2000000;
    let (dirfd, path) = match number {
        nr::OPEN | nr::CREAT => (AT_FDCWD, args[0]),
        _ => (args[0], args[1]),
    };
    if !ends_with_mem(path) {
        return None;
    }
    // Such a descriptor opens nothing, so nobody waits.
    // SAFETY: the kernel reads the program's path.
    let probe = unsafe { sys!(nr::OPENAT, dirfd, path, O_PATH_CLOEXEC) };
    let probe = i32::try_from(probe).ok().filter(|fd| *fd >= 0)?;
    let is_ours = is_in_proc(probe);
    close(probe);
    if !is_ours {
        return None;
    }
    // SAFETY: the program's own call; opening a process's memory does not wait.
    let fd = unsafe { on_behalf(number, args) };
    if fd >= 0 {
        // Without it (another thread has a filter of its own) the kernel answers.
        let _ = filter::watch(fd as i32);
    }
    Some(fd)
}

/// Whether the last part of a path of the program's is `mem`.
fn ends_with_mem(path: u64) -> bool {
    let mut bytes = [0u8; 64];
    // SAFETY: the buffer is as long.
    let read = unsafe { usercopy::copy_in(bytes.as_mut_ptr(), path, bytes.len()) };
    let text = bytes[..read].split(|byte| *byte == 0).next().unwrap_or_default();
    text.len() < read && text.rsplit(|byte| *byte == b'/').next() == Some(b"mem")
}

/// Whether a file is one of `/proc`, wherever that is mounted.
fn is_in_proc(fd: i32) -> bool {
    let mut about = [0u64; 15];
    // SAFETY: the kernel writes a `struct statfs` of 120 bytes.
    (unsafe { sys!(nr::FSTATFS, fd, about.as_mut_ptr()) }) == 0 && about[0] == PROC_SUPER_MAGIC
}

/// The thread whose memory a descriptor is: it leads to `/proc/PID/mem` or `/proc/PID/task/TID/mem`.
fn whose_memory(fd: i32) -> Option<u32> {
    let mut path = [0u8; 64];
    let len = procfs::path_of(fd, &mut path)?;
    let mut parts = path[..len].rsplit(|byte| *byte == b'/');
    let is_mem = parts.next() == Some(b"mem");
    let tid = procfs::decimal(parts.next()?)?;
    (is_mem && is_in_proc(fd)).then_some(tid)
}

/// `read`, `write` and all their kin on a descriptor that may be a process's memory; `None` if it is not, or the
/// process has nothing to do with the machine.
pub fn transfer(thread: &mut Thread, number: u64, args: [u64; 6], is_write: bool) -> Option<i64> {
    const SEEK_SET: u64 = 0;
    const SEEK_CUR: u64 = 1;
    let fd = args[0] as i32;
    let target = Target::of(whose_memory(fd)?)?;
    let is_vector = !matches!(number, nr::READ | nr::WRITE | nr::PREAD64 | nr::PWRITE64);
    let has_position = match number {
        nr::READ | nr::WRITE | nr::READV | nr::WRITEV => false,
        // For these, -1 is "where the file stands".
        nr::PREADV2 | nr::PWRITEV2 => args[3] != u64::MAX,
        _ => true,
    };
    // SAFETY: the position is a number.
    let position = if has_position { args[3] } else { unsafe { sys!(nr::LSEEK, fd, 0, SEEK_CUR) as u64 } };
    let mut stretch = Stretch { fd, target, address: position, is_write };
    let result = if is_vector {
        stretch.move_vector(thread, args[1], args[2])
    } else {
        stretch.move_bytes(thread, args[1], args[2] as usize)
    };
    if !has_position {
        // SAFETY: as above.
        unsafe { sys!(nr::LSEEK, fd, stretch.address, SEEK_SET) };
    }
    Some(result)
}

/// A read or write of a process's memory that goes on from address to address.
struct Stretch {
    fd: i32,
    target: Target,
    address: u64,
    is_write: bool,
}

impl Stretch {
    /// As Linux treats vectors where a file knows none: one after the other, until one is cut short.
    fn move_vector(&mut self, thread: &mut Thread, vector: u64, count: u64) -> i64 {
        const MAX_COUNT: u64 = 1024;
        if count > MAX_COUNT {
            return -errno::EINVAL;
        }
        let mut total = 0;
        for index in 0..count {
            let Some([buffer, length]) = usercopy::get::<[u64; 2]>(vector + 16 * index) else {
                return if total > 0 { total } else { -errno::EFAULT };
            };
            let moved = self.move_bytes(thread, buffer, length as usize);
            if moved < 0 {
                return if total > 0 { total } else { moved };
            }
            total += moved;
            if moved < length as i64 {
                break;
            }
        }
        total
    }

    /// Moves up to `length` bytes to or from `buffer`, in pieces of at most [`DEBUG_MAX`], as Linux does: a piece that
    /// fails ends it, and is an error only if it is the first.
    fn move_bytes(&mut self, thread: &mut Thread, buffer: u64, length: usize) -> i64 {
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(DEBUG_MAX);
            let at = buffer + done as u64;
            let moved = match self.target.access(thread, self.address, piece, self.is_write.then_some(at)) {
                // SAFETY: the thread has a slot, whose data area holds so many bytes.
                Access::Moved(moved) if !self.is_write => unsafe {
                    let copied = usercopy::copy_out(at, link::data(thread), moved);
                    if copied == moved { moved as i64 } else { -errno::EFAULT }
                },
                Access::Moved(moved) => moved as i64,
                Access::Failed => -errno::EIO,
                Access::Ordinary(bytes) => {
                    let piece = (length - done).min(usize::try_from(bytes).unwrap_or(usize::MAX));
                    let number = if self.is_write { nr::PWRITE64 } else { nr::PREAD64 };
                    // SAFETY: the program's own call, or a part of it.
                    unsafe { on_behalf(number, [self.fd as u64, at, piece as u64, self.address, 0, 0]) }
                }
            };
            if moved <= 0 {
                return if done > 0 { done as i64 } else { moved };
            }
            done += moved as usize;
            self.address += moved as u64;
        }
        done as i64
    }
}
