//! The region: memory shared by one process image and the machine.
//!
//! A memfd that the machine makes, sealed against resizing and mapped by the runtime at
//! [`crate::place::REGION_BASE`]. It begins with a [`Header`] page, then [`MAX_SLOTS`] slots of one page
//! each, then a data area of [`DATA_SIZE`] bytes for each slot. It is sparse: a slot that is never used costs
//! nothing.

use crate::slot::Slot;

/// Most slots, and so threads that use SGX at the same time, in one process.
pub const MAX_SLOTS: usize = 4096;
/// Bytes of a slot's data area, for copies between the program's memory and the machine.
pub const DATA_SIZE: usize = 64 * 4096;
/// Bytes from one slot to the next.
pub const SLOT_STRIDE: usize = 4096;
/// Offset of the first slot.
pub const SLOTS_OFFSET: usize = 4096;
/// Offset of the first data area.
pub const DATA_OFFSET: usize = SLOTS_OFFSET + MAX_SLOTS * SLOT_STRIDE;
/// Bytes of the whole region.
pub const REGION_SIZE: usize = DATA_OFFSET + MAX_SLOTS * DATA_SIZE;

/// First word of the region.
pub const MAGIC: u64 = u64::from_le_bytes(*b"usgxregn");

/// Most entries of [`Header::cpuid`].
pub const MAX_CPUID: usize = 64;

/// What the machine tells every process. Written before the process sees it, never changed after.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`crate::VERSION`].
    pub version: u32,
    /// Entries of `cpuid` in use.
    pub nr_cpuid: u32,
    /// Bits of [`features`].
    pub features: u64,
    /// Size of the EPC in bytes, over all sections.
    pub epc_bytes: u64,
    /// How CPUID differs from the host's.
    pub cpuid: [CpuidEntry; MAX_CPUID],
}

/// Bits of [`Header::features`].
pub mod features {
    /// The processor has SGX2.
    pub const SGX2: u64 = 1 << 0;
    /// RDTSC and RDTSCP are legal inside enclaves.
    pub const RDTSC: u64 = 1 << 1;
}

/// Matches every sub-leaf in [`CpuidEntry::subleaf`].
pub const ANY_SUBLEAF: u32 = u32::MAX;

/// The answer of one CPUID leaf: each register is the host's value `& and | or`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuidEntry {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input, or [`ANY_SUBLEAF`]. The first entry that matches counts.
    pub subleaf: u32,
    /// Masks for EAX, EBX, ECX, EDX.
    pub and: [u32; 4],
    /// Bits to set in EAX, EBX, ECX, EDX.
    pub or: [u32; 4],
}

const _: () = assert!(size_of::<CpuidEntry>() == 40);
const _: () = assert!(size_of::<Header>() <= 4096);
const _: () = assert!(size_of::<Slot>() <= SLOT_STRIDE);
