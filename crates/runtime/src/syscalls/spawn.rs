//! The fork family, and the end of threads.
//!
//! A child that shares the memory (a thread, a vfork child) cannot run on its parent's signal stack. It starts on
//! the stack of a record of its own, where a copy of the parent's frame waits, and returns through that copy: so
//! registers, extended state and mask are exactly the parent's at the call. A child with memory of its own
//! returns through the copy of the frame that fork has made; before it does, it drops what is its parent's (the
//! channel, the userfaultfd, kick sockets) and, if it inherits enclaves, connects to the machine and maps them
//! anew.

use core::arch::asm;
use core::sync::atomic::Ordering;

use usgx_wire::channel::{Request, op};

use super::memory;
use crate::arch::lock::RawLock;
use crate::arch::syscall::{errno, nr, on_behalf};
use crate::arch::{close, complain};
use crate::enclu;
use crate::signals::frame::{FP_MAGIC1, FXSAVE_SIZE, FpState, OWNED, Sigaction, StackT, Ucontext, bit};
use crate::signals::pending::Pending;
use crate::signals::tables::{self, IGNORE};
use crate::thread::{self, Thread};
use crate::{enclaves, filter, link, sys, usercopy};

const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
const CLONE_SIGHAND: u64 = 0x800;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const SIGCHLD: u64 = 17;

/// Words of the largest `struct clone_args` that is understood.
const MAX_WORDS: usize = 16;
/// Bytes of the smallest one.
const MIN_SIZE: u64 = 64;

/// A call of the fork family, whichever of the four it was.
struct Spawn {
    flags: u64,
    /// The child's stack pointer, or 0: the parent's.
    sp: u64,
    how: How,
}

enum How {
    Fork,
    Clone([u64; 6]),
    Clone3([u64; MAX_WORDS], u64),
}

impl Spawn {
    fn parse(number: u64, args: [u64; 6]) -> Result<Self, i64> {
        Ok(match number {
            nr::FORK => Self { flags: SIGCHLD, sp: 0, how: How::Fork },
            nr::VFORK => {
                let flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
                Self { flags, sp: 0, how: How::Clone([flags, 0, 0, 0, 0, 0]) }
            }
            nr::CLONE => Self { flags: args[0], sp: args[1], how: How::Clone(args) },
            _ => {
                let size = args[1];
                if size < MIN_SIZE {
                    return Err(errno::EINVAL);
                }
                if size > (MAX_WORDS * 8) as u64 {
                    return Err(errno::E2BIG);
                }
                let mut words = [0u64; MAX_WORDS];
                // SAFETY: `size` is at most that of `words`.
                if unsafe { usercopy::copy_in(words.as_mut_ptr().cast(), args[0], size as usize) }
                    != size as usize
                {
                    return Err(errno::EFAULT);
                }
                if (words[5] == 0) != (words[6] == 0) {
                    return Err(errno::EINVAL);
                }
                let flags = words[0];
                words[0] &= !CLONE_CLEAR_SIGHAND;
                Self { flags, sp: words[5].wrapping_add(words[6]), how: How::Clone3(words, size) }
            }
        })
    }
}

/// `clone`, `clone3`, `fork`, `vfork`.
pub fn spawn(thread: &mut Thread, uc: &mut Ucontext, number: u64, args: [u64; 6]) -> i64 {
    match Spawn::parse(number, args) {
        Err(error) => -error,
        Ok(spawn) if spawn.flags & CLONE_VM != 0 => share(thread, uc, &spawn),
        Ok(spawn) => fork(thread, uc, &spawn),
    }
}

/// What a child that shares the memory finds on top of its stack.
#[repr(C)]
struct Start {
    thread: *mut Thread,
    frame: *mut Ucontext,
    clear_handlers: u64,
    reserved: u64,
}

