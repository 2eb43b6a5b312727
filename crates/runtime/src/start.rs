//! From the injected image to the program's own first instruction.
//!
//! The attendant has written the image and [`usgx_boot`], and starts the thread at [`usgx_start`] with the stack
//! and registers of the new program. Everything here runs once, with one thread and no handler of the program,
//! and leaves the registers as they were.

use core::arch::naked_asm;
use core::sync::atomic::Ordering;

use usgx_wire::boot::{self, Boot};
use usgx_wire::place::{RUNTIME_BASE, RUNTIME_END, VDSO_BASE, VDSO_SIZE};

use crate::arch::syscall::nr;
use crate::arch::{close, complain, fatal, getpid};
use crate::process::{self, BOOT, FIRST_PID, PROCESS};
use crate::signals::frame::signum;
use crate::signals::tables;
use crate::thread::Thread;
use crate::{cpuid, enclu, filter, link, sys};

/// What the attendant fills in before the image runs.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data")]
#[allow(non_upper_case_globals, reason = "the symbol's name is part of the protocol")]
pub static mut usgx_boot: Boot = Boot {
    magic: 0,
    version: 0,
    flags: 0,
    entry: 0,
    real_vdso: 0,
    attendant_pid: 0,
    door_fd: -1,
    attendant_fd: -1,
    fd_base: 0,
    fd_count: 0,
    reserved: 0,
};

unsafe extern "C" {
    static usgx_text_start: u8;
    static usgx_text_end: u8;
    static usgx_data_start: u8;
    static usgx_data_end: u8;
}

/// The image's entry point: saves all registers, sets the runtime up, and goes on to the program.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn usgx_start() -> ! {
    naked_asm!(
        "push rax", "push rcx", "push rdx", "push rbx", "push rbp", "push rsi", "push rdi",
        "push r8", "push r9", "push r10", "push r11", "push r12", "push r13", "push r14", "push r15",
        "pushfq",
        "mov rbx, rsp",
        "and rsp, -16",
        "call {start}",
        "mov rsp, rbx",
        "popfq",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop r8",
        "pop rdi", "pop rsi", "pop rbp", "pop rbx", "pop rdx", "pop rcx", "pop rax",
        "jmp qword ptr [rip + {boot} + {entry}]",
        start = sym start,
        boot = sym usgx_boot,
        entry = const core::mem::offset_of!(Boot, entry),
    )
}

extern "C" fn start() {
    protect_image();
    // SAFETY: the attendant has written it before this thread ran.
    let boot = unsafe { (&raw const usgx_boot).read() };
    if boot.magic != boot::MAGIC || boot.version != usgx_wire::VERSION {
        fatal("usgx: the runtime and the program that started it are of different versions\n");
    }
    // SAFETY: one thread.
    unsafe { BOOT.set(boot) };
    FIRST_PID.store(getpid(), Ordering::Relaxed);
    process::own(boot.door_fd);
    process::own(boot.attendant_fd);
    let Some(thread) = Thread::allocate((&raw const PROCESS).cast_mut()) else {
        fatal("usgx: no memory for the runtime\n");
    };
    thread.announce();
    if link::hello([0; 2]).is_err() {
        fatal("usgx: the machine does not answer\n");
    }
    tables::set_kernel_stack(thread);
    take_mask(thread);
    tables::install(&PROCESS);
    cpuid::init(link::header());
    enclu::init();
    if cpuid::needs_patching() {
        patch_mapped();
    }
    if boot.flags & boot::flags::INSTALL_FILTER != 0 && filter::install().is_err() {
        fatal("usgx: seccomp filters are not available here\n");
    }
    if boot.flags & boot::flags::TRACE_ME != 0 {
        stop_for_parent();
    }
}

/// Lets the parent trace this process and stops, as the kernel stops the new image of a traced program.
fn stop_for_parent() {
    const PTRACE_TRACEME: u64 = 0;
    // SAFETY: no memory is touched.
    unsafe {
        if sys!(nr::PTRACE, PTRACE_TRACEME) == 0 {
            sys!(nr::KILL, getpid(), signum::SIGTRAP);
        }
    }
}

