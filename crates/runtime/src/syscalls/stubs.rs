//! System calls that must not be made in the handler: those that can block, and `execve`.
//!
//! The handler pushes a small frame below the red zone of the program's stack, points RIP at a stub in the image
//! (whose calls pass the filter) and returns. The call is then made with the program's signals open and no frame
//! of the runtime live; restarts and EINTR are the kernel's. A stub ends with a `ret` that takes the frame away. A
//! handler of the program that interrupts never sees it: [`leave`] makes the context that of the program's own
//! instruction.

use core::arch::naked_asm;

use super::tracer;
use crate::arch::syscall::errno;
use crate::signals::frame::{SigInfo, Ucontext, bit};
use crate::usercopy;

const RED_ZONE: u64 = 128;

/// Frame: return address.
#[unsafe(naked)]
#[unsafe(link_section = ".behalf")]
unsafe extern "C" fn usgx_plain_stub() {
    naked_asm!("syscall", ".globl usgx_plain_stub_after", "usgx_plain_stub_after:", "ret 128")
}

/// Frame: [`MaskFrame`]. Gives back the registers that pointed at the frame's mask.
#[unsafe(naked)]
#[unsafe(link_section = ".behalf")]
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
        ".globl usgx_mask_stub_end",
        "usgx_mask_stub_end:",
        frame = const size_of::<MaskFrame>(),
    )
}

/// Frame: return address. A failed `execve` comes back to the runtime by way of `SIGILL`.
#[unsafe(naked)]
#[unsafe(link_section = ".behalf")]
unsafe extern "C" fn usgx_exec_stub() {
    naked_asm!("syscall", ".globl usgx_exec_failed", "usgx_exec_failed:", "ud2")
}

/// Frame: [`WaitFrame`]. Without an error it comes back to the runtime by way of `SIGILL`.
#[unsafe(naked)]
#[unsafe(link_section = ".behalf")]
unsafe extern "C" fn usgx_wait_stub() {
    naked_asm!(
        "syscall",
        ".globl usgx_wait_stub_after",
        "usgx_wait_stub_after:",
        "test rax, rax",
        "js 2f",
        ".globl usgx_wait_done",
        "usgx_wait_done:",
        "ud2",
        "2:",
        "ret {frame} - 8 + 128",
        ".globl usgx_wait_stub_end",
        "usgx_wait_stub_end:",
        frame = const size_of::<WaitFrame>(),
    )
}

/// The frame of [`usgx_wait_stub`]: where the program goes on, and the number of its call.
type WaitFrame = [u64; 2];

