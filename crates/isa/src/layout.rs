//! Layouts of the architecture's structures.
//!
//! The types are those of the [`sgx_isa`] crate. Fields that newer processors carve out of reserved areas
//! are given here as byte offsets and constants, each with its name from the SDM.

pub use sgx_isa::{
    Attributes, AttributesFlags, Einittoken, Keyname, Keypolicy, Keyrequest, Miscselect, PageType, Pcmd,
    Report, Secinfo, SecinfoFlags, Secs, Sigstruct, Targetinfo, Tcs, TcsFlags,
};
pub use sgx_isa::{MEAS_EADD, MEAS_ECREATE, MEAS_EEXTEND, SIGSTRUCT_HEADER1, SIGSTRUCT_HEADER2};

/// ATTRIBUTES.AEXNOTIFY: threads may receive AEX notifications.
pub const ATTRIBUTE_AEXNOTIFY: u64 = 1 << 10;

/// Byte offsets of SECS fields that [`Secs`] keeps inside reserved areas or padding.
pub mod secs {
    /// CET_LEG_BITMAP_OFFSET, 8 bytes.
    pub const CET_LEG_BITMAP_OFFSET: usize = 24;
    /// CET_ATTRIBUTES, 1 byte.
    pub const CET_ATTRIBUTES: usize = 32;
    /// CONFIGID, 64 bytes (KSS).
    pub const CONFIGID: usize = 192;
    /// ISVPRODID, 2 bytes.
    pub const ISVPRODID: usize = 256;
    /// ISVSVN, 2 bytes.
    pub const ISVSVN: usize = 258;
    /// CONFIGSVN, 2 bytes (KSS).
    pub const CONFIGSVN: usize = 260;
    /// First byte of the reserved area in which the processor keeps its hidden state.
    pub const RESERVED: usize = 262;
}

/// Byte offsets within the general register area of an SSA frame (GPRSGX), its last 184 bytes.
pub mod gprsgx {
    /// Size of GPRSGX in bytes.
    pub const SIZE: usize = 184;
    /// RAX; the 15 others follow in the order RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub const RAX: usize = 0;
    /// RFLAGS.
    pub const RFLAGS: usize = 128;
    /// RIP.
    pub const RIP: usize = 136;
    /// RSP of the program outside, stored by EENTER.
    pub const URSP: usize = 144;
    /// RBP of the program outside, stored by EENTER.
    pub const URBP: usize = 152;
    /// EXITINFO, 4 bytes: vector 7:0, type 10:8, valid 31.
    pub const EXITINFO: usize = 160;
    /// AEXNOTIFY, 1 byte.
    pub const AEXNOTIFY: usize = 167;
    /// FS base.
    pub const FSBASE: usize = 168;
    /// GS base.
    pub const GSBASE: usize = 176;
}

/// Bits of the page-fault error code.
pub mod pf {
    /// The page was present.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made in user mode.
    pub const USER: u32 = 1 << 2;
    /// The access was an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
    /// The EPCM refused the access.
    pub const SGX: u32 = 1 << 15;
}

/// ENCLU leaf numbers (EAX). Source: SDM volume 3D, table "Register Usage of Unprivileged Leaf Functions".
pub mod enclu {
    /// EREPORT.
    pub const EREPORT: u32 = 0;
    /// EGETKEY.
    pub const EGETKEY: u32 = 1;
    /// EENTER.
    pub const EENTER: u32 = 2;
    /// ERESUME.
    pub const ERESUME: u32 = 3;
    /// EEXIT.
    pub const EEXIT: u32 = 4;
    /// EACCEPT.
    pub const EACCEPT: u32 = 5;
    /// EMODPE.
    pub const EMODPE: u32 = 6;
    /// EACCEPTCOPY.
    pub const EACCEPTCOPY: u32 = 7;
    /// EVERIFYREPORT2.
    pub const EVERIFYREPORT2: u32 = 8;
    /// EDECCSSA.
    pub const EDECCSSA: u32 = 9;
}
