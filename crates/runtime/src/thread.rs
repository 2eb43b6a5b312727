//! Thread records: what the runtime knows of a thread, and the alternate stack that its handlers run on.
//!
//! Record `i` lives at `THREADS_BASE + i * THREAD_STRIDE`: a guard page, the stack, and the [`Thread`] at the
//! top. A handler finds its thread by masking its stack pointer, so no thread-local storage is needed. A record
//! is mapped when first used and then reused; it is given back by the thread itself at exit, with every signal
//! blocked, in an instruction sequence that no longer touches the stack ([`Thread::exit`]).

use core::arch::asm;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use usgx_wire::place::{MAX_THREADS, THREAD_STRIDE, THREADS_BASE};

use crate::arch::lock::Lock;
use crate::arch::syscall::nr;
use crate::arch::{fatal, gettid};
use crate::process::Process;
use crate::signals::frame::{SS_DISABLE, SigInfo, StackT};
use crate::signals::pending::Pending;
use crate::sys;
use crate::{enclu, source};

/// Bytes at the top of a stride that hold the [`Thread`].
const RECORD_SIZE: u64 = 0x4000;
const GUARD_SIZE: u64 = 0x1000;

/// A thread of the program. Only the thread itself touches what is not atomic.
#[repr(C)]
pub struct Thread {
    /// Thread ID, 0 while the record is being set up.
    pub tid: AtomicU32,
    /// One of [`FREE`], [`USED`].
    state: AtomicU32,
    /// Index of this record.
    pub index: u32,
    /// The slot's index, or -1: none yet.
    pub slot: i32,
    /// The kick socket, or -1.
    pub kick_fd: i32,
    /// Nonzero while a slot call is under way.
    pub calling: u32,
    /// A kick came while a handler was at work: look at it before the handler returns.
    pub kicked: AtomicU32,
    /// Where the last pages for an enclave came from.
    pub source: source::Known,
    /// The mask that the program believes in (the kernel's lacks the runtime's signals).
    pub mask: u64,
    /// The alternate stack that the program asked for.
    pub altstack: StackT,
    /// The process, or a vfork child's own copy.
    pub process: *mut Process,
    /// Signals of [`crate::signals::frame::OWNED`] that were sent while the program blocks them.
    /// Atomic, because another one may come while a handler looks at them.
    pub held: AtomicU64,
    /// Their details, by signal number.
    pub held_info: [SigInfo; 32],
    /// Signals that the process has sent to this thread past the kernel ([`crate::signals::post`]).
    pub posted: Pending,
    /// The frame of the handler that has looked for held signals for the last time: its context ([`crate::signals::frame::Ucontext`]), which
    /// says so itself, as an address.
    pub closing: AtomicU64,
    /// Those that a system call waits for with a mask of its own, while it waits.
    pub waits: AtomicU64,
    /// Where the thread is with respect to enclaves.
    pub enclave: enclu::Mode,
    /// The process of a vfork child lives here.
    pub own_process: Process,
}

/// [`Thread::state`]: the record may be taken.
const FREE: u32 = 0;
/// [`Thread::state`]: the record belongs to a thread.
const USED: u32 = 1;

const _: () = assert!(size_of::<Thread>() as u64 <= RECORD_SIZE);

/// How many records are mapped; the first that many strides.
static MAPPED: Lock<u32> = Lock::new(0);

