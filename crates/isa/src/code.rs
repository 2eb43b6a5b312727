//! How a leaf can fail: a fault, or an error code in RAX.

/// An exception vector that SGX leaves raise.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Vector {
    /// `#UD`, invalid opcode.
    Ud = 6,
    /// `#GP(0)`, general protection.
    Gp = 13,
    /// `#PF`, page fault.
    Pf = 14,
}

/// An exception raised by a leaf. The leaf changed no architectural state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// `#UD`.
    Ud,
    /// `#GP(0)`.
    Gp,
    /// `#PF` that the EPCM caused (the error code carries the SGX bit), on the operand named.
    Pf(Operand),
}

impl Fault {
    /// The exception's vector.
    #[must_use]
    pub const fn vector(self) -> Vector {
        match self {
            Self::Ud => Vector::Ud,
            Self::Gp => Vector::Gp,
            Self::Pf(_) => Vector::Pf,
        }
    }
}

/// The operand whose linear address a `#PF` of a supervisor leaf reports in CR2.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operand {
    /// The page in RCX: the leaf's target or source page.
    Target,
    /// The SECS: in PAGEINFO.SECS, or in RBX for EEXTEND.
    Secs,
    /// The version array slot in RDX.
    VaSlot,
}

/// A reason why a leaf did not complete.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LeafError {
    /// The leaf raised an exception: whoever ran it broke an architectural rule.
    Fault(Fault),
    /// The leaf ran and reported a code in RAX, such as `SGX_NOT_TRACKED`.
    Code(SgxCode),
}

impl From<Fault> for LeafError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<SgxCode> for LeafError {
    fn from(code: SgxCode) -> Self {
        Self::Code(code)
    }
}

/// Declares [`SgxCode`] and the look-up by number from one list.
macro_rules! sgx_codes {
    ($($(#[doc = $doc:expr])* $name:ident = $value:expr,)*) => {
        /// An error code that a leaf returns in RAX. Source: SDM volume 3D, table "Error or Information
        /// Codes for Intel SGX Instructions".
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u32)]
        pub enum SgxCode {
            $($(#[doc = $doc])* $name = $value,)*
        }

        impl SgxCode {
            /// The code with the number `value`, if the architecture has one.
            #[must_use]
            pub const fn from_u32(value: u32) -> Option<Self> {
                match value {
                    $($value => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

sgx_codes! {
    /// `SGX_INVALID_SIG_STRUCT`
    InvalidSigStruct = 1,
    /// `SGX_INVALID_ATTRIBUTE`
    InvalidAttribute = 2,
    /// `SGX_BLKSTATE` (reported with CF)
    Blkstate = 3,
    /// `SGX_INVALID_MEASUREMENT`
    InvalidMeasurement = 4,
    /// `SGX_NOTBLOCKABLE` (reported with CF)
    NotBlockable = 5,
    /// `SGX_PG_INVLD`
    PgInvld = 6,
    /// `SGX_EPC_PAGE_CONFLICT`
    EpcPageConflict = 7,
    /// `SGX_INVALID_SIGNATURE`
    InvalidSignature = 8,
    /// `SGX_MAC_COMPARE_FAIL`
    MacCompareFail = 9,
    /// `SGX_PAGE_NOT_BLOCKED`
    PageNotBlocked = 10,
    /// `SGX_NOT_TRACKED`
    NotTracked = 11,
    /// `SGX_VA_SLOT_OCCUPIED` (reported with CF; the eviction is done)
    VaSlotOccupied = 12,
    /// `SGX_CHILD_PRESENT`
    ChildPresent = 13,
    /// `SGX_ENCLAVE_ACT`
    EnclaveAct = 14,
    /// `SGX_ENTRYEPOCH_LOCKED`
    EntryEpochLocked = 15,
    /// `SGX_INVALID_EINITTOKEN`
    InvalidEinitToken = 16,
    /// `SGX_PREV_TRK_INCMPL`
    PrevTrkIncmpl = 17,
    /// `SGX_PG_IS_SECS` (reported with CF)
    PgIsSecs = 18,
    /// `SGX_PAGE_ATTRIBUTES_MISMATCH`
    PageAttributesMismatch = 19,
    /// `SGX_PAGE_NOT_MODIFIABLE`
    PageNotModifiable = 20,
    /// `SGX_PAGE_NOT_DEBUGGABLE`
    PageNotDebuggable = 21,
    /// `SGX_INVALID_COUNTER`
    InvalidCounter = 25,
    /// `SGX_PG_NONEPC` (reported with CF)
    PgNonEpc = 26,
    /// `SGX_TRACK_NOT_REQUIRED` (reported with CF)
    TrackNotRequired = 27,
    /// `SGX_INVALID_REPORTMACSTRUCT`
    InvalidReportMacStruct = 28,
    /// `SGX_INSUFFICIENT_ENTROPY`
    InsufficientEntropy = 29,
    /// `SGX_EPC_NOT_READY`
    EpcNotReady = 30,
    /// `SGX_NO_UPDATE`
    NoUpdate = 31,
    /// `SGX_INVALID_CPUSVN`
    InvalidCpusvn = 32,
    /// `SGX_INVALID_ISVSVN`
    InvalidIsvsvn = 64,
    /// `SGX_UNMASKED_EVENT`
    UnmaskedEvent = 128,
    /// `SGX_INVALID_KEYNAME`
    InvalidKeyname = 256,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers agree with those of the `sgx-isa` crate, wherever it has the code too.
    #[test]
    fn codes_agree_with_sgx_isa() {
        for value in 1..=256 {
            if let Ok(theirs) = sgx_isa::ErrorCode::try_from(value) {
                let ours = SgxCode::from_u32(value).expect("sgx-isa knows a code that we do not");
                assert_eq!(ours as u32, theirs as u32);
            }
        }
    }
}
