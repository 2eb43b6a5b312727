//! The runtime's `__vdso_sgx_enter_enclave`: Linux's contract, and EENTER without a trap.
//!
//! The contract (arguments, the run structure, the handler's protocol, what is an exception and what a return
//! value) is that of the Linux header `asm/sgx.h`. There is one ENCLU in it, which is also the AEP, so an
//! asynchronous exit comes back to it with RAX = 3 and resumes. That instruction traps. EENTER goes around it:
//! [`prepare`] does what the processor would, and the last instructions load the registers and jump.
//!
//! This runs on the program's stack with its signals open. A handler that interrupts must find the thread
//! either outside, at the ENCLU with its operands, or inside; [`interrupted`] makes it so. Until the phase is
//! `INSIDE`, it undoes the entry and puts RIP at the ENCLU, from the registers that were saved in a [`Block`]
//! on the stack. From the store of the phase to the jump, it completes the entry from the same block. Handlers
//! run on the runtime's own stack, so the block stays intact.

use core::arch::naked_asm;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use super::entry::{self, TcsLeft};
use super::fault;
use super::mode::{ENTERING, INSIDE, Mode, OUTSIDE};
use crate::arch::syscall::nr;
use crate::signals::frame::{OWNED, Ucontext};
use crate::thread::Thread;
use crate::{sys, usercopy};

const TF: u64 = 1 << 8;
const EENTER: u64 = 2;

/// The registers at the ENCLU, as the function pushes them; those that are constants there are left out.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Block {
    rflags: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    pub(super) rbx: u64,
    pub(super) rbp: u64,
    /// Where the enclave starts; filled in by [`prepare`].
    entry: u64,
}

// SAFETY: integers without padding.
unsafe impl usercopy::Plain for Block {}

impl Block {
    /// RSP at the ENCLU, from the block's address.
    pub(super) fn outside_rsp(address: u64) -> u64 {
        address + size_of::<Self>() as u64
    }
}

/// Instructions that undo the pushes in front of the call of [`prepare`], but for the flags.
macro_rules! pop_entry_registers {
    () => {
        "pop r11
         pop r10
         pop r9
         pop r8
         pop rdx
         pop rsi
         pop rdi
         pop r15
         pop r14
         pop r13
         pop r12
         pop rbx
         pop rbp"
    };
}

/// `int __vdso_sgx_enter_enclave(rdi, rsi, rdx, unsigned int leaf, r8, r9, struct sgx_enclave_run *run)`.
///
/// The vDSO image that programs see jumps here.
///
/// # Safety
/// By the contract of the vDSO function.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn usgx_vdso_enter() {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbp, 0",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "push rbx",
        ".cfi_rel_offset rbx, -8",
        "mov eax, ecx",

        // EAX is the leaf. Only EENTER and ERESUME are allowed, and reserved bytes are zero.
        "2:",
        "lea ecx, [rax - 2]",
        "cmp ecx, 1",
        "ja 8f",
        "mov rcx, [rbp + 16]",
        "mov ebx, 40",
        "3:",
        "cmp qword ptr [rcx + rbx], 0",
        "jne 8f",
        "add ebx, 8",
        "cmp ebx, 256",
        "jne 3b",
        "mov rbx, [rcx]",
        "lea rcx, [rip + usgx_vdso_enclu]",
        "cmp eax, 2",
        "jne usgx_vdso_enclu",

        // EENTER without a trap.
        "lea rsp, [rsp - 8]",
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rsi",
        "push rdx",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "pushfq",
        "mov rdi, rsp",
        "mov rbx, rsp",
        "and rsp, -16",
        "call {prepare}",
        "mov rsp, rbx",
        "test rax, rax",
        "jz 7f",
        "mov dword ptr [rax + {phase}], {inside}",
        ".globl usgx_vdso_committed",
        "usgx_vdso_committed:",
        // Not POPFQ: a debugger's TF would become the program's. Nobody relies on the other flags here.
        "lea rsp, [rsp + 8]",
        pop_entry_registers!(),
        "mov eax, dword ptr [rax + {cssa}]",
        "lea rcx, [rip + usgx_vdso_after]",
        "lea rsp, [rsp + 8]",
        "jmp qword ptr [rsp - 8]",
        ".globl usgx_vdso_entered",
        "usgx_vdso_entered:",

        // Not so: as if nothing had been tried.
        "7:",
        "lea rsp, [rsp + 8]",
        pop_entry_registers!(),
        "lea rsp, [rsp + 8]",
        "mov eax, 2",
        "lea rcx, [rip + usgx_vdso_enclu]",

        ".globl usgx_vdso_enclu",
        "usgx_vdso_enclu:",
        ".byte 0x0f, 0x01, 0xd7",
        // EEXIT ends here.
        ".globl usgx_vdso_after",
        "usgx_vdso_after:",
        "mov rbx, [rbp + 16]",
        "mov dword ptr [rbx + 8], 4",

        "4:",
        "cmp qword ptr [rbx + 24], 0",
        "jne 6f",
        "xor eax, eax",

        "5:",
        "mov rbx, [rbp - 8]",
        "leave",
        ".cfi_remember_state",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_restore_state",

        // The handler: f(rdi, rsi, rdx, rsp at exit, r8, r9, run).
        "6:",
        "mov rcx, rsp",
        "and rsp, -16",
        "push rcx",
        "push rbx",
        "cld",
        "mov rax, [rbx + 24]",
        "lfence",
        "call rax",
        "mov rsp, [rsp + 8]",
        "test eax, eax",
        "jle 5b",
        "jmp 2b",

        // -EINVAL.
        "8:",
        "mov eax, -22",
        "jmp 5b",

        // An exception at the ENCLU: DI vector, SI error code, RDX address, EAX leaf.
        ".globl usgx_vdso_fixup",
        "usgx_vdso_fixup:",
        "mov rbx, [rbp + 16]",
        "mov dword ptr [rbx + 8], eax",
        "mov word ptr [rbx + 12], di",
        "mov word ptr [rbx + 14], si",
        "mov qword ptr [rbx + 16], rdx",
        "jmp 4b",
        ".cfi_endproc",
        prepare = sym prepare,
        phase = const offset_of!(Mode, phase),
        cssa = const offset_of!(Mode, cssa),
        inside = const INSIDE,
    )
}

