//! The first page of every region: the processor as programs shall see it.

use std::mem::offset_of;

use usgx_cpu::Profile;
use usgx_sys::cpuid::cpuid;
use usgx_wire::process::{ANY_SUBLEAF, CpuidEntry, Header, MAGIC, features};

/// CPUID leaves that a profile changes; for the SGX leaf, EPC sections and what follows them.
const LEAVES: [(u32, u32); 6] =
    [(0, ANY_SUBLEAF), (7, 0), (0x12, 0), (0x12, 1), (0x12, 2), (0x12, ANY_SUBLEAF)];

/// Writes the header of a machine with this processor.
pub(crate) fn header(profile: &Profile, epc_bytes: u64) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<Header>()];
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    let mut nr_cpuid = 0_u32;
    for (leaf, subleaf) in LEAVES {
        // A sub-leaf far beyond all named ones stands for the rest.
        let asked = if subleaf == ANY_SUBLEAF { 0xff } else { subleaf };
        let Some(change) = profile.cpuid(epc_bytes, leaf, asked) else { continue };
        let (mut and, mut or) = (change.and, change.or);
        if change.min_eax > 0 {
            // The machine and its clients run on the same host, so its value can be looked up here.
            (and[0], or[0]) = (0, change.apply(cpuid(leaf, 0))[0]);
        }
        let entry = offset_of!(Header, cpuid) + nr_cpuid as usize * size_of::<CpuidEntry>();
        put(entry + offset_of!(CpuidEntry, leaf), &leaf.to_le_bytes());
        put(entry + offset_of!(CpuidEntry, subleaf), &subleaf.to_le_bytes());
        for register in 0..4 {
            put(entry + offset_of!(CpuidEntry, and) + register * 4, &and[register].to_le_bytes());
            put(entry + offset_of!(CpuidEntry, or) + register * 4, &or[register].to_le_bytes());
        }
        nr_cpuid += 1;
    }
    let mut feature_bits = 0;
    if profile.has_sgx2() {
        feature_bits |= features::SGX2;
    }
    if profile.rdtsc_in_enclaves() {
        feature_bits |= features::RDTSC;
    }
    put(offset_of!(Header, magic), &MAGIC.to_le_bytes());
    put(offset_of!(Header, version), &usgx_wire::VERSION.to_le_bytes());
    put(offset_of!(Header, nr_cpuid), &nr_cpuid.to_le_bytes());
    put(offset_of!(Header, features), &feature_bits.to_le_bytes());
    put(offset_of!(Header, epc_bytes), &epc_bytes.to_le_bytes());
    bytes
}
