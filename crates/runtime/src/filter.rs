//! The seccomp filters: which system calls trap.
//!
//! A filter is inherited by everything that the program starts, and survives `execve`, so there are two. The
//! first is installed once for a run and concerns every program: opens, SGX's ioctls, signals, forks. The second
//! makes the calls trap that change mappings; only a process that uses enclaves pays for it, from the moment it
//! opens the device ([`arm_memory`]). Debuggers get more ([`watch`]).
//!
//! Call numbers are looked at before anything else: the kernel then sees that all other calls pass whatever their
//! arguments, and does not run the filter for them at all. Calls from the runtime's image always pass.

use core::sync::atomic::{AtomicU32, Ordering};

use usgx_wire::boot::flags;
use usgx_wire::place::{IMAGE_SIZE, RUNTIME_BASE};

use crate::arch::lock::Lock;
use crate::arch::syscall::{errno, nr};
use crate::process::BOOT;
use crate::signals::frame::{SigInfo, Ucontext, signum};
use crate::signals::post;
use crate::{sys, usercopy};

/// `SECCOMP_RET_DATA` of the runtime's traps, to tell them from those of a program's own filter.
const TRAP_DATA: i32 = 0x5347;

/// An instruction of classic BPF.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Insn {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

impl Insn {
    /// The instruction's four fields.
    pub const fn new(code: u16, jt: u8, jf: u8, k: u32) -> Self {
        Self { code, jt, jf, k }
    }
}

/// Load a word of `struct seccomp_data`.
pub const LD: u16 = 0x20;
/// Jump if equal.
pub const JEQ: u16 = 0x15;
/// Jump if greater or equal (unsigned).
pub const JGE: u16 = 0x35;
const JA: u16 = 0x05;
const JSET: u16 = 0x45;
const AND: u16 = 0x54;
/// Return.
pub const RET: u16 = 0x06;

/// Return value: let the call pass.
pub const ALLOW: u32 = 0x7fff_0000;
const TRAP: u32 = 0x0003_0000 | TRAP_DATA as u32;

const AT_NR: u32 = 0;
const AT_ARCH: u32 = 4;
/// Offset of the instruction pointer.
pub const AT_IP: u32 = 8;
const AT_ARGS: u32 = 16;
const ARCH_X86_64: u32 = 0xc000_003e;

const MAP_SHARED_BIT: u32 = 1;
const MAP_FIXED_BITS: u32 = 0x10 | 0x10_0000;
const PROT_EXEC: u32 = 4;

/// A small assembler: a fixed buffer, and jumps to the common end that are patched when it is known.
struct Assembler {
    code: [Insn; 512],
    len: usize,
}

/// Marks a jump to [`Assembler::finish`]'s look at the instruction pointer.
const TO_CHECK: u32 = u32::MAX;

impl Assembler {
    fn new() -> Self {
        let mut new = Self { code: [Insn::new(RET, 0, 0, ALLOW); 512], len: 0 };
        new.push(LD, 0, 0, AT_ARCH);
        new.push(JEQ, 1, 0, ARCH_X86_64);
        new.push(RET, 0, 0, ALLOW);
        new.push(LD, 0, 0, AT_NR);
        new
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        self.code[self.len] = Insn::new(code, jt, jf, k);
        self.len += 1;
    }

    /// Traps `number`, wherever it does not come from the image.
    fn trap(&mut self, number: u64) {
        self.push(JEQ, 0, 1, number as u32);
        self.push(JA, 0, 0, TO_CHECK);
    }

    /// For `number` runs the instructions of `body`, which end the filter.
    fn when(&mut self, number: u64, body: impl FnOnce(&mut Self)) {
        let head = self.len;
        self.push(JEQ, 0, 0, number as u32);
        body(self);
        self.code[head].jf = (self.len - head - 1) as u8;
    }

    /// Loads the low half of an argument.
    fn argument(&mut self, index: u32) {
        self.push(LD, 0, 0, AT_ARGS + 8 * index);
    }

    fn check(&mut self) {
        self.push(JA, 0, 0, TO_CHECK);
    }

    fn allow(&mut self) {
        self.push(RET, 0, 0, ALLOW);
    }

    /// Traps `number` if the low half of its argument equals `value`.
    fn trap_if_equal(&mut self, number: u64, index: u32, value: u32) {
        self.when(number, |a| {
            a.argument(index);
            a.push(JEQ, 0, 1, value);
            a.check();
            a.allow();
        });
    }

