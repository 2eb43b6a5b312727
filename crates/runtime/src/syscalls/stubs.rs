//! System calls that must not be made in the handler: those that can block, and `execve`.
//!
//! The handler pushes a small frame below the red zone of the program's stack, points RIP at a stub in the image
//! (whose calls pass the filter) and returns. The call is then made with the program's signals open and no frame
//! of the runtime live; restarts and EINTR are the kernel's. A stub ends with a `ret` that takes the frame away.

use core::arch::naked_asm;

use crate::arch::syscall::errno;
use crate::signals::frame::Ucontext;
use crate::usercopy;

const RED_ZONE: u64 = 128;

/// Frame: return address.
#[unsafe(naked)]
unsafe extern "C" fn usgx_plain_stub() {
    naked_asm!("syscall", "ret 128")
}

/// Frame: [`MaskFrame`]. Gives back the registers that pointed at the frame's mask.
#[unsafe(naked)]
unsafe extern "C" fn usgx_mask_stub() {
    naked_asm!(
        "syscall",
        ".globl usgx_mask_stub_after",
        "usgx_mask_stub_after:",
        "mov rdi, [rsp + 8]",
        "mov r8, [rsp + 16]",
        "mov r9, [rsp + 24]",
        "mov r10, [rsp + 32]",
        "ret {frame} - 8 + 128",
        frame = const size_of::<MaskFrame>(),
    )
}

/// Frame: return address. A failed `execve` comes back to the runtime by way of `SIGILL`.
#[unsafe(naked)]
unsafe extern "C" fn usgx_exec_stub() {
    naked_asm!("syscall", ".globl usgx_exec_failed", "usgx_exec_failed:", "ud2")
}

unsafe extern "C" {
    static usgx_mask_stub_after: u8;
    static usgx_exec_failed: u8;
}

/// The frame of [`usgx_mask_stub`].
#[repr(C)]
#[derive(Clone, Copy)]
struct MaskFrame {
    back: u64,
    rdi: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    /// What the kernel is shown.
    mask: u64,
    /// `pselect6`'s pair of pointer and size.
    pair: [u64; 2],
    /// What the program asked for.
    asked: u64,
    /// 1 if the mask is in force while the call waits.
    temporary: u64,
}

// SAFETY: integers without padding.
unsafe impl usercopy::Plain for MaskFrame {}

/// Makes the trapped call with its own arguments once the handler has returned. `false`: the stack does not
/// allow it, make the call here.
pub fn forward(uc: &mut Ucontext, nr: u64) -> bool {
    push_return(uc, nr, usgx_plain_stub as *const () as u64)
}

/// As [`forward`], for `execve`.
pub fn forward_exec(uc: &mut Ucontext, nr: u64) -> bool {
    push_return(uc, nr, usgx_exec_stub as *const () as u64)
}

fn push_return(uc: &mut Ucontext, nr: u64, stub: u64) -> bool {
    let at = uc.mcontext.rsp.wrapping_sub(RED_ZONE + 8);
    if !usercopy::put(at, &uc.mcontext.rip) {
        return false;
    }
    uc.mcontext.rsp = at;
    uc.mcontext.rip = stub;
    uc.mcontext.rax = nr;
    true
}

/// If the trap is that of a failed `execve`: takes the stub's frame away and leaves the error in RAX.
pub fn unwind_exec(uc: &mut Ucontext) -> bool {
    if uc.mcontext.rip != &raw const usgx_exec_failed as u64 {
        return false;
    }
    if let Some(back) = usercopy::get::<u64>(uc.mcontext.rsp) {
        uc.mcontext.rip = back;
        uc.mcontext.rsp += RED_ZONE + 8;
    }
    true
}

/// Which register of a call points at a signal mask.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum MaskIn {
    /// RDI: `rt_sigsuspend`, `rt_sigtimedwait`.
    Rdi,
    /// R10: `ppoll`.
    R10,
    /// R8: `epoll_pwait`.
    R8,
    /// R9 points at a pair of pointer and size: `pselect6`.
    R9Pair,
}

/// Makes the trapped call, with the mask `shown` to the kernel, once the handler has returned. `temporary`: the
/// mask is in force while the call waits.
pub fn forward_mask(
    uc: &mut Ucontext,
    nr: u64,
    place: MaskIn,
    asked: u64,
    shown: u64,
    temporary: bool,
) -> i64 {
    let registers = &mut uc.mcontext;
    let at = registers.rsp.wrapping_sub(RED_ZONE + size_of::<MaskFrame>() as u64);
    let mask_at = at + core::mem::offset_of!(MaskFrame, mask) as u64;
    let pair_at = at + core::mem::offset_of!(MaskFrame, pair) as u64;
    let frame = MaskFrame {
        back: registers.rip,
        rdi: registers.rdi,
        r8: registers.r8,
        r9: registers.r9,
        r10: registers.r10,
        mask: shown,
        pair: [mask_at, 8],
        asked,
        temporary: u64::from(temporary),
    };
    if !usercopy::put(at, &frame) {
        return -errno::EFAULT;
    }
    match place {
        MaskIn::Rdi => registers.rdi = mask_at,
        MaskIn::R10 => registers.r10 = mask_at,
        MaskIn::R8 => registers.r8 = mask_at,
        MaskIn::R9Pair => registers.r9 = pair_at,
    }
    registers.rsp = at;
    registers.rip = usgx_mask_stub as *const () as u64;
    nr as i64
}

/// The program's mask for the system call that a signal has just interrupted, if it had one of its own.
pub fn temporary_mask(uc: &Ucontext) -> Option<u64> {
    let interrupted =
        uc.mcontext.rip == &raw const usgx_mask_stub_after as u64 && uc.mcontext.rax as i64 == -errno::EINTR;
    let frame = interrupted.then(|| usercopy::get::<MaskFrame>(uc.mcontext.rsp)).flatten()?;
    (frame.temporary != 0).then_some(frame.asked)
}
