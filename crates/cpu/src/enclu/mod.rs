//! The user leaves that touch the EPCM or keys, and what a thread's entry and exit need of a TCS.
//!
//! The machine runs these for a thread that is inside an enclave; EENTER, ERESUME, EEXIT and the AEX are the
//! thread's own work, but for the checks and stores in [`tcs`].

mod accept;
mod egetkey;
mod ereport;
mod operand;
pub(crate) mod tcs;

use std::sync::Arc;

use usgx_isa::{EpcPage, LinAddr, SgxCode};

use crate::bytes::PageBytes;
use crate::processor::Processor;
use crate::secs::Resident;
use crate::tracking::LogicalProcessors;

pub use tcs::TcsState;

/// The page tables of the thread that runs a user leaf.
pub trait Translate {
    /// The EPC page that is mapped at `addr` now, if the page tables allow the access. `None` is an ordinary
    /// `#PF`: the thread asks the kernel for the page and runs the leaf again.
    fn translate(&self, addr: LinAddr, write: bool) -> Option<EpcPage>;
}

/// How a user leaf can fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EncluError {
    /// `#GP(0)`.
    Gp,
    /// `#PF`.
    PageFault {
        /// What CR2 gets.
        addr: LinAddr,
        /// Whether the access was a write.
        write: bool,
        /// Whether the EPCM refused the access (the error code carries the SGX bit). If not, the page is not
        /// mapped, or on its way out or in, and the leaf can be run again when the kernel has seen to it.
        sgx: bool,
    },
    /// The leaf ran and reported a code in RAX.
    Code(SgxCode),
}

impl From<SgxCode> for EncluError {
    fn from(code: SgxCode) -> Self {
        Self::Code(code)
    }
}

impl<B: PageBytes, L: LogicalProcessors> Processor<B, L> {
    /// Runs EREPORT in the enclave of `secs`: a report for the TARGETINFO at `rbx` with the REPORTDATA at `rcx`,
    /// into `rdx`.
    ///
    /// # Errors
    /// `#GP` or `#PF`.
    pub fn ereport(
        &self,
        secs: EpcPage,
        rbx: LinAddr,
        rcx: LinAddr,
        rdx: LinAddr,
        map: &dyn Translate,
    ) -> Result<(), EncluError> {
        ereport::ereport(self, &*self.running(secs)?, rbx, rcx, rdx, map)
    }

    /// Runs EGETKEY in the enclave of `secs`: the key for the KEYREQUEST at `rbx`, into `rcx`.
    ///
    /// # Errors
    /// `#GP`, `#PF`, or a code of EGETKEY.
    pub fn egetkey(
        &self,
        secs: EpcPage,
        rbx: LinAddr,
        rcx: LinAddr,
        map: &dyn Translate,
    ) -> Result<(), EncluError> {
        egetkey::egetkey(self, &*self.running(secs)?, rbx, rcx, map)
    }

    /// Runs EACCEPT in the enclave of `secs`: accepts the state of the page at `rcx` that the SECINFO at `rbx`
    /// describes.
    ///
    /// # Errors
    /// `#GP`, `#PF`, `SGX_PAGE_ATTRIBUTES_MISMATCH` or `SGX_NOT_TRACKED`.
    pub fn eaccept(
        &self,
        secs: EpcPage,
        rbx: LinAddr,
        rcx: LinAddr,
        map: &dyn Translate,
    ) -> Result<(), EncluError> {
        accept::eaccept(self, &*self.running(secs)?, rbx, rcx, map)
    }

    /// Runs EMODPE in the enclave of `secs`: extends the permissions of the page at `rcx` by those in the SECINFO
    /// at `rbx`.
    ///
    /// # Errors
    /// `#GP` or `#PF`.
    pub fn emodpe(
        &self,
        secs: EpcPage,
        rbx: LinAddr,
        rcx: LinAddr,
        map: &dyn Translate,
    ) -> Result<(), EncluError> {
        accept::emodpe(self, &*self.running(secs)?, rbx, rcx, map)
    }

    /// Runs EACCEPTCOPY in the enclave of `secs`: accepts the pending page at `rcx` with the permissions in the
    /// SECINFO at `rbx` and the contents of the page at `rdx`.
    ///
    /// # Errors
    /// `#GP`, `#PF` or `SGX_PAGE_ATTRIBUTES_MISMATCH`.
    pub fn eacceptcopy(
        &self,
        secs: EpcPage,
        rbx: LinAddr,
        rcx: LinAddr,
        rdx: LinAddr,
        map: &dyn Translate,
    ) -> Result<(), EncluError> {
        accept::eacceptcopy(self, &*self.running(secs)?, rbx, rcx, rdx, map)
    }

    /// The enclave that a thread claims to be in: there must be one, and threads run in initialised ones only.
    fn running(&self, secs: EpcPage) -> Result<Arc<Resident>, EncluError> {
        self.resident(secs).filter(|enclave| enclave.is_initialised()).ok_or(EncluError::Gp)
    }
}

/// `#GP`, unless `addr` is aligned to `align` and in ELRANGE.
fn check_address(enclave: &Resident, addr: LinAddr, align: u64) -> Result<(), EncluError> {
    if addr.0.is_multiple_of(align) && enclave.contains(addr) { Ok(()) } else { Err(EncluError::Gp) }
}