    /// Traps `number` if the pointer in its argument is not null.
    fn trap_if_pointer(&mut self, number: u64, index: u32) {
        self.when(number, |a| {
            a.argument(index);
            a.push(JEQ, 0, 2, 0);
            a.push(LD, 0, 0, AT_ARGS + 8 * index + 4);
            a.push(JEQ, 1, 0, 0);
            a.check();
            a.allow();
        });
    }

    /// Traps `number` if its argument is one of the reserved descriptor numbers.
    fn trap_reserved(&mut self, number: u64, index: u32) {
        let boot = BOOT.get();
        self.when(number, |a| {
            a.argument(index);
            a.push(JGE, 0, 2, boot.fd_base as u32);
            a.push(JGE, 1, 0, (boot.fd_base + boot.fd_count) as u32);
            a.check();
            a.allow();
        });
    }

    /// Returns `otherwise` unless the call comes from the image. Six instructions.
    fn image(&mut self, otherwise: u32) {
        self.push(LD, 0, 0, AT_IP + 4);
        self.push(JEQ, 0, 2, (RUNTIME_BASE >> 32) as u32);
        self.push(LD, 0, 0, AT_IP);
        self.push(JGE, 0, 1, IMAGE_SIZE as u32);
        self.push(RET, 0, 0, otherwise);
        self.push(RET, 0, 0, ALLOW);
    }

    /// Everything else passes; then the common end.
    fn finish(&mut self) -> &[Insn] {
        self.allow();
        let check = self.len;
        self.image(TRAP);
        for at in 0..check {
            if self.code[at].code == JA && self.code[at].k == TO_CHECK {
                self.code[at].k = (check - at - 1) as u32;
            }
        }
        &self.code[..self.len]
    }
}

const _: () = assert!(RUNTIME_BASE & 0xffff_ffff == 0);

/// Whether the call that this context comes out of was trapped by a filter of the runtime.
///
/// The kernel keeps at most one SIGSYS for a thread. If somebody has sent one at the moment of a trap, the trap's own
/// is dropped, and the call would be lost. What it leaves behind is the call's number where its result should be,
/// which a call that passed has there only by accident (a `read` of 15 bytes that is interrupted by a SIGSYS).
pub fn has_trapped(uc: &Ucontext) -> bool {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let registers = &uc.mcontext;
    let at = registers.rip.wrapping_sub(SYSCALL.len() as u64);
    if registers.rax > u64::from(u32::MAX) || usercopy::get::<[u8; 2]>(at) != Some(SYSCALL) {
        return false;
    }
    let mut data = [0; DATA_WORDS];
    data[(AT_NR / 4) as usize] = registers.rax as u32;
    data[(AT_ARCH / 4) as usize] = ARCH_X86_64;
    let args = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
    for (words, value) in
        data[(AT_IP / 4) as usize..].chunks_exact_mut(2).zip([registers.rip].iter().chain(&args))
    {
        words.copy_from_slice(&[*value as u32, (*value >> 32) as u32]);
    }
    let traps = |mut filter: Assembler| run(filter.finish(), &data) == TRAP;
    let watched = |entry: &AtomicU32| {
        let fd = entry.load(Ordering::Relaxed);
        fd != NOBODY && traps(of_transfers((!is_last(entry)).then_some(fd)))
    };
    traps(of_run())
        || ARMED.load(Ordering::Acquire) != 0 && traps(of_memory())
        || WAITS.load(Ordering::Acquire) != 0 && traps(of_waits())
        || WATCHED.iter().any(watched)
}

/// Whether a signal is the trap of one of the runtime's filters.
pub fn is_trap(info: &SigInfo) -> bool {
    const SYS_SECCOMP: i32 = 1;
    info.signo == signum::SIGSYS && info.code == SYS_SECCOMP && info.errno == TRAP_DATA
}

/// Words of `struct seccomp_data`.
const DATA_WORDS: usize = 16;

/// What the kernel makes of `data`.
fn run(code: &[Insn], data: &[u32; DATA_WORDS]) -> u32 {
    let (mut at, mut value) = (0, 0);
    while let Some(&Insn { code: operation, jt, jf, k }) = code.get(at) {
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        at += 1 + match operation {
            RET => return k,
            JA => k as usize,
            JEQ => jump(value == k),
            JGE => jump(value >= k),
            JSET => jump(value & k != 0),
            LD => {
                value = data.get(k as usize / 4).copied().unwrap_or(0);
                0
            }
            AND => {
                value &= k;
                0
            }
            _ => return ALLOW,
        };
    }
    ALLOW
}

