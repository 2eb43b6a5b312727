//! The FS and GS bases, and the layout of extended state: what the processor tells once.
//!
//! Inside an enclave FS and GS are the enclave's, outside they are the program's; the runtime uses neither.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::arch::syscall::nr;
use crate::{cpuid, sys};

/// AT_HWCAP2: the kernel lets programs execute RDFSBASE and its like.
const HWCAP2_FSGSBASE: u64 = 1 << 1;
const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;

static FSGSBASE: AtomicBool = AtomicBool::new(false);

/// State components that can be in an XFRM.
const COMPONENTS: usize = 32;
/// Offset and size of each in the standard format of XSAVE.
static PLACES: [(AtomicU32, AtomicU32); COMPONENTS] =
    [const { (AtomicU32::new(0), AtomicU32::new(0)) }; COMPONENTS];
const CPUID_XSTATE: u32 = 0xd;

/// Notes what the processor can do. Called once, before the program runs.
pub(super) fn init() {
    FSGSBASE.store(hwcap2() & HWCAP2_FSGSBASE != 0, Ordering::Relaxed);
    for (component, place) in (0_u32..).zip(&PLACES).skip(2) {
        let answer = cpuid::host(CPUID_XSTATE, component);
        place.0.store(answer.ebx, Ordering::Relaxed);
        place.1.store(answer.eax, Ordering::Relaxed);
    }
}

/// `AT_HWCAP2` of this process; 0 where /proc does not tell, which costs system calls at every entry and exit.
fn hwcap2() -> u64 {
    const AT_HWCAP2: u64 = 26;
    const O_RDONLY_CLOEXEC: u64 = 0o2000000;
    let mut vector = [[0_u64; 2]; 64];
    // SAFETY: the path is a C string, and the kernel writes into the buffer.
    unsafe {
        let fd = sys!(nr::OPEN, c"/proc/self/auxv".as_ptr(), O_RDONLY_CLOEXEC);
        if fd >= 0 {
            sys!(nr::READ, fd, vector.as_mut_ptr(), size_of_val(&vector));
            sys!(nr::CLOSE, fd);
        }
    }
    vector.iter().find(|[key, _]| *key == AT_HWCAP2).map_or(0, |[_, value]| *value)
}

/// Offset and size of an extended state component, or `None` if the processor does not have it.
pub(super) fn component(index: u32) -> Option<(usize, usize)> {
    let place = PLACES.get(index as usize)?;
    let (offset, size) = (place.0.load(Ordering::Relaxed), place.1.load(Ordering::Relaxed));
    (size != 0).then_some((offset as usize, size as usize))
}

/// The current bases of FS and GS.
pub(super) fn get() -> (u64, u64) {
    let (mut fs, mut gs) = (0_u64, 0_u64);
    // SAFETY: reads registers, by instructions that the kernel says are enabled, or by the kernel into two
    // words of ours.
    unsafe {
        if FSGSBASE.load(Ordering::Relaxed) {
            asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
        } else {
            sys!(nr::ARCH_PRCTL, ARCH_GET_FS, &raw mut fs);
            sys!(nr::ARCH_PRCTL, ARCH_GET_GS, &raw mut gs);
        }
    }
    (fs, gs)
}

/// Replaces the bases of FS and GS.
pub(super) fn set(fs: u64, gs: u64) {
    // SAFETY: the runtime uses neither register; the bases are canonical (the callers check).
    unsafe {
        if FSGSBASE.load(Ordering::Relaxed) {
            asm!("wrfsbase {}", "wrgsbase {}", in(reg) fs, in(reg) gs, options(nostack, preserves_flags));
        } else {
            sys!(nr::ARCH_PRCTL, ARCH_SET_FS, fs);
            sys!(nr::ARCH_PRCTL, ARCH_SET_GS, gs);
        }
    }
}
