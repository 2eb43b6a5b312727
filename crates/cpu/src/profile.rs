//! Which processor the model is: its enumeration.
//!
//! A profile is chosen by name when the machine starts. It decides which leaves and attributes exist and what
//! CPUID shows to programs. Used by the leaves and, through [`Profile::cpuid`], by the runtime that answers
//! trapped CPUID instructions. Source: SDM volume 2A, "CPUID", and volume 3D, "Enumeration of SGX".

use usgx_isa::layout::ATTRIBUTE_AEXNOTIFY;

use crate::xsave::XsaveLayout;

/// ATTRIBUTES.KSS.
pub(crate) const ATTRIBUTE_KSS: u64 = 1 << 7;
/// 12H.0 EAX: SGX2 leaves.
const SGX2: u32 = 1 << 1;
/// 12H.0 EAX: EDECCSSA.
const EDECCSSA: u32 = 1 << 11;
/// CPUID.(07H,0).EBX: SGX.
const LEAF7_EBX_SGX: u32 = 1 << 2;
/// CPUID.(07H,0).ECX: launch configuration.
const LEAF7_ECX_SGX_LC: u32 = 1 << 30;
/// CPUID.(07H,0).EDX: attestation services (SGX_KEYS), which no profile has.
const LEAF7_EDX_SGX_KEYS: u32 = 1 << 1;
/// The SGX leaf.
const SGX_LEAF: u32 = 0x12;
/// Where programs are told that the EPC is, in physical memory. Nothing is there; any page-aligned value does. Section
/// follows on section there.
const EPC_BASE: u64 = 0x10_0000_0000;

/// A kind of processor.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    name: &'static str,
    description: &'static str,
    /// 12H.0 EAX: families of leaves.
    leaves: u32,
    /// 12H.0 EBX: MISCSELECT bits.
    miscselect: u32,
    /// 12H.0 EDX: log2 bounds of SIZE, 32-bit in bits 7:0, 64-bit in 15:8.
    size_bounds: u32,
    /// 12H.1 EBX:EAX: ATTRIBUTES bits that may be 1.
    attributes: u64,
    /// 12H.1 EDX:ECX: XFRM bits that may be 1, before the host's word.
    xfrm: u64,
    /// 12H.2 ECX 3:0: how the EPC is protected.
    protection: u32,
    xsave: Option<XsaveLayout>,
}

/// The default.
const ICE_LAKE_SP: Profile = Profile {
    name: "ice-lake-sp",
    description: "SGX2 server with key separation and sharing",
    // SGX1, SGX2 and, as on the real part, EUPDATESVN, which no kernel of ours executes.
    leaves: 0x403,
    miscselect: 1,
    size_bounds: 0x381f,
    attributes: 0xb6,
    xfrm: 0x2e7,
    protection: 2,
    xsave: None,
};

/// In the order in which they are listed to users. None has CET: no program in user space can give an enclave a
/// shadow stack.
const PROFILES: [Profile; 4] = [
    Profile {
        name: "coffee-lake",
        description: "SGX1 client with flexible launch control",
        leaves: 0x1,
        miscselect: 0,
        size_bounds: 0x241f,
        attributes: 0x36,
        xfrm: 0x1f,
        protection: 1,
        xsave: None,
    },
    Profile {
        name: "tiger-lake",
        description: "SGX2 client with key separation and sharing",
        leaves: 0x3,
        miscselect: 1,
        size_bounds: 0x241f,
        attributes: 0xb6,
        xfrm: 0x2e7,
        protection: 1,
        xsave: None,
    },
    ICE_LAKE_SP,
    Profile {
        name: "sapphire-rapids",
        description: "SGX2 server with AEX-Notify",
        // As ICE_LAKE_SP, and EDECCSSA; as the real part is with the microcode that brought AEX-Notify.
        leaves: ICE_LAKE_SP.leaves | EDECCSSA,
        attributes: ICE_LAKE_SP.attributes | ATTRIBUTE_AEXNOTIFY,
        // And AMX.
        xfrm: 0x6_02e7,
        // Of confidentiality and integrity, without protection against replay.
        protection: 3,
        ..ICE_LAKE_SP
    },
];

impl Default for Profile {
    fn default() -> Self {
        ICE_LAKE_SP
    }
}

impl Profile {
    /// All profiles, with a typical XSAVE layout.
    pub fn all() -> impl Iterator<Item = Self> {
        PROFILES.into_iter()
    }

