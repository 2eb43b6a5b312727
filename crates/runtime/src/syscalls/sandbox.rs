//! Seccomp filters of the program's own: they get "the runtime's own calls are allowed" in front.
//!
//! A filter of the runtime's outranks one of the program's that refuses a call with an error, so the program's has
//! to be asked when the call is carried out: such calls are made from a part of the image of its own
//! ([`crate::arch::syscall::on_behalf`]), which is not allowed in front. Calls that the runtime answers itself (signals' handlers,
//! masks and stacks, and everything about enclaves) no filter of a program sees.

use usgx_wire::place::{IMAGE_SIZE, RUNTIME_BASE};

use crate::arch::syscall::{errno, nr, syscall};
use crate::filter::{ALLOW, AT_IP, Insn, JEQ, JGE, LD, RET};
use crate::sys;
use crate::usercopy::{self, Plain};

const PR_SET_SECCOMP: u64 = 22;
const SECCOMP_MODE_FILTER: u64 = 2;
const SECCOMP_SET_MODE_STRICT: u64 = 0;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
const MAX_INSNS: usize = 4096;
unsafe extern "C" {
    static usgx_behalf_start: u8;
    static usgx_behalf_end: u8;
}

/// Instructions that go in front of a program's.
const PREFIX_LEN: usize = 7;

/// Lets the runtime's own calls pass. Those that it makes for the program are the program's to judge.
fn prefix() -> [Insn; PREFIX_LEN] {
    let (start, end) = (&raw const usgx_behalf_start as u64, &raw const usgx_behalf_end as u64);
    [
        Insn::new(LD, 0, 0, AT_IP + 4),
        Insn::new(JEQ, 0, 5, (RUNTIME_BASE >> 32) as u32),
        Insn::new(LD, 0, 0, AT_IP),
        Insn::new(JGE, 3, 0, IMAGE_SIZE as u32),
        Insn::new(JGE, 0, 1, start as u32),
        Insn::new(JGE, 0, 1, end as u32),
        Insn::new(RET, 0, 0, ALLOW),
    ]
}

/// `struct sock_fprog`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Program {
    len: u64,
    filter: u64,
}

// SAFETY: integers; of `len` only the low half counts.
unsafe impl Plain for Program {}

/// `seccomp`.
pub fn seccomp(args: [u64; 6]) -> i64 {
    match args[0] {
        SECCOMP_SET_MODE_STRICT => -errno::EINVAL,
        SECCOMP_SET_MODE_FILTER => install(args[1], args[2]),
        // SAFETY: a question.
        _ => unsafe { syscall(nr::SECCOMP, args) },
    }
}

/// `prctl`.
pub fn prctl(args: [u64; 6]) -> i64 {
    match (args[0], args[1]) {
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER) => install(0, args[2]),
        (PR_SET_SECCOMP, _) => -errno::EINVAL,
        // SAFETY: the program's own call.
        _ => unsafe { syscall(nr::PRCTL, args) },
    }
}

fn install(flags: u64, program: u64) -> i64 {
    let Some(program) = usercopy::get::<Program>(program) else { return -errno::EFAULT };
    let count = usize::from(program.len as u16);
    if count == 0 || count + PREFIX_LEN > MAX_INSNS {
        return -errno::EINVAL;
    }
    let bytes = (count + PREFIX_LEN) * size_of::<Insn>();
    const PROT_RW: u64 = 3;
    const MAP_PRIVATE_ANONYMOUS: u64 = 0x22;
    // SAFETY: fresh memory.
    let buffer = unsafe { sys!(nr::MMAP, 0, bytes, PROT_RW, MAP_PRIVATE_ANONYMOUS, -1i64, 0) };
    if buffer < 0 {
        return buffer;
    }
    let start = buffer as *mut Insn;
    let own = count * size_of::<Insn>();
    // SAFETY: the buffer has room for both parts.
    let copied = unsafe {
        start.copy_from_nonoverlapping(prefix().as_ptr(), PREFIX_LEN);
        usercopy::copy_in(start.add(PREFIX_LEN).cast(), program.filter, own)
    };
    let result = if copied == own {
        let longer = Program { len: (count + PREFIX_LEN) as u64, filter: buffer as u64 };
        // SAFETY: the kernel reads the program.
        unsafe { sys!(nr::SECCOMP, SECCOMP_SET_MODE_FILTER, flags, &raw const longer) }
    } else {
        -errno::EFAULT
    };
    // SAFETY: the buffer is ours.
    unsafe { sys!(nr::MUNMAP, buffer, bytes) };
    result
}