/// A child that shares the memory.
fn share(thread: &mut Thread, uc: &mut Ucontext, spawn: &Spawn) -> i64 {
    let Some(child) = Thread::allocate(thread.process) else { return -errno::EAGAIN };
    let vfork = spawn.flags & CLONE_VFORK != 0;
    if spawn.flags & CLONE_SIGHAND == 0 {
        child.separate(thread.process());
    }
    child.mask = thread.mask;
    child.altstack = if vfork {
        thread.altstack
    } else {
        StackT { flags: crate::signals::frame::SS_DISABLE, ..StackT::default() }
    };
    let top = lay_out(child, uc, spawn);

    // Outlives the call, unlike the arm that fills it.
    let long: [u64; MAX_WORDS];
    let (number, args) = match &spawn.how {
        How::Fork => (nr::FORK, [0; 6]),
        How::Clone(args) => (nr::CLONE, [args[0], top, args[2], args[3], args[4], 0]),
        How::Clone3(words, size) => {
            let mut words = *words;
            // The kernel adds the two; the low end matters only to stacks that grow upwards.
            words[5] = top - 4096;
            words[6] = 4096;
            long = words;
            (nr::CLONE3, [(&raw const long) as u64, *size, 0, 0, 0, 0])
        }
    };
    // SAFETY: the child gets a stack of its own, laid out for `usgx_child`.
    let result = unsafe { clone_onto(number, &args) };
    if result < 0 || vfork {
        // A vfork child has called exec or is dead: nobody runs on the record any more.
        link::end_slot(child, spawn.flags & CLONE_FILES != 0);
        child.release();
    }
    result
}

/// Puts a copy of the parent's frame and a [`Start`] on the child's stack; returns its stack pointer.
fn lay_out(child: &mut Thread, uc: &Ucontext, spawn: &Spawn) -> u64 {
    let mut at = child.stack_top();
    let mut copy = *uc;
    if uc.mcontext.fpstate != 0 {
        // SAFETY: the kernel's frame of the running handler.
        let area = unsafe { &*(uc.mcontext.fpstate as *const FpState) };
        let size = if area.magic1 == FP_MAGIC1 { area.extended_size as usize } else { FXSAVE_SIZE };
        at = (at - size as u64) & !63;
        // SAFETY: source and destination are that long, and apart.
        unsafe { (at as *mut u8).copy_from_nonoverlapping(uc.mcontext.fpstate as *const u8, size) };
        copy.mcontext.fpstate = at;
    }
    copy.mcontext.rax = 0;
    if spawn.sp != 0 {
        copy.mcontext.rsp = spawn.sp;
    }
    copy.stack = child.kernel_stack();
    let frame = ((at - size_of::<Ucontext>() as u64) & !63) as *mut Ucontext;
    let start = (frame as u64 - size_of::<Start>() as u64) as *mut Start;
    // SAFETY: both places are on the child's stack, which is nobody's yet.
    unsafe {
        frame.write(copy);
        start.write(Start {
            thread: &raw mut *child,
            frame,
            clear_handlers: u64::from(spawn.flags & CLONE_CLEAR_SIGHAND != 0),
            reserved: 0,
        });
    }
    start as u64
}

