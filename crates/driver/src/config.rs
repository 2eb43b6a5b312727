//! What the driver is told about the machine when it starts.

use alloc::vec::Vec;

use usgx_epc::SectionConfig;

use crate::behaviour::Behaviour;

/// The EPC, and what CPUID says. The masks are computed as Linux does in driver.c.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The EPC's sections.
    pub sections: Vec<SectionConfig>,
    /// Whether the processor has the SGX2 leaves.
    pub sgx2: bool,
    /// MISCSELECT bits that a SIGSTRUCT may not demand.
    pub misc_reserved: u32,
    /// ATTRIBUTES bits that a SIGSTRUCT may not demand.
    pub attributes_reserved: u64,
    /// XFRM bits that a SIGSTRUCT may not demand.
    pub xfrm_reserved: u64,
    /// Where to go past Linux.
    pub behaviour: Behaviour,
}
