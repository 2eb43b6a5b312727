//! Tracers among the programs of a run: new images of what they trace, and stops that are none of theirs.
//!
//! *New images.* The attendant cannot hold them at their `execve`, because they have a tracer. So the tracer lends it a hand: before
//! it lets a process go on that has a new image, its runtime maps the place of the process's runtime and has the
//! attendant fill it, which needs no tracing.
//!
//! *Stops.* The signals by which the runtime of a traced process works stop it, and the tracer hears of it when it
//! waits. From the first time that a program lets a traced process run on, its waits trap; when one says that such a
//! signal has stopped a process, the process is let run on as the tracer did the last time, with the signal, and the
//! wait is made again. Single steps are left alone: a debugger that steps wants to know where it is.

use usgx_wire::place::{IMAGE_SIZE, RUNTIME_BASE, VDSO_SIZE};

use core::sync::atomic::{AtomicU64, Ordering};

use super::debug::Target;
use super::{exec, stubs};
use crate::arch::complain;
use crate::arch::syscall::{errno, nr};
use crate::signals::frame::{SigInfo, Ucontext, signum};
use crate::signals::{self, pending};
use crate::thread::Thread;
use crate::{cpuid, enclu, filter, sys, usercopy};

const PEEKTEXT: u64 = 1;
const POKETEXT: u64 = 4;
const GETREGS: u64 = 12;
const SETREGS: u64 = 13;
const SYSCALL: u64 = 24;
const GETSIGINFO: u64 = 0x4202;
const GETSIGMASK: u64 = 0x420a;
const SETSIGMASK: u64 = 0x420b;
const GET_SYSCALL_INFO: u64 = 0x420e;
const CONT: u64 = 7;
const SINGLESTEP: u64 = 9;
/// `PTRACE_EVENT_EXEC`.
const EVENT_EXEC: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGKILL: u64 = 9;
/// The code segment of 64-bit programs.
const USER_CS: u64 = 0x33;
const SIGCHLD: i32 = 17;

/// `struct user_regs_struct`, as far as it matters.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Registers {
    high: [u64; 7],
    r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    orig_rax: u64,
    rip: u64,
    cs: u64,
    eflags: u64,
    rsp: u64,
    rest: [u64; 7],
}

const _: () = assert!(size_of::<Registers>() == 27 * 8);

/// Makes sure that a process which is about to run on has its runtime. Whatever goes wrong is left to the process,
/// which dies of its first call that the runtime's filter traps.
pub fn prepare(pid: u64) {
    let mut word = 0u64;
    // SAFETY: the kernel writes one word of ours, if the process is this thread's to trace.
    let result = unsafe { sys!(nr::PTRACE, PEEKTEXT, pid, RUNTIME_BASE, &raw mut word) };
    // EIO: nothing is mapped there. Anything else is none of our business.
    if result != -errno::EIO || !exec::is_awaited(pid as u32) {
        return;
    }
    if Remote(pid).give_runtime().is_err() {
        complain("usgx: a traced program could not be given SGX, and is ended\n");
        // SAFETY: no memory is touched.
        unsafe { sys!(nr::KILL, pid, SIGKILL) };
    }
}

/// A stopped process that this thread traces.
struct Remote(u64);

impl Remote {
    fn request(&self, request: u64, address: u64, data: u64) -> Result<(), i64> {
        // SAFETY: what the kernel reads or writes here is a value of ours that `data` points at.
        let result = unsafe { sys!(nr::PTRACE, request, self.0, address, data) };
        if result < 0 { Err(-result) } else { Ok(()) }
    }

    fn registers(&self) -> Result<Registers, i64> {
        let mut registers = Registers::default();
        self.request(GETREGS, 0, (&raw mut registers) as u64)?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &Registers) -> Result<(), i64> {
        self.request(SETREGS, 0, (&raw const *registers) as u64)
    }

