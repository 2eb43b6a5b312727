//! The first page of every region: the processor as programs shall see it.

use std::mem::offset_of;

use usgx_cpu::Profile;
use usgx_sys::cpuid::cpuid;
use usgx_wire::process::{ANY_SUBLEAF, CpuidEntry, Header, MAGIC, features};

/// CPUID leaves that a profile changes, for an EPC of so many sections; the last stands for what follows these.
fn leaves(nr_sections: usize) -> Vec<(u32, u32)> {
    let sections = (2..).take(nr_sections).map(|subleaf| (0x12, subleaf));
    let first = [(0, ANY_SUBLEAF), (7, 0), (0x12, 0), (0x12, 1)].into_iter();
    first.chain(sections).chain([(0x12, ANY_SUBLEAF)]).collect()
}

/// Writes the header of a machine with this processor and EPC sections of these sizes in bytes.
pub(crate) fn header(profile: &Profile, sections: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<Header>()];
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    let mut nr_cpuid = 0_u32;
    for (leaf, subleaf) in leaves(sections.len()) {
        // A sub-leaf far beyond all named ones stands for the rest.
        let asked = if subleaf == ANY_SUBLEAF { 0xff } else { subleaf };
        let Some(change) = profile.cpuid(sections, leaf, asked) else { continue };
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
    put(offset_of!(Header, epc_bytes), &sections.iter().sum::<u64>().to_le_bytes());
    bytes
}