/// Gives code, constants, data and the vDSO image their protections.
fn protect_image() {
    const PROT_NONE: u64 = 0;
    const PROT_READ: u64 = 1;
    const PROT_READ_WRITE: u64 = 3;
    const PROT_READ_EXEC: u64 = 5;
    let (text, text_end) = (&raw const usgx_text_start as u64, &raw const usgx_text_end as u64);
    let (data, data_end) = (&raw const usgx_data_start as u64, &raw const usgx_data_end as u64);
    // SAFETY: the linker script aligns the three to pages, and this is what they are for.
    let results = unsafe {
        [
            sys!(nr::MPROTECT, text, text_end - text, PROT_READ_EXEC),
            sys!(nr::MPROTECT, text_end, data - text_end, PROT_READ),
            sys!(nr::MPROTECT, data, data_end - data, PROT_READ_WRITE),
            sys!(nr::MPROTECT, data_end, VDSO_BASE - data_end, PROT_NONE),
            sys!(nr::MPROTECT, VDSO_BASE, VDSO_SIZE, PROT_READ_EXEC),
        ]
    };
    if results.iter().any(|result| *result < 0) {
        complain("usgx: the runtime's memory could not be protected\n");
    }
}

/// The mask that the program inherits is its own; the kernel's loses the runtime's signals.
fn take_mask(thread: &mut Thread) {
    const SIG_SETMASK: u64 = 2;
    let mut mask = 0u64;
    // SAFETY: the kernel writes and reads one word.
    unsafe { sys!(nr::RT_SIGPROCMASK, SIG_SETMASK, 0, &raw mut mask, 8) };
    thread.mask = mask;
    let filtered = tables::filtered(mask);
    // SAFETY: as above.
    unsafe { sys!(nr::RT_SIGPROCMASK, SIG_SETMASK, &raw const filtered, 0, 8) };
}

/// Replaces CPUID in everything executable that is mapped already: the program and its interpreter.
fn patch_mapped() {
    // SAFETY: opens a file.
    let fd = unsafe { sys!(nr::OPEN, c"/proc/self/maps".as_ptr(), 0o2000000) };
    if fd < 0 {
        complain("usgx: /proc is not mounted: the program's CPUID instructions show the host's processor\n");
        return;
    }
    let mut ranges = [(0u64, 0u64, 0u32); 64];
    let mut count = 0;
    let mut line = Line::default();
    let mut buffer = [0u8; 1024];
    loop {
        // SAFETY: the kernel writes into the buffer.
        let read = unsafe { sys!(nr::READ, fd, buffer.as_mut_ptr(), buffer.len()) };
        if read <= 0 {
            break;
        }
        for byte in &buffer[..read as usize] {
            if let Some(range) = line.feed(*byte)
                && count < ranges.len()
            {
                ranges[count] = range;
                count += 1;
            }
        }
    }
    close(fd as i32);
    for (start, end, prot) in &ranges[..count] {
        cpuid::patch_range(*start, end - start, *prot);
    }
}

/// Reads `/proc/self/maps` byte by byte.
#[derive(Default)]
struct Line {
    field: u32,
    start: u64,
    end: u64,
    prot: u32,
    private: bool,
    special: bool,
}

impl Line {
    /// At the end of a line returns its range, if that is private, executable and the program's.
    fn feed(&mut self, byte: u8) -> Option<(u64, u64, u32)> {
        let digit = match byte {
            b'0'..=b'9' => Some(u64::from(byte - b'0')),
            b'a'..=b'f' => Some(u64::from(byte - b'a') + 10),
            _ => None,
        };
        match (self.field, byte) {
            (_, b'\n') => {
                let line = core::mem::take(self);
                let ours = (RUNTIME_BASE..RUNTIME_END).contains(&line.start) || line.start == VDSO_BASE;
                let wanted = line.prot & 4 != 0 && line.private && !line.special && !ours;
                return wanted.then_some((line.start, line.end, line.prot));
            }
            (0, b'-') => self.field = 1,
            (0, _) => self.start = self.start << 4 | digit.unwrap_or(0),
            (1 | 2, b' ') => self.field += 1,
            (1, _) => self.end = self.end << 4 | digit.unwrap_or(0),
            (2, b'r') => self.prot |= 1,
            (2, b'w') => self.prot |= 2,
            (2, b'x') => self.prot |= 4,
            (2, b'p') => self.private = true,
            // "[vdso]", "[vsyscall]", "[uprobes]": the kernel's. "[stack]" and "[heap]" are data.
            (_, b'[') => self.special = true,
            _ => {}
        }
        None
    }
}