    /// Maps the place of the runtime, has it filled, and makes it the next to run.
    fn give_runtime(&self) -> Result<(), i64> {
        let is_in_exec = self.is_in_exec()?;
        if is_in_exec {
            // The call has not returned yet: its exit would overwrite registers.
            self.next_syscall_stop()?;
        }
        let start = self.registers()?;
        if start.cs != USER_CS {
            return Err(errno::EINVAL);
        }
        let mut mask = 0u64;
        self.request(GETSIGMASK, 8, (&raw mut mask) as u64)?;
        let all = u64::MAX;
        self.request(SETSIGMASK, 8, (&raw const all) as u64)?;
        let code = self.plant_syscall(start.rip)?;
        let mapped = self.map(&start);
        if is_in_exec {
            // The tracer may wait for the end of the `execve`, so the process is to be at the start of a call again.
            self.set_registers(&Registers { rax: nr::GETPID, orig_rax: u64::MAX, ..start })?;
            self.next_syscall_stop()?;
        }
        self.request(POKETEXT, start.rip, code)?;
        mapped?;
        let answer = exec::ask_for_runtime(self.0 as u32, start.rip, start.rsp)?;
        // No call, or one that ends at once as the `execve` did; nothing to restart.
        self.set_registers(&Registers { rip: answer.entry, orig_rax: u64::MAX, ..start })?;
        mask |= answer.blocked;
        self.request(SETSIGMASK, 8, (&raw const mask) as u64)
    }

    /// Whether it is stopped at an instruction that raises what its runtime takes: ENCLU, CPUID or what replaces it,
    /// or one of the runtime itself.
    fn has_instruction_of_runtime(&self, rip: u64, sig: i32) -> bool {
        // Past the end of what is mapped there is no instruction.
        let word = self.word(rip).or_else(|| Some(self.word(rip.wrapping_sub(5))? >> 40)).unwrap_or(0);
        let code = word.to_le_bytes();
        let is_cpuid = match sig {
            signum::SIGILL => cpuid::is_patched_in(rip, |address| self.word(address).unwrap_or(0)),
            _ => code.starts_with(&cpuid::CPUID),
        };
        signals::in_image(rip) || sig == signum::SIGILL && code.starts_with(&enclu::ENCLU) || is_cpuid
    }

    fn word(&self, address: u64) -> Option<u64> {
        let mut word = 0u64;
        self.request(PEEKTEXT, address, (&raw mut word) as u64).ok().map(|()| word)
    }

    /// Whether it is stopped within its `execve`, rather than by the `SIGTRAP` after it.
    fn is_in_exec(&self) -> Result<bool, i64> {
        let mut info = [0i32; 32];
        self.request(GETSIGINFO, 0, info.as_mut_ptr() as u64)?;
        Ok(info[2] == SIGTRAP | EVENT_EXEC << 8)
    }

    /// Makes its next instruction `syscall`; returns the word that was there.
    fn plant_syscall(&self, rip: u64) -> Result<u64, i64> {
        const SYSCALL_INSTRUCTION: u64 = 0x050f;
        let mut word = 0u64;
        self.request(PEEKTEXT, rip, (&raw mut word) as u64)?;
        self.request(POKETEXT, rip, word & !0xffff | SYSCALL_INSTRUCTION)?;
        Ok(word)
    }

    /// Has it map writable and executable memory at the runtime's place; the runtime narrows that itself. Its next
    /// instruction is `syscall`. The filter, which looks at the instruction pointer after the tracer, is shown one
    /// within the runtime.
    fn map(&self, start: &Registers) -> Result<(), i64> {
        const PROT_ALL: u64 = 7;
        const MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE: u64 = 0x2 | 0x20 | 0x10_0000;
        self.set_registers(&Registers {
            rax: nr::MMAP,
            orig_rax: u64::MAX,
            rdi: RUNTIME_BASE,
            rsi: IMAGE_SIZE + VDSO_SIZE,
            rdx: PROT_ALL,
            r10: MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE,
            r8: u64::MAX,
            r9: 0,
            ..*start
        })?;
        self.next_syscall_stop()?;
        self.set_registers(&Registers { rip: RUNTIME_BASE, ..self.registers()? })?;
        self.next_syscall_stop()?;
        if self.registers()?.rax == RUNTIME_BASE { Ok(()) } else { Err(errno::ENOMEM) }
    }

    /// Lets it run to its next entry to or exit from a system call.
    fn next_syscall_stop(&self) -> Result<(), i64> {
        /// Of a stop that is neither: a signal that cannot be blocked.
        const NONE: u8 = 0;
        // Such signals come rarely.
        for _ in 0..16 {
            self.request(SYSCALL, 0, 0)?;
            self.wait()?;
            let mut info = [0u8; 96];
            self.request(GET_SYSCALL_INFO, info.len() as u64, info.as_mut_ptr() as u64)?;
            if info[0] != NONE {
                return Ok(());
            }
        }
        Err(errno::EAGAIN)
    }

