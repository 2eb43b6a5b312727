//! The supervisor leaves, one file for each family, and the [`Encls`] trait over them.
//!
//! Each leaf makes its checks in the order of the SDM's flow; the first one that fails decides the outcome.
//! Checks of alignment are absent where the type of the operand makes a violation impossible.

mod build;
mod debug;
mod evict;
mod init;
mod remove;
mod sgx2;

use usgx_isa::layout::{Einittoken, Secinfo, Sigstruct};
use usgx_isa::{Encls, EpcPage, EvictedPage, Fault, LeafError, LinAddr, Page, VaSlot};

use crate::bytes::PageBytes;
use crate::processor::Processor;
use crate::tracking::LogicalProcessors;

impl<B: PageBytes, L: LogicalProcessors> Encls for Processor<B, L> {
    fn ecreate(&self, target: EpcPage, secs: &Page, secinfo: &Secinfo) -> Result<(), Fault> {
        build::ecreate(self, target, secs, secinfo)
    }

    fn eadd(
        &self,
        target: EpcPage,
        secs: EpcPage,
        linaddr: LinAddr,
        contents: &Page,
        secinfo: &Secinfo,
    ) -> Result<(), Fault> {
        build::eadd(self, target, secs, linaddr, contents, secinfo)
    }

    fn eextend(&self, secs: EpcPage, target: EpcPage, offset: u16) -> Result<(), Fault> {
        build::eextend(self, secs, target, offset)
    }

    fn eextend_page(&self, secs: EpcPage, target: EpcPage) -> Result<(), Fault> {
        build::eextend_page(self, secs, target)
    }

    fn einit(
        &self,
        secs: EpcPage,
        sigstruct: &Sigstruct,
        token: &Einittoken,
        launch_hash: [u64; 4],
    ) -> Result<(), LeafError> {
        init::einit(self, secs, sigstruct, token, launch_hash)
    }

    fn eremove(&self, page: EpcPage) -> Result<(), LeafError> {
        remove::eremove(self, page)
    }

    fn edbgrd(&self, page: EpcPage, offset: u16) -> Result<u64, LeafError> {
        debug::edbgrd(self, page, offset)
    }

    fn edbgwr(&self, page: EpcPage, offset: u16, value: u64) -> Result<(), LeafError> {
        debug::edbgwr(self, page, offset, value)
    }

    fn epa(&self, page: EpcPage) -> Result<(), Fault> {
        evict::epa(self, page)
    }

    fn eblock(&self, page: EpcPage) -> Result<(), LeafError> {
        evict::eblock(self, page)
    }

    fn etrack(&self, secs: EpcPage) -> Result<(), LeafError> {
        evict::etrack(self, secs)
    }

    fn ewb(&self, page: EpcPage, slot: VaSlot, out: &mut EvictedPage) -> Result<LinAddr, LeafError> {
        evict::ewb(self, page, slot, out)
    }

    fn eldu(
        &self,
        target: EpcPage,
        slot: VaSlot,
        linaddr: LinAddr,
        secs: Option<EpcPage>,
        evicted: &EvictedPage,
    ) -> Result<(), LeafError> {
        evict::eld(self, target, slot, linaddr, secs, evicted, 0)
    }

    fn eldb(
        &self,
        target: EpcPage,
        slot: VaSlot,
        linaddr: LinAddr,
        secs: Option<EpcPage>,
        evicted: &EvictedPage,
    ) -> Result<(), LeafError> {
        evict::eld(self, target, slot, linaddr, secs, evicted, crate::epcm::BLOCKED)
    }

    fn eaug(&self, target: EpcPage, secs: EpcPage, linaddr: LinAddr) -> Result<(), Fault> {
        sgx2::eaug(self, target, secs, linaddr)
    }

    fn emodpr(&self, page: EpcPage, secinfo: &Secinfo) -> Result<(), LeafError> {
        sgx2::emodpr(self, page, secinfo)
    }

    fn emodt(&self, page: EpcPage, secinfo: &Secinfo) -> Result<(), LeafError> {
        sgx2::emodt(self, page, secinfo)
    }
}
