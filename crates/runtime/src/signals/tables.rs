//! What the kernel is told about handlers, masks and alternate stacks, and what the program is.

use super::frame::{OWNED, SS_AUTODISARM, SS_DISABLE, SS_ONSTACK, Sigaction, StackT, bit, signum};
use super::{usgx_restorer, usgx_signal};
use crate::arch::syscall::{errno, nr};
use crate::process::Process;
use crate::sys;
use crate::thread::Thread;

/// `SIG_DFL`.
pub const DEFAULT: u64 = 0;
/// `SIG_IGN`.
pub const IGNORE: u64 = 1;

#[allow(missing_docs, reason = "the kernel's names")]
pub mod sa {
    pub const NOCLDSTOP: u64 = 1;
    pub const NOCLDWAIT: u64 = 2;
    pub const SIGINFO: u64 = 4;
    pub const RESTORER: u64 = 0x0400_0000;
    pub const ONSTACK: u64 = 0x0800_0000;
    pub const RESTART: u64 = 0x1000_0000;
    pub const NODEFER: u64 = 0x4000_0000;
    pub const RESETHAND: u64 = 0x8000_0000;
}

/// Signals that nobody can block.
pub const UNBLOCKABLE: u64 = bit(signum::SIGKILL) | bit(signum::SIGSTOP);
/// Smallest alternate stack that the kernel takes.
const MINSIGSTKSZ: u64 = 2048;

/// What may come on top of a handler of the runtime: the faults of guarded copies, and a debugger's traps (a trap
/// that is blocked would cost the runtime its handler). The rest waits until the handler returns.
pub const OPEN: u64 = bit(signum::SIGSEGV) | bit(signum::SIGBUS) | bit(signum::SIGTRAP);

/// The mask that the kernel gets where the program asks for `mask`.
pub fn filtered(mask: u64) -> u64 {
    mask & !OWNED & !UNBLOCKABLE
}

/// Tells the kernel what stands for the program's `action` of `sig`.
pub fn set_kernel(sig: i32, action: &Sigaction) -> i64 {
    let owned = OWNED & bit(sig) != 0;
    let plain = !owned && action.handler <= IGNORE;
    let mut passed = action.flags & (sa::NOCLDSTOP | sa::NOCLDWAIT | sa::RESTART);
    if owned && action.handler <= IGNORE {
        // What comes is the runtime's own affair, a kick say: the program's calls go on.
        passed |= sa::RESTART;
    }
    let told = if plain {
        Sigaction { handler: action.handler, flags: passed, restorer: 0, mask: 0 }
    } else {
        Sigaction {
            handler: usgx_signal as *const () as u64,
            flags: passed | sa::SIGINFO | sa::ONSTACK | sa::NODEFER | sa::RESTORER,
            restorer: usgx_restorer as *const () as u64,
            mask: !OPEN,
        }
    };
    // SAFETY: the kernel reads `told`; the handler is ours.
    unsafe { sys!(nr::RT_SIGACTION, sig, &raw const told, 0, 8) }
}

/// Makes the kernel treat `sig` by default, whatever the program asked for.
pub fn set_kernel_default(sig: i32) {
    let told = Sigaction::default();
    // SAFETY: the kernel reads `told`.
    unsafe { sys!(nr::RT_SIGACTION, sig, &raw const told, 0, 8) };
}

/// Takes over at the start of an image: notes what is ignored and installs the handlers of the runtime's own
/// signals.
pub fn install(process: &Process) {
    let mut actions = process.actions.lock();
    for sig in 1..=64 {
        let mut old = Sigaction::default();
        // SAFETY: the kernel writes `old`.
        unsafe { sys!(nr::RT_SIGACTION, sig, 0, &raw mut old, 8) };
        if old.handler == IGNORE {
            actions.set(sig, Sigaction { handler: IGNORE, ..Sigaction::default() });
        }
        if OWNED & bit(sig) != 0 {
            set_kernel(sig, &actions.get(sig));
        }
    }
}

/// Whether `sp` is on the program's alternate stack.
fn on_stack(stack: &StackT, sp: u64) -> bool {
    stack.flags & SS_AUTODISARM == 0 && sp > stack.sp && sp - stack.sp <= stack.size
}

/// The state of the program's alternate stack as `sigaltstack` reports it.
pub fn stack_state(stack: &StackT, sp: u64) -> i32 {
    if stack.size == 0 {
        SS_DISABLE
    } else if on_stack(stack, sp) {
        SS_ONSTACK
    } else {
        0
    }
}

/// Sets the program's alternate stack, with the kernel's checks in the kernel's order.
pub fn set_stack(thread: &mut Thread, new: &StackT, sp: u64) -> Result<(), i64> {
    if thread.altstack.size != 0 && on_stack(&thread.altstack, sp) {
        return Err(errno::EPERM);
    }
    let mode = new.flags & !SS_AUTODISARM;
    match mode {
        SS_DISABLE => thread.altstack = StackT { flags: new.flags, ..StackT::default() },
        0 | SS_ONSTACK if new.size < MINSIGSTKSZ => return Err(errno::ENOMEM),
        0 | SS_ONSTACK => thread.altstack = StackT { pad: 0, ..*new },
        _ => return Err(errno::EINVAL),
    }
    Ok(())
}

/// Tells the kernel which stack the calling thread's handlers run on.
pub fn set_kernel_stack(thread: &Thread) {
    let stack = thread.kernel_stack();
    // SAFETY: the kernel reads `stack`, which is this thread's.
    unsafe { sys!(nr::SIGALTSTACK, &raw const stack, 0) };
}
