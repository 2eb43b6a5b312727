//! The supervisor leaves of SGX, as a trait.
//!
//! Implemented by the software processor (`usgx-cpu`) and, for kernels and guests, by the instruction itself.
//! Called by the driver and by the reclaimer. Operands that a register or PAGEINFO would point to are
//! references to types of the right size and alignment, so alignment faults cannot happen here; a number
//! that names an EPC page may be any, and the processor checks it.

use crate::layout::{Einittoken, Pcmd, Secinfo, Sigstruct};
use crate::{EpcPage, Fault, LeafError, LinAddr, Page, VaSlot};

/// What EWB leaves in ordinary memory and ELDU takes back: the ciphertext and its PCMD.
#[derive(Clone, Debug, Default)]
pub struct EvictedPage {
    /// The page's contents, encrypted.
    pub contents: Page,
    /// Attributes, owner and MAC.
    pub pcmd: Pcmd,
}

/// The supervisor leaves (`ENCLS`).
///
/// Every method is one leaf; the one that has a body here is what it says. A leaf that fails has changed no architectural state, but for the codes whose
/// documentation says that the work is done. Conflicts between concurrent leaves are reported, never waited
/// for, as on hardware. Source: SDM volume 3D, "SGX Instruction References".
pub trait Encls: Send + Sync {
    /// Runs ECREATE: makes `target` an SECS with the contents `secs`.
    ///
    /// # Errors
    /// A fault, if an operand breaks a rule of ECREATE.
    fn ecreate(&self, target: EpcPage, secs: &Page, secinfo: &Secinfo) -> Result<(), Fault>;

    /// Runs EADD: copies `contents` into `target` and adds it to the enclave of `secs` at `linaddr`.
    ///
    /// # Errors
    /// A fault, if an operand breaks a rule of EADD.
    fn eadd(
        &self,
        target: EpcPage,
        secs: EpcPage,
        linaddr: LinAddr,
        contents: &Page,
        secinfo: &Secinfo,
    ) -> Result<(), Fault>;

    /// Runs EEXTEND: measures the 256 bytes of `target` at `offset` (a multiple of 256 below 4096).
    ///
    /// # Errors
    /// A fault, if an operand breaks a rule of EEXTEND.
    fn eextend(&self, secs: EpcPage, target: EpcPage, offset: u16) -> Result<(), Fault>;

    /// Runs EEXTEND on all of `target`, chunk by chunk. A processor that is a program may do that faster.
    ///
    /// # Errors
    /// The first fault; the chunks before it are measured.
    fn eextend_page(&self, secs: EpcPage, target: EpcPage) -> Result<(), Fault> {
        (0..4096).step_by(256).try_for_each(|offset| self.eextend(secs, target, offset))
    }

    /// Runs EINIT with `IA32_SGXLEPUBKEYHASH0..3` holding `launch_hash`.
    ///
    /// The MSRs are an operand here because every kernel rewrites them, with preemption off, right before
    /// each EINIT.
    ///
    /// # Errors
    /// A fault or a code of EINIT.
    fn einit(
        &self,
        secs: EpcPage,
        sigstruct: &Sigstruct,
        token: &Einittoken,
        launch_hash: [u64; 4],
    ) -> Result<(), LeafError>;

    /// Runs EREMOVE: frees `page`; a page that is free already is no error.
    ///
    /// # Errors
    /// A fault, `SGX_CHILD_PRESENT` or `SGX_ENCLAVE_ACT`.
    fn eremove(&self, page: EpcPage) -> Result<(), LeafError>;

    /// Runs EDBGRD: reads eight bytes of a debug enclave's page at `offset` (a multiple of 8 below 4096).
    ///
    /// # Errors
    /// A fault or `SGX_PAGE_NOT_DEBUGGABLE`.
    fn edbgrd(&self, page: EpcPage, offset: u16) -> Result<u64, LeafError>;

    /// Runs EDBGWR: writes eight bytes of a debug enclave's page at `offset` (a multiple of 8 below 4096).
    ///
    /// # Errors
    /// A fault or `SGX_PAGE_NOT_DEBUGGABLE`.
    fn edbgwr(&self, page: EpcPage, offset: u16, value: u64) -> Result<(), LeafError>;

    /// Runs EPA: makes `page` an empty version array page.
    ///
    /// # Errors
    /// A fault, if the page is in use.
    fn epa(&self, page: EpcPage) -> Result<(), Fault>;

    /// Runs EBLOCK: no new translation to `page` can be made.
    ///
    /// # Errors
    /// A fault; or a code, those reported with CF included.
    fn eblock(&self, page: EpcPage) -> Result<(), LeafError>;

    /// Runs ETRACK: starts a new tracking cycle of the enclave of `secs`.
    ///
    /// # Errors
    /// A fault, or `SGX_PREV_TRK_INCMPL`.
    fn etrack(&self, secs: EpcPage) -> Result<(), LeafError>;

    /// Runs EWB: encrypts `page` into `out`, puts its version into `slot`, frees it, and returns the linear
    /// address of the page (0 for SECS and VA pages).
    ///
    /// # Errors
    /// A fault or a code. After `SGX_VA_SLOT_OCCUPIED` the eviction is done.
    fn ewb(&self, page: EpcPage, slot: VaSlot, out: &mut EvictedPage) -> Result<LinAddr, LeafError>;

    /// Runs ELDU: decrypts `evicted` into `target`, unblocked, and empties `slot`. `secs` is the owner of a
    /// child page, and `None` (with `linaddr` 0) for SECS and VA pages.
    ///
    /// # Errors
    /// A fault, or `SGX_MAC_COMPARE_FAIL`, after which `target` is still free and `slot` keeps its value.
    fn eldu(
        &self,
        target: EpcPage,
        slot: VaSlot,
        linaddr: LinAddr,
        secs: Option<EpcPage>,
        evicted: &EvictedPage,
    ) -> Result<(), LeafError>;

    /// Runs ELDB: as [`eldu`](Self::eldu), and a child page is left blocked.
    ///
    /// # Errors
    /// As [`eldu`](Self::eldu).
    fn eldb(
        &self,
        target: EpcPage,
        slot: VaSlot,
        linaddr: LinAddr,
        secs: Option<EpcPage>,
        evicted: &EvictedPage,
    ) -> Result<(), LeafError>;

    /// Runs EAUG: adds a zeroed, pending page to the initialised enclave of `secs` at `linaddr`.
    ///
    /// # Errors
    /// A fault, if an operand breaks a rule of EAUG.
    fn eaug(&self, target: EpcPage, secs: EpcPage, linaddr: LinAddr) -> Result<(), Fault>;

    /// Runs EMODPR: restricts the EPCM permissions of `page` to those of `secinfo`.
    ///
    /// # Errors
    /// A fault, `SGX_EPC_PAGE_CONFLICT` or `SGX_PAGE_NOT_MODIFIABLE`.
    fn emodpr(&self, page: EpcPage, secinfo: &Secinfo) -> Result<(), LeafError>;

    /// Runs EMODT: changes the type of `page` to that of `secinfo` (TCS or TRIM).
    ///
    /// # Errors
    /// A fault, `SGX_EPC_PAGE_CONFLICT` or `SGX_PAGE_NOT_MODIFIABLE`.
    fn emodt(&self, page: EpcPage, secinfo: &Secinfo) -> Result<(), LeafError>;
}