impl Thread {
    /// The record of the thread whose handler runs.
    ///
    /// # Safety
    /// Only on a runtime stack, that is, in a handler.
    #[inline(always)]
    pub unsafe fn current_from_sp() -> &'static mut Thread {
        let sp: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
        // SAFETY: the stack is this record's, and the record is this thread's.
        unsafe { &mut *Self::at(((sp - THREADS_BASE) / THREAD_STRIDE) as u32) }
    }

    /// The record of the calling thread, on any stack: by its thread ID.
    pub fn current_by_tid() -> Option<&'static mut Thread> {
        let index = ids::find(gettid())?;
        // SAFETY: the table names the record of this very thread.
        Some(unsafe { &mut *Self::at(index) })
    }

    /// What thread `tid` of `process` has been sent, if there is such a thread.
    pub fn posted_of(tid: u32, process: *mut Process) -> Option<&'static Pending> {
        let other = Self::at(ids::find(tid)?);
        // SAFETY: the record is mapped, and stays. If the thread ends meanwhile, its signals end with it.
        let same = unsafe { (&raw const (*other).process).read_volatile() } == process;
        // SAFETY: the same record; the field may be used by all threads.
        same.then(|| unsafe { &(*other).posted })
    }

    /// Where record `index` is.
    pub fn at(index: u32) -> *mut Thread {
        (THREADS_BASE + (u64::from(index) + 1) * THREAD_STRIDE - RECORD_SIZE) as *mut Thread
    }

    /// Whether `address` lies in this thread's runtime stack.
    pub fn owns_stack(&self, address: u64) -> bool {
        let base = THREADS_BASE + u64::from(self.index) * THREAD_STRIDE;
        (base..base + THREAD_STRIDE).contains(&address)
    }

    /// The alternate stack as the kernel is told.
    pub fn kernel_stack(&self) -> StackT {
        let base = THREADS_BASE + u64::from(self.index) * THREAD_STRIDE;
        StackT { sp: base + GUARD_SIZE, flags: 0, pad: 0, size: THREAD_STRIDE - GUARD_SIZE - RECORD_SIZE }
    }

    /// First address above the stack.
    pub fn stack_top(&self) -> u64 {
        let stack = self.kernel_stack();
        stack.sp + stack.size
    }

    /// Takes a free record for a new thread of `process` and clears it.
    pub fn allocate(process: *mut Process) -> Option<&'static mut Thread> {
        let mut mapped = MAPPED.lock();
        let index = match (0..*mapped).find(|&i| {
            // SAFETY: the record is mapped; `state` is atomic.
            unsafe { (*Self::at(i)).state.load(Ordering::Acquire) == FREE }
        }) {
            Some(index) => index,
            None if u64::from(*mapped) < MAX_THREADS => {
                map_record(*mapped)?;
                *mapped += 1;
                *mapped - 1
            }
            None => return None,
        };
        let thread = Self::at(index);
        // SAFETY: the record is mapped and nobody's.
        unsafe {
            (&raw mut (*thread).index).write(index);
            (&raw mut (*thread).slot).write(-1);
            (&raw mut (*thread).kick_fd).write(-1);
            (&raw mut (*thread).source).write(source::Known::nothing());
            (&raw mut (*thread).calling).write(0);
            (&raw mut (*thread).kicked).write(AtomicU32::new(0));
            (&raw mut (*thread).mask).write(0);
            (&raw mut (*thread).altstack).write(StackT { flags: SS_DISABLE, ..StackT::default() });
            (&raw mut (*thread).process).write(process);
            (&raw mut (*thread).held).write(AtomicU64::new(0));
            (&raw mut (*thread).posted).write(Pending::new());
            (&raw mut (*thread).closing).write(AtomicU64::new(0));
            (&raw mut (*thread).waits).write(AtomicU64::new(0));
            (&raw mut (*thread).enclave).write(enclu::Mode::default());
            (*thread).tid.store(0, Ordering::Relaxed);
            (*thread).state.store(USED, Ordering::Release);
            Some(&mut *thread)
        }
    }

    /// Gives a process of its own to the record, with a copy of `parent`'s handlers.
    pub fn separate(&mut self, parent: &Process) {
        let own = &raw mut self.own_process;
        // SAFETY: the field is this record's, and nobody looks at it before `process` points there.
        unsafe { own.write(Process::new()) };
        *self.own_process.actions.lock() = *parent.actions.lock();
        self.process = own;
    }

    /// The process's state.
    pub fn process(&self) -> &'static Process {
        // SAFETY: set when the record was taken, to the image's own or to a vfork child's, which outlives it.
        unsafe { &*self.process }
    }

    /// Notes the calling thread's ID.
    pub fn announce(&mut self) {
        let tid = gettid();
        self.tid.store(tid, Ordering::Relaxed);
        ids::insert(tid, self.index);
    }

    /// Takes the record from a thread that no longer runs (a vfork child after its exec).
    pub fn release(&mut self) {
        ids::remove(self.tid.load(Ordering::Relaxed), self.index);
        self.state.store(FREE, Ordering::Release);
    }

    /// Ends the calling thread and frees its record.
    pub fn exit(&mut self, status: u64) -> ! {
        ids::remove(self.tid.load(Ordering::Relaxed), self.index);
        let all = u64::MAX;
        // SAFETY: with every signal blocked nothing else will use this stack; after the store of FREE the
        // thread makes one system call from registers and is gone.
        unsafe {
            sys!(nr::RT_SIGPROCMASK, 2, &raw const all, 0, 8);
            asm!(
                "mov dword ptr [{state}], 0",
                "syscall",
                "ud2",
                state = in(reg) self.state.as_ptr(),
                in("rax") nr::EXIT,
                in("rdi") status,
                options(noreturn, nostack),
            );
        }
    }

    /// In a fork's child: forgets all other threads.
    pub fn forget_others(&mut self) {
        ids::clear();
        for i in 0..*MAPPED.lock() {
            if i != self.index {
                // SAFETY: the record is mapped; its thread is not in this process.
                unsafe { (*Self::at(i)).state.store(FREE, Ordering::Relaxed) };
            }
        }
    }
}

/// Calls `f` for every record in use. Only where no thread comes or goes: in a fork's child.
pub fn for_each(f: impl Fn(&Thread)) {
    for i in 0..*MAPPED.lock() {
        // SAFETY: the record is mapped, and no other thread of this process exists.
        let thread = unsafe { &*Thread::at(i) };
        if thread.state.load(Ordering::Relaxed) == USED {
            f(thread);
        }
    }
}