/// Builds and installs the filter of a run.
pub fn install() -> Result<(), i64> {
    load(of_run().finish(), 0)
}

fn of_run() -> Assembler {
    let boot = BOOT.get();
    let mut a = Assembler::new();
    for number in
        [nr::RT_SIGACTION, nr::RT_SIGPROCMASK, nr::RT_SIGRETURN, nr::OPENAT, nr::OPEN, nr::OPENAT2, nr::CREAT]
    {
        a.trap(number);
    }
    a.when(nr::IOCTL, |a| {
        a.argument(1);
        a.push(AND, 0, 0, 0xff00);
        a.push(JEQ, 0, 1, 0xa400);
        a.check();
        a.allow();
    });
    a.when(nr::MMAP, |a| {
        // A file, and either shared or executable.
        a.argument(4);
        a.push(JSET, 5, 0, 0x8000_0000);
        a.argument(3);
        a.push(JSET, 2, 0, MAP_SHARED_BIT);
        a.argument(2);
        a.push(JSET, 0, 1, PROT_EXEC);
        a.check();
        a.allow();
    });
    a.when(nr::MPROTECT, |a| {
        a.argument(2);
        a.push(JSET, 0, 1, PROT_EXEC);
        a.check();
        a.allow();
    });
    let signals = [
        nr::SIGALTSTACK,
        nr::RT_SIGSUSPEND,
        nr::RT_SIGTIMEDWAIT,
        nr::RT_SIGPENDING,
        nr::SIGNALFD,
        nr::SIGNALFD4,
    ];
    let processes = [nr::CLONE, nr::CLONE3, nr::FORK, nr::VFORK, nr::EXECVE, nr::EXECVEAT, nr::EXIT];
    for number in signals.into_iter().chain(processes).chain([
        nr::CLOSE_RANGE,
        nr::SECCOMP,
        nr::PTRACE,
        nr::PROCESS_VM_READV,
        nr::PROCESS_VM_WRITEV,
    ]) {
        a.trap(number);
    }
    for (number, index) in [(nr::PPOLL, 3), (nr::PSELECT6, 5), (nr::EPOLL_PWAIT, 4), (nr::EPOLL_PWAIT2, 4)] {
        a.trap_if_pointer(number, index);
    }
    a.trap_if_equal(nr::PRCTL, 0, 22);
    a.when(nr::ARCH_PRCTL, |a| {
        a.argument(0);
        a.push(JEQ, 1, 0, 0x1011);
        a.push(JEQ, 0, 1, 0x1012);
        a.check();
        a.allow();
    });
    for (number, index) in
        [(nr::CLOSE, 0), (nr::DUP2, 1), (nr::DUP3, 1), (nr::DUP, 0), (nr::FCNTL, 0), (nr::FSTAT, 0)]
    {
        a.trap_reserved(number, index);
    }
    for (number, index) in
        [(nr::KILL, 1), (nr::TKILL, 1), (nr::TGKILL, 2), (nr::RT_SIGQUEUEINFO, 1), (nr::RT_TGSIGQUEUEINFO, 2)]
    {
        a.when(number, |a| {
            a.argument(index);
            let [one, other] = post::SHARED;
            a.push(JEQ, 1, 0, one as u32);
            a.push(JEQ, 0, 1, other as u32);
            a.check();
            a.allow();
        });
    }
    if boot.flags & flags::DEVICES_ARE_FILES == 0 {
        let paths =
            [nr::STAT, nr::LSTAT, nr::NEWFSTATAT, nr::STATX, nr::ACCESS, nr::FACCESSAT, nr::FACCESSAT2];
        for number in paths.into_iter().chain([nr::GETDENTS64]) {
            a.trap(number);
        }
    }
    if boot.flags & flags::ANNOUNCE_EXIT != 0 {
        a.trap(nr::EXIT_GROUP);
    }
    a
}

/// The filter is for all threads.
const TSYNC: u64 = 1;

/// Whether this image has its second filter.
static ARMED: AtomicU32 = AtomicU32::new(0);
static ARMING: Lock<()> = Lock::new(());