    /// The profile called `name`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::all().find(|profile| profile.name == name)
    }

    /// This profile on a host whose XSAVE areas have the layout `xsave`.
    #[must_use]
    pub fn with_xsave(self, xsave: XsaveLayout) -> Self {
        Self { xsave: Some(xsave), ..self }
    }

    /// What users call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// One line for users.
    #[must_use]
    pub const fn description(&self) -> &'static str {
        self.description
    }

    /// Whether the SGX2 leaves exist.
    #[must_use]
    pub const fn has_sgx2(&self) -> bool {
        self.leaves & SGX2 != 0
    }

    /// Whether enclaves may have ATTRIBUTES.KSS.
    #[must_use]
    pub const fn has_kss(&self) -> bool {
        self.attributes & ATTRIBUTE_KSS != 0
    }

    /// Whether threads may ask for AEX notifications.
    #[must_use]
    pub const fn has_aex_notify(&self) -> bool {
        self.attributes & ATTRIBUTE_AEXNOTIFY != 0
    }

    /// Whether RDTSC and RDTSCP may be executed inside an enclave; SGX1 parts raise `#UD`.
    #[must_use]
    pub const fn rdtsc_in_enclaves(&self) -> bool {
        self.has_sgx2()
    }

    /// The bits of MISCSELECT that enclaves may set.
    #[must_use]
    pub const fn miscselect(&self) -> u32 {
        self.miscselect
    }

    /// The bits of ATTRIBUTES (without XFRM) that enclaves may set.
    #[must_use]
    pub const fn attributes(&self) -> u64 {
        self.attributes
    }

    /// The bits of XFRM that enclaves may set: those of the profile that the host has too.
    #[must_use]
    pub fn xfrm(&self) -> u64 {
        self.xfrm & self.xsave().supported()
    }

    /// The bound of SIZE, exclusive, for enclaves of 64 or of 32 bits.
    #[must_use]
    pub const fn size_bound(&self, mode64: bool) -> u64 {
        1 << (if mode64 { self.size_bounds >> 8 } else { self.size_bounds } & 0xff)
    }

    /// The layout of XSAVE areas.
    #[must_use]
    pub fn xsave(&self) -> XsaveLayout {
        self.xsave.unwrap_or_else(XsaveLayout::typical)
    }

    /// What CPUID shows in place of the host's values for this leaf, on a machine with EPC `sections` of these sizes in
    /// bytes; `None` if the host's values are right.
    #[must_use]
    pub fn cpuid(&self, sections: &[u64], leaf: u32, subleaf: u32) -> Option<CpuidOverride> {
        let vendor = |name: &[u8; 4]| u32::from_le_bytes(*name);
        match (leaf, subleaf) {
            (0, _) => Some(CpuidOverride {
                and: [u32::MAX, 0, 0, 0],
                or: [0, vendor(b"Genu"), vendor(b"ntel"), vendor(b"ineI")],
                min_eax: SGX_LEAF,
            }),
            (7, 0) => Some(CpuidOverride {
                and: [u32::MAX, u32::MAX, u32::MAX, !LEAF7_EDX_SGX_KEYS],
                or: [0, LEAF7_EBX_SGX, LEAF7_ECX_SGX_LC, 0],
                min_eax: 0,
            }),
            (SGX_LEAF, 0) => {
                Some(CpuidOverride::replace([self.leaves, self.miscselect, 0, self.size_bounds]))
            }
            (SGX_LEAF, 1) => {
                let [attributes, xfrm] = [self.attributes, self.xfrm()];
                Some(CpuidOverride::replace([
                    attributes as u32,
                    (attributes >> 32) as u32,
                    xfrm as u32,
                    (xfrm >> 32) as u32,
                ]))
            }
            (SGX_LEAF, _)
                if (subleaf as usize).checked_sub(2).is_some_and(|index| index < sections.len()) =>
            {
                const SECTION: u32 = 1;
                let index = subleaf as usize - 2;
                let (base, size) = (EPC_BASE + sections[..index].iter().sum::<u64>(), sections[index]);
                let low = |value: u64| value as u32 & 0xffff_f000;
                let high = |value: u64| (value >> 32) as u32 & 0xf_ffff;
                Some(CpuidOverride::replace([
                    low(base) | SECTION,
                    high(base),
                    low(size) | self.protection,
                    high(size),
                ]))
            }
            (SGX_LEAF, _) => Some(CpuidOverride::replace([0; 4])),
            _ => None,
        }
    }
}

/// How to make a CPUID leaf of the profile out of the host's: registers in the order EAX, EBX, ECX, EDX.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CpuidOverride {
    /// Bits of the host's registers that stay.
    pub and: [u32; 4],
    /// Bits that are set then.
    pub or: [u32; 4],
    /// The least value of EAX then: the highest leaf must not be below the SGX leaf.
    pub min_eax: u32,
}

impl CpuidOverride {
    const fn replace(registers: [u32; 4]) -> Self {
        Self { and: [0; 4], or: registers, min_eax: 0 }
    }

    /// The registers that the program sees, on a host with the registers `host`.
    #[must_use]
    pub fn apply(&self, host: [u32; 4]) -> [u32; 4] {
        let mut seen: [u32; 4] = std::array::from_fn(|i| host[i] & self.and[i] | self.or[i]);
        seen[0] = seen[0].max(self.min_eax);
        seen
    }
}