/// The ID of another thread of the same process whose mask and [`Thread::waits`] are as asked for.
pub fn find_other(thread: &Thread, suits: impl Fn(u64, u64) -> bool) -> Option<u32> {
    let mapped = MAPPED.lock();
    (0..*mapped).filter(|&i| i != thread.index).find_map(|i| {
        let other = Thread::at(i);
        // SAFETY: the record is mapped. Its thread may be changing the mask, which is one word: either value was
        // true at some time.
        unsafe {
            let tid = (*other).tid.load(Ordering::Relaxed);
            let lives = tid != 0 && (*other).state.load(Ordering::Acquire) == USED;
            let same = (&raw const (*other).process).read_volatile() == thread.process;
            let mask = (&raw const (*other).mask).read_volatile();
            (lives && same && suits(mask, (*other).waits.load(Ordering::SeqCst))).then_some(tid)
        }
    })
}

/// The lock of the records, for fork.
pub fn records_lock() -> &'static crate::arch::lock::RawLock {
    MAPPED.raw()
}

fn map_record(index: u32) -> Option<()> {
    let base = THREADS_BASE + u64::from(index) * THREAD_STRIDE;
    const PROT_RW: u64 = 3;
    const MAP_PRIVATE_ANONYMOUS_FIXED_NORESERVE: u64 = 0x2 | 0x20 | 0x10 | 0x4000;
    // SAFETY: the range is the runtime's and unused.
    let result = unsafe {
        sys!(
            nr::MMAP,
            base + GUARD_SIZE,
            THREAD_STRIDE - GUARD_SIZE,
            PROT_RW,
            MAP_PRIVATE_ANONYMOUS_FIXED_NORESERVE,
            -1i64
        )
    };
    (result > 0).then_some(())
}

/// From thread IDs to records: an open-addressed table, changed under a lock, read without one.
mod ids {
    use super::{AtomicI32, AtomicU64, Lock, Ordering, fatal};

    const SIZE: usize = 0x8000;
    const GONE: u64 = u64::MAX;

    static TABLE: [AtomicU64; SIZE] = [const { AtomicU64::new(0) }; SIZE];
    static CHANGES: Lock<()> = Lock::new(());
    static USED: AtomicI32 = AtomicI32::new(0);

    fn start(tid: u32) -> usize {
        (tid.wrapping_mul(0x9e37_79b1) >> 8) as usize % SIZE
    }

    pub(super) fn find(tid: u32) -> Option<u32> {
        let mut at = start(tid);
        for _ in 0..SIZE {
            let entry = TABLE[at].load(Ordering::Acquire);
            if entry == 0 {
                return None;
            }
            if entry != GONE && (entry >> 32) as u32 == tid {
                return Some(entry as u32 - 1);
            }
            at = (at + 1) % SIZE;
        }
        None
    }

    pub(super) fn insert(tid: u32, index: u32) {
        let _guard = CHANGES.lock();
        let mut at = start(tid);
        for _ in 0..SIZE {
            let entry = TABLE[at].load(Ordering::Relaxed);
            if entry == 0 || entry == GONE {
                if entry == 0 {
                    USED.fetch_add(1, Ordering::Relaxed);
                }
                TABLE[at].store(u64::from(tid) << 32 | u64::from(index + 1), Ordering::Release);
                return;
            }
            at = (at + 1) % SIZE;
        }
        fatal("usgx: too many threads\n");
    }

    pub(super) fn remove(tid: u32, index: u32) {
        let _guard = CHANGES.lock();
        let mut at = start(tid);
        for _ in 0..SIZE {
            match TABLE[at].load(Ordering::Relaxed) {
                0 => return,
                entry if entry == u64::from(tid) << 32 | u64::from(index + 1) => {
                    // Entries of other threads may lie behind this one, so it becomes a marker; unless the next
                    // is empty, when nothing does.
                    let last = TABLE[(at + 1) % SIZE].load(Ordering::Relaxed) == 0;
                    TABLE[at].store(if last { 0 } else { GONE }, Ordering::Release);
                    return;
                }
                _ => at = (at + 1) % SIZE,
            }
        }
    }

    pub(super) fn clear() {
        let _guard = CHANGES.lock();
        for entry in &TABLE {
            if entry.load(Ordering::Relaxed) != 0 {
                entry.store(0, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn lock() -> &'static crate::arch::lock::RawLock {
        CHANGES.raw()
    }
}

/// The lock of the table of IDs, for fork.
pub fn ids_lock() -> &'static crate::arch::lock::RawLock {
    ids::lock()
}

/// A value that is set once before the program runs and only read afterwards.
pub struct Once<T>(core::cell::UnsafeCell<MaybeUninit<T>>);
// SAFETY: written before there is a second thread, then only read.
unsafe impl<T: Sync> Sync for Once<T> {}

impl<T> Once<T> {
    /// Not set yet.
    pub const fn new() -> Self {
        Self(core::cell::UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Sets the value.
    ///
    /// # Safety
    /// Only while the process has one thread, before the first [`Self::get`].
    pub unsafe fn set(&self, value: T) {
        // SAFETY: by the contract nobody else looks.
        unsafe { (*self.0.get()).write(value) };
    }

    /// The value.
    pub fn get(&self) -> &T {
        // SAFETY: set at start, before any handler runs.
        unsafe { (*self.0.get()).assume_init_ref() }
    }
}