/// Makes the calls trap that change mappings, in all threads: enclaves are about to be mapped.
pub fn arm_memory() -> Result<(), i64> {
    if ARMED.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    let _guard = ARMING.lock();
    if ARMED.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    load(of_memory().finish(), TSYNC)?;
    ARMED.store(1, Ordering::Release);
    Ok(())
}

fn of_memory() -> Assembler {
    let mut a = Assembler::new();
    for number in [nr::MUNMAP, nr::MPROTECT, nr::PKEY_MPROTECT, nr::MREMAP, nr::MADVISE] {
        a.trap(number);
    }
    a.when(nr::MMAP, |a| {
        // Any file, or a fixed place.
        a.argument(4);
        a.push(JSET, 0, 2, 0x8000_0000);
        a.argument(3);
        a.push(JSET, 0, 1, MAP_FIXED_BITS);
        a.check();
        a.allow();
    });
    a
}

/// Calls that read or write a file by its descriptor.
const TRANSFERS: [u64; 10] = [
    nr::READ,
    nr::WRITE,
    nr::PREAD64,
    nr::PWRITE64,
    nr::READV,
    nr::WRITEV,
    nr::PREADV,
    nr::PWRITEV,
    nr::PREADV2,
    nr::PWRITEV2,
];

/// Descriptor numbers of which reads and writes trap. A filter stays, so each number costs one once.
static WATCHED: [AtomicU32; 32] = [const { AtomicU32::new(NOBODY) }; 32];
const NOBODY: u32 = u32::MAX;

/// Makes reads and writes of the descriptor `fd` trap, in all threads. Without room for another number, those of all
/// descriptors do.
pub fn watch(fd: i32) -> Result<(), i64> {
    let fd = fd as u32;
    let _guard = ARMING.lock();
    let free = WATCHED.iter().find(|entry| [NOBODY, fd].contains(&entry.load(Ordering::Relaxed)));
    match free {
        Some(entry) if entry.load(Ordering::Relaxed) == NOBODY => {
            load(of_transfers((!is_last(entry)).then_some(fd)).finish(), TSYNC)?;
            entry.store(fd, Ordering::Relaxed);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// 1 if this image's waits trap.
static WAITS: AtomicU32 = AtomicU32::new(0);

/// Makes the calls trap that wait for children, in all threads: the program traces some.
pub fn watch_waits() -> Result<(), i64> {
    if WAITS.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    let _guard = ARMING.lock();
    if WAITS.load(Ordering::Acquire) != 0 {
        return Ok(());
    }
    load(of_waits().finish(), TSYNC)?;
    WAITS.store(1, Ordering::Release);
    Ok(())
}

fn of_waits() -> Assembler {
    let mut a = Assembler::new();
    a.trap(nr::WAIT4);
    a.trap(nr::WAITID);
    a
}

/// The last entry stands for all descriptors.
fn is_last(entry: &AtomicU32) -> bool {
    core::ptr::eq(entry, &WATCHED[WATCHED.len() - 1])
}

/// Traps reads and writes of `fd`, or of every descriptor.
fn of_transfers(fd: Option<u32>) -> Assembler {
    let mut a = Assembler::new();
    for number in TRANSFERS {
        match fd {
            Some(fd) => a.trap_if_equal(number, 0, fd),
            None => a.trap(number),
        }
    }
    a
}

/// The lock taken while a later filter is installed, for fork.
pub fn arming_lock() -> &'static crate::arch::lock::RawLock {
    ARMING.raw()
}

fn load(code: &[Insn], how: u64) -> Result<(), i64> {
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const Insn,
    }
    const SET_MODE_FILTER: u64 = 1;
    const PR_SET_NO_NEW_PRIVS: u64 = 38;
    let program = Program { len: code.len() as u16, filter: code.as_ptr() };
    // SAFETY: the kernel reads the program.
    let mut result = unsafe { sys!(nr::SECCOMP, SET_MODE_FILTER, how, &raw const program) };
    if result == -errno::EACCES {
        // Only a privileged process may filter without giving up set-user-ID programs.
        // SAFETY: the kernel reads the program.
        result = unsafe {
            sys!(nr::PRCTL, PR_SET_NO_NEW_PRIVS, 1);
            sys!(nr::SECCOMP, SET_MODE_FILTER, how, &raw const program)
        };
    }
    match result {
        0 => Ok(()),
        // TSYNC: a thread with a filter of its own cannot follow.
        1.. => Err(errno::EPERM),
        error => Err(-error),
    }
}