/// Makes the call; the parent returns, the child goes on in [`usgx_child`].
///
/// # Safety
/// The child's stack pointer among the arguments points at a [`Start`], 16-byte aligned.
#[inline(never)]
#[unsafe(link_section = ".behalf")]
unsafe fn clone_onto(number: u64, args: &[u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the parent side is an ordinary call; the child never comes back here.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, rsp",
            "call {child}",
            "ud2",
            "2:",
            child = sym usgx_child,
            inlateout("rax") number as i64 => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The first steps of a child that shares the memory, on its own runtime stack.
extern "C" fn usgx_child(start: *mut Start) -> ! {
    // SAFETY: the parent laid it out for this thread alone.
    let (start, thread) = unsafe { (&*start, &mut *(*start).thread) };
    tables::set_kernel_stack(thread);
    thread.announce();
    if start.clear_handlers != 0 {
        clear_handlers(thread);
    }
    // SAFETY: `frame` is a complete copy of the parent's.
    unsafe {
        asm!(
            "mov rsp, {frame}",
            "syscall",
            "ud2",
            frame = in(reg) start.frame,
            in("rax") nr::RT_SIGRETURN,
            options(noreturn),
        );
    }
}

/// `CLONE_CLEAR_SIGHAND`, which the kernel must not do to the runtime's handlers.
fn clear_handlers(thread: &Thread) {
    let mut actions = thread.process().actions.lock();
    for sig in 1..=64 {
        if actions.get(sig).handler > IGNORE {
            actions.set(sig, Sigaction::default());
            if OWNED & bit(sig) == 0 {
                tables::set_kernel_default(sig);
            }
        }
    }
}

/// Every lock that a child must find free and its data whole.
fn locks(thread: &Thread) -> [&RawLock; 7] {
    [
        enclaves::CHANGES.raw(),
        filter::arming_lock(),
        thread.process().actions.raw(),
        thread.process().pending.lock(),
        thread::records_lock(),
        thread::ids_lock(),
        link::channel_lock(),
    ]
}

/// A child with memory of its own.
fn fork(thread: &mut Thread, uc: &mut Ucontext, spawn: &Spawn) -> i64 {
    let mut ticket = None;
    if enclaves::any() {
        let (answer, _) = link::channel_call(Request { op: op::FORK, reserved: 0, args: [0; 4] }, None, true);
        if answer.status >= 0 {
            ticket = Some([answer.values[0], answer.values[1]]);
        }
    }
    let locks = locks(thread);
    locks.iter().for_each(|lock| lock.acquire());
    let result = match &spawn.how {
        // SAFETY: the child runs on its copy of this very stack.
        How::Fork => unsafe { on_behalf(nr::FORK, [0; 6]) },
        // SAFETY: as above.
        How::Clone(args) => unsafe { on_behalf(nr::CLONE, [args[0], 0, args[2], args[3], args[4], 0]) },
        How::Clone3(words, size) => {
            let mut words = *words;
            words[5] = 0;
            words[6] = 0;
            // SAFETY: as above.
            unsafe { on_behalf(nr::CLONE3, [words.as_ptr() as u64, *size, 0, 0, 0, 0]) }
        }
    };
    locks.iter().rev().for_each(|lock| lock.release());
    if result == 0 {
        become_child(thread, spawn, ticket);
        if spawn.sp != 0 {
            uc.mcontext.rsp = spawn.sp;
        }
    }
    result
}

/// In a fork's child, before it returns to the program.
fn become_child(thread: &mut Thread, spawn: &Spawn, ticket: Option<[u64; 2]>) {
    let own_fds = spawn.flags & CLONE_FILES == 0;
    if own_fds {
        thread::for_each(|other| {
            if other.kick_fd >= 0 {
                close(other.kick_fd);
            }
        });
        link::forget_parent();
        memory::forget_userfaultfd();
    }
    thread.forget_others();
    thread.slot = -1;
    thread.kick_fd = -1;
    thread.held.store(0, Ordering::Relaxed);
    // Anew, with its lock: whoever held that is not here.
    thread.posted = Pending::new();
    thread.process().pending.forget(u64::MAX);
    thread.process().trace_me.store(0, Ordering::Relaxed);
    thread.announce();
    if spawn.flags & CLONE_CLEAR_SIGHAND != 0 {
        clear_handlers(thread);
    }
    enclu::fork_child(thread);
    if enclaves::any() {
        let connected = ticket.is_some_and(|ticket| link::hello(ticket).is_ok());
        if !connected || memory::map_views_anew(thread).is_err() {
            complain("usgx: a forked process could not map its parent's enclaves\n");
        }
    }
}

/// `exit`: the calling thread alone.
pub fn exit(thread: &mut Thread, status: u64) -> ! {
    link::end_slot(thread, true);
    if core::ptr::eq(thread.process, &crate::process::PROCESS) {
        thread.exit(status);
    }
    // A vfork child: its parent frees the record.
    loop {
        // SAFETY: ends the thread.
        unsafe { sys!(nr::EXIT, status) };
    }
}
