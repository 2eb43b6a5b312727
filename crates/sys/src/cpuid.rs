//! The CPUID instruction: what the host itself says, before a profile changes it.

use core::arch::x86_64::__cpuid_count;

/// EAX, EBX, ECX and EDX for a leaf and a sub-leaf.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = __cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}