unsafe extern "C" {
    static usgx_vdso_committed: u8;
    static usgx_vdso_entered: u8;
    static usgx_vdso_enclu: u8;
    static usgx_vdso_after: u8;
    static usgx_vdso_fixup: u8;
}

/// Keeps the function in the image: only the vDSO image's builder refers to it, by name.
#[used]
static KEEP: unsafe extern "C" fn() = usgx_vdso_enter;

/// Where the function's ENCLU is.
pub(super) fn enclu_address() -> u64 {
    &raw const usgx_vdso_enclu as u64
}

/// Does what Linux does with an exception at the vDSO's ENCLU.
pub(super) fn fix_up(uc: &mut Ucontext, vector: u8, error: u32, address: u64) {
    uc.mcontext.rdi = u64::from(vector);
    uc.mcontext.rsi = u64::from(error);
    uc.mcontext.rdx = address;
    uc.mcontext.rip = &raw const usgx_vdso_fixup as u64;
}

/// Makes an entry up to loading the registers. Null: the ENCLU has to do it.
extern "C" fn prepare(block: *mut Block) -> *const Mode {
    let Some(thread) = Thread::current_by_tid() else { return core::ptr::null() };
    // SAFETY: the caller has just pushed it on its stack.
    let saved = unsafe { block.read() };
    // A thread's first entry needs the machine, and single steps need the processor.
    if thread.slot < 0 || saved.rflags & TF != 0 || thread.enclave.phase() != OUTSIDE {
        return core::ptr::null();
    }
    thread.enclave.block.store(block as u64, Ordering::Relaxed);
    thread.enclave.set_phase(ENTERING);
    if let Some((rip, rax)) = entry::enter_quietly(thread, &saved, block as u64) {
        // SAFETY: as above.
        unsafe { (&raw mut (*block).entry).write(rip) };
        thread.enclave.cssa.store(rax as u32, Ordering::Relaxed);
        return &raw const thread.enclave;
    }
    let open = block_signals();
    if entry::undo(thread) == TcsLeft::AtMachine {
        fault::give_back_tcs(thread);
    }
    thread.enclave.set_phase(OUTSIDE);
    unblock_signals(open);
    core::ptr::null()
}

const SIG_SETMASK: u64 = 2;

fn block_signals() -> u64 {
    let (all, mut before) = (!OWNED, 0_u64);
    // SAFETY: the kernel reads and writes one word each.
    unsafe { sys!(nr::RT_SIGPROCMASK, SIG_SETMASK, &raw const all, &raw mut before, 8) };
    before
}

fn unblock_signals(mask: u64) {
    // SAFETY: the kernel reads one word.
    unsafe { sys!(nr::RT_SIGPROCMASK, SIG_SETMASK, &raw const mask, 0, 8) };
}

/// Makes the context of an interrupted entry either the ENCLU's or the enclave's. Does nothing anywhere else.
pub(super) fn interrupted(thread: &mut Thread, uc: &mut Ucontext) {
    match thread.enclave.phase() {
        ENTERING => {
            entry::note_take(thread, uc);
            if entry::undo(thread) == TcsLeft::AtMachine {
                fault::give_back_tcs(thread);
            }
            put_back(thread, uc);
            uc.mcontext.rax = EENTER;
            uc.mcontext.rcx = enclu_address();
            uc.mcontext.rip = enclu_address();
            thread.enclave.set_phase(OUTSIDE);
        }
        INSIDE if in_last_instructions(uc.mcontext.rip) => {
            let entry = put_back(thread, uc);
            uc.mcontext.rax = u64::from(thread.enclave.cssa());
            uc.mcontext.rcx = &raw const usgx_vdso_after as u64;
            uc.mcontext.rip = entry;
        }
        _ => {}
    }
}

fn in_last_instructions(rip: u64) -> bool {
    (&raw const usgx_vdso_committed as u64..&raw const usgx_vdso_entered as u64).contains(&rip)
}

/// Loads the registers of the block; returns the entry point.
fn put_back(thread: &Thread, uc: &mut Ucontext) -> u64 {
    let address = thread.enclave.block.load(Ordering::Relaxed);
    // The program's stack was writable a moment ago; if another thread has unmapped it, any registers will do.
    let Some(block) = usercopy::get::<Block>(address) else { return 0 };
    let to = &mut uc.mcontext;
    to.eflags = to.eflags & TF | block.rflags & !TF;
    (to.r8, to.r9, to.r10, to.r11) = (block.r8, block.r9, block.r10, block.r11);
    (to.r12, to.r13, to.r14, to.r15) = (block.r12, block.r13, block.r14, block.r15);
    (to.rdx, to.rsi, to.rdi) = (block.rdx, block.rsi, block.rdi);
    (to.rbx, to.rbp) = (block.rbx, block.rbp);
    to.rsp = Block::outside_rsp(address);
    block.entry
}