    /// Waits for it to stop. If it dies instead, that is for the program to hear.
    fn wait(&self) -> Result<(), i64> {
        const P_PID: u64 = 1;
        const WEXITED: u64 = 4;
        const WSTOPPED: u64 = 2;
        const WNOWAIT: u64 = 0x0100_0000;
        const WALL: u64 = 0x4000_0000;
        const CLD_TRAPPED: i32 = 4;
        let mut info = [0i32; 32];
        loop {
            let flags = WEXITED | WSTOPPED | WNOWAIT | WALL;
            // SAFETY: the kernel writes a `siginfo_t` of 128 bytes.
            match unsafe { sys!(nr::WAITID, P_PID, self.0, info.as_mut_ptr(), flags) } {
                result if result == -errno::EINTR => {}
                result if result < 0 => return Err(-result),
                _ if info[2] != CLD_TRAPPED => return Err(errno::ESRCH),
                _ => break,
            }
        }
        // SAFETY: nothing is written.
        let result = unsafe { sys!(nr::WAIT4, self.0, 0, WALL, 0) };
        if result < 0 { Err(-result) } else { Ok(()) }
    }
}

/// How threads were let run on the last time: `tid << 32 | request`, at the thread's number. Where two share a place,
/// the one that has lost it counts as [`CONT`].
static LAST: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// Notes that the program lets a process that it traces run on.
pub fn note(request: u64, pid: u64) {
    // Where another thread has a filter of its own, the runtime's stops are seen.
    let _ = filter::watch_waits();
    LAST[pid as usize % LAST.len()].store(pid << 32 | request, Ordering::Relaxed);
}

fn last(pid: u64) -> u64 {
    let noted = LAST[pid as usize % LAST.len()].load(Ordering::Relaxed);
    if noted >> 32 == pid { noted & 0xffff_ffff } else { CONT }
}

/// If the trap is that of a wait that has returned: lets the program see what it says, or makes it again.
pub fn on_waited(uc: &mut Ucontext) -> bool {
    let Some(number) = stubs::unwind_wait(uc) else { return false };
    let Some((pid, sig)) = signal_stop(number, uc) else { return true };
    let request = last(pid);
    // SAFETY: no memory is touched.
    let run_on = || unsafe { sys!(nr::PTRACE, request, pid, 0, sig) } == 0;
    if request != SINGLESTEP && is_of_runtime(pid, sig) && run_on() {
        stubs::repeat(uc, number);
    }
    true
}

/// The process that a wait has found stopped by a signal, and which.
fn signal_stop(number: u64, uc: &Ucontext) -> Option<(u64, i32)> {
    const CLD_TRAPPED: i32 = 4;
    const STOPPED: u32 = 0x7f;
    let registers = &uc.mcontext;
    if (registers.rax as i64) < 0 {
        return None;
    }
    let (pid, sig) = if number == nr::WAIT4 {
        let status = usercopy::get::<u32>(registers.rsi)?;
        // An event is above the signal.
        (registers.rax, (status & 0xff == STOPPED).then_some(status >> 8)? as i32)
    } else {
        let info = usercopy::get::<[i32; 7]>(registers.rdx)?;
        (info[4] as u64, (info[0] == SIGCHLD && info[2] == CLD_TRAPPED).then_some(info[6])?)
    };
    (pid != 0 && (1..=64).contains(&sig)).then_some((pid, sig))
}

/// Whether a signal that has stopped a process is one by which its runtime works, and is not for the program.
fn is_of_runtime(pid: u64, sig: i32) -> bool {
    let remote = Remote(pid);
    let mut info = SigInfo::default();
    // Refused for processes that are not traced by this thread, and for those that are stopped as a group.
    if remote.request(GETSIGINFO, 0, (&raw mut info) as u64).is_err() {
        return false;
    }
    let address = info.fields[0];
    match sig {
        signum::SIGSYS => filter::is_trap(&info) || info.code == enclu::SYS_USER_DISPATCH,
        signum::SIGFPE if info.code == signals::SI_SIGIO || info.code == pending::LOOK => true,
        signum::SIGILL | signum::SIGSEGV | signum::SIGBUS | signum::SIGFPE if info.by_kernel() => {
            let Ok(Registers { rip, .. }) = remote.registers() else { return false };
            // What an enclave raises leaves it first; a tracer never sees its registers.
            remote.has_instruction_of_runtime(rip, sig)
                || [rip, address].iter().any(|at| is_in_enclave(pid, *at))
        }
        _ => false,
    }
}

/// Whether an enclave of the process is mapped at the address.
fn is_in_enclave(pid: u64, address: u64) -> bool {
    // SAFETY: handlers run on the runtime's stack.
    let thread = unsafe { Thread::current_from_sp() };
    Target::of(pid as u32).is_some_and(|target| target.has_enclave_at(thread, address))
}
