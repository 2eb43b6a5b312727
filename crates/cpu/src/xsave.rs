//! The XSAVE layout of the processor: which state components it has and where they lie.
//!
//! Code inside an enclave runs on the host, so the host's layout decides the size of SSA frames and which XFRM
//! values are legal. Used by ECREATE through `Profile`. Source: SDM volume 1, "Managing State Using the XSAVE
//! Feature Set", and volume 3D, "SECS.ATTRIBUTES.XFRM".

/// Components beyond x87 and SSE that SGX software can name: numbers 2 to 18.
const FIRST: usize = 2;
const LAST: usize = 18;
/// Legacy region and XSAVE header.
const LEGACY_SIZE: u32 = 576;

const X87_SSE: u64 = 0x3;
const AVX: u64 = 1 << 2;
const MPX: u64 = 0x18;
const AVX512: u64 = 0xe0;
const AMX: u64 = 0x6_0000;

/// Where a state component lies in a standard-format XSAVE area.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct XsaveComponent {
    /// Bytes from the start of the area.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

/// The state components that a processor supports, and where they lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct XsaveLayout {
    supported: u64,
    components: [XsaveComponent; LAST - FIRST + 1],
}

impl XsaveLayout {
    /// Reads the layout from CPUID leaf 0DH. `cpuid(leaf, subleaf)` returns EAX, EBX, ECX and EDX.
    pub fn from_cpuid(mut cpuid: impl FnMut(u32, u32) -> [u32; 4]) -> Self {
        const LEAF: u32 = 0xd;
        let [low, _, _, high] = cpuid(LEAF, 0);
        let known = (1 << (LAST + 1)) - 1;
        let supported = (u64::from(high) << 32 | u64::from(low)) & known | X87_SSE;
        let mut components = [XsaveComponent::default(); LAST - FIRST + 1];
        for (subleaf, component) in (FIRST as u32..).zip(&mut components) {
            if supported & 1 << subleaf != 0 {
                let [size, offset, _, _] = cpuid(LEAF, subleaf);
                *component = XsaveComponent { offset, size };
            }
        }
        Self { supported, components }
    }

    /// The usual placement on Intel server parts, up to AMX: for simulations that run no enclave code.
    #[must_use]
    pub fn typical() -> Self {
        Self::from_cpuid(|_, subleaf| {
            let [offset, size] = match subleaf {
                0 => return [0x6_02ff, 0, 0, 0],
                2 => [576, 256],
                3 => [960, 64],
                4 => [1024, 64],
                5 => [1088, 64],
                6 => [1152, 512],
                7 => [1664, 1024],
                9 => [2688, 8],
                17 => [2752, 64],
                18 => [2816, 8192],
                _ => [0, 0],
            };
            [size, offset, 0, 0]
        })
    }

    /// The components that the processor supports, in the layout of XCR0.
    #[must_use]
    pub const fn supported(&self) -> u64 {
        self.supported
    }

    /// Bytes of the XSAVE area with the components `xfrm`: what CPUID.(0DH,0):EBX is with XCR0 = `xfrm`.
    #[must_use]
    pub fn area_size(&self, xfrm: u64) -> u32 {
        let present = (FIRST..).zip(&self.components).filter(|(number, _)| xfrm & 1 << number != 0);
        let end = present.max_by_key(|(_, component)| component.offset);
        // Saturating, as CPUID of an odd host must not bring the machine down.
        end.map_or(LEGACY_SIZE, |(_, component)| {
            component.offset.saturating_add(component.size).max(LEGACY_SIZE)
        })
    }

    /// Whether XSETBV would accept `xfrm` on this processor, and an enclave may ask for it.
    #[must_use]
    pub const fn is_legal(&self, xfrm: u64) -> bool {
        xfrm & X87_SSE == X87_SSE
            && xfrm & !self.supported == 0
            && Self::whole(xfrm, MPX)
            && Self::whole(xfrm, AVX512)
            && Self::whole(xfrm, AMX)
            && (xfrm & AVX512 == 0 || xfrm & AVX != 0)
    }

    const fn whole(xfrm: u64, group: u64) -> bool {
        xfrm & group == 0 || xfrm & group == group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn area_size_is_the_end_of_the_furthest_component() {
        let layout = XsaveLayout::typical();
        for (xfrm, size) in
            [(0x3, 576), (0x7, 832), (0x1f, 1088), (0xe7, 2688), (0x2e7, 2696), (0x6_0003, 11008)]
        {
            assert_eq!(layout.area_size(xfrm), size, "XFRM {xfrm:#x}");
        }
    }

    #[test]
    fn legal_values_are_those_of_xsetbv() {
        let layout = XsaveLayout::typical();
        for legal in [0x3, 0x7, 0x1f, 0xe7, 0x2e7, 0x203, 0x6_02e7] {
            assert!(layout.is_legal(legal), "{legal:#x}");
        }
        for illegal in [0, 0x1, 0x2, 0x5, 0xb, 0x13, 0xe3, 0x27, 0xa7, 0x2_0003, 0x4_0003, 0x103, 1 << 63 | 3]
        {
            assert!(!layout.is_legal(illegal), "{illegal:#x}");
        }
    }
}