unsafe extern "C" {
    static usgx_plain_stub_after: u8;
    static usgx_wait_stub_after: u8;
    static usgx_wait_stub_end: u8;
    static usgx_wait_done: u8;
    static usgx_mask_stub_after: u8;
    static usgx_mask_stub_end: u8;
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

/// As [`forward`], for `wait4` and `waitid`: the runtime looks at what they say ([`unwind_wait`]).
pub fn forward_wait(uc: &mut Ucontext, nr: u64) -> bool {
    let at = uc.mcontext.rsp.wrapping_sub(RED_ZONE + size_of::<WaitFrame>() as u64);
    let frame: WaitFrame = [uc.mcontext.rip, nr];
    if !usercopy::put(at, &frame) {
        return false;
    }
    uc.mcontext.rsp = at;
    uc.mcontext.rip = usgx_wait_stub as *const () as u64;
    uc.mcontext.rax = nr;
    true
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

/// If the trap is that of a wait that has returned: takes the stub's frame away and returns the number of the call.
pub fn unwind_wait(uc: &mut Ucontext) -> Option<u64> {
    if uc.mcontext.rip != &raw const usgx_wait_done as u64 {
        return None;
    }
    let [back, number] = usercopy::get::<WaitFrame>(uc.mcontext.rsp)?;
    uc.mcontext.rip = back;
    uc.mcontext.rsp += size_of::<WaitFrame>() as u64 + RED_ZONE;
    Some(number)
}

/// Makes the program's call again that has just returned to the context.
pub fn repeat(uc: &mut Ucontext, nr: u64) {
    uc.mcontext.rip -= SYSCALL_LEN;
    uc.mcontext.rax = nr;
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

/// Bytes of SYSCALL.
const SYSCALL_LEN: u64 = 2;

/// Whether the interrupted instruction is in [`usgx_mask_stub`], and then whether the call has returned.
fn at_mask_stub(uc: &Ucontext) -> Option<bool> {
    let rip = uc.mcontext.rip;
    if rip == usgx_mask_stub as *const () as u64 {
        return Some(false);
    }
    (&raw const usgx_mask_stub_after as u64..&raw const usgx_mask_stub_end as u64)
        .contains(&rip)
        .then_some(true)
}

/// The frame of a call that waits: about to, interrupted, or (by restart) about to again.
fn waiting(uc: &Ucontext) -> Option<MaskFrame> {
    let returned = at_mask_stub(uc)?;
    let waits = !returned || uc.mcontext.rax as i64 == -errno::EINTR;
    waits.then(|| usercopy::get::<MaskFrame>(uc.mcontext.rsp)).flatten()
}

/// The program's mask for the system call that a signal has just interrupted, if it had one of its own.
pub fn temporary_mask(uc: &Ucontext) -> Option<u64> {
    let frame = waiting(uc).filter(|frame| frame.temporary != 0)?;
    (at_mask_stub(uc) == Some(true)).then_some(frame.asked)
}

/// Signals that the interrupted call waits for or lets through.
pub fn awaited(uc: &Ucontext) -> u64 {
    waiting(uc).map_or(0, |frame| if frame.temporary != 0 { !frame.asked } else { frame.asked })
}

/// If the call that the thread is about to make waits with a mask that lets `sig` through: makes it one that `sig`
/// has interrupted, and returns that mask. Only for signals that the kernel does not keep for the call.
pub fn interrupt_wait(uc: &mut Ucontext, sig: i32) -> Option<u64> {
    let frame = waiting(uc).filter(|frame| frame.temporary != 0 && frame.asked & bit(sig) == 0)?;
    uc.mcontext.rax = -errno::EINTR as u64;
    uc.mcontext.rip = &raw const usgx_mask_stub_after as u64;
    Some(frame.asked)
}

/// If the thread is in `rt_sigtimedwait` for `sig`, or about to be: lets the call return it.
pub fn complete_wait(uc: &mut Ucontext, sig: i32, info: &SigInfo) -> bool {
    let waits = waiting(uc).is_some_and(|frame| frame.temporary == 0 && frame.asked & bit(sig) != 0);
    if waits {
        let at = uc.mcontext.rsi;
        uc.mcontext.rip = &raw const usgx_mask_stub_after as u64;
        uc.mcontext.rax = if at == 0 || usercopy::put(at, info) { sig as u64 } else { -errno::EFAULT as u64 };
    }
    waits
}

/// Makes a context within a stub that of the program's own system call instruction: behind it if the call has
/// returned, otherwise at it, so that the call traps again.
pub fn leave(uc: &mut Ucontext) {
    let rip = uc.mcontext.rip;
    let wait_returned = &raw const usgx_wait_stub_after as u64..&raw const usgx_wait_stub_end as u64;
    let (returned, size) = if wait_returned.contains(&rip) {
        // Whatever handler comes: what the call has said is looked at before the program sees it.
        uc.mcontext.rip = &raw const usgx_wait_done as u64;
        tracer::on_waited(uc);
        return;
    } else if rip == usgx_wait_stub as *const () as u64 {
        (false, size_of::<WaitFrame>() as u64)
    } else if let Some(returned) = at_mask_stub(uc) {
        (returned, size_of::<MaskFrame>() as u64)
    } else if rip == &raw const usgx_plain_stub_after as u64 {
        (true, 8)
    } else if rip == usgx_plain_stub as *const () as u64 || rip == usgx_exec_stub as *const () as u64 {
        (false, 8)
    } else {
        return;
    };
    let at = uc.mcontext.rsp;
    let Some(back) = usercopy::get::<u64>(at) else { return };
    if size == size_of::<MaskFrame>() as u64 {
        let Some(frame) = usercopy::get::<MaskFrame>(at) else { return };
        let to = &mut uc.mcontext;
        (to.rdi, to.r8, to.r9, to.r10) = (frame.rdi, frame.r8, frame.r9, frame.r10);
    }
    uc.mcontext.rsp = at + size + RED_ZONE;
    uc.mcontext.rip = if returned { back } else { back - SYSCALL_LEN };
}
