//! A processor that agrees to everything and does nothing.

use usgx_isa::layout::{Einittoken, Secinfo, Sigstruct};
use usgx_isa::{Encls, EpcPage, EvictedPage, Fault, LeafError, LinAddr, Page, VaSlot};

/// Every leaf succeeds.
pub(super) struct IdleProcessor;

impl Encls for IdleProcessor {
    fn ecreate(&self, _: EpcPage, _: &Page, _: &Secinfo) -> Result<(), Fault> {
        Ok(())
    }

    fn eadd(&self, _: EpcPage, _: EpcPage, _: LinAddr, _: &Page, _: &Secinfo) -> Result<(), Fault> {
        Ok(())
    }

    fn eextend(&self, _: EpcPage, _: EpcPage, _: u16) -> Result<(), Fault> {
        Ok(())
    }

    fn einit(&self, _: EpcPage, _: &Sigstruct, _: &Einittoken, _: [u64; 4]) -> Result<(), LeafError> {
        Ok(())
    }

    fn eremove(&self, _: EpcPage) -> Result<(), LeafError> {
        Ok(())
    }

    fn edbgrd(&self, _: EpcPage, _: u16) -> Result<u64, LeafError> {
        Ok(0)
    }

    fn edbgwr(&self, _: EpcPage, _: u16, _: u64) -> Result<(), LeafError> {
        Ok(())
    }

    fn epa(&self, _: EpcPage) -> Result<(), Fault> {
        Ok(())
    }

    fn eblock(&self, _: EpcPage) -> Result<(), LeafError> {
        Ok(())
    }

    fn etrack(&self, _: EpcPage) -> Result<(), LeafError> {
        Ok(())
    }

    fn ewb(&self, _: EpcPage, _: VaSlot, _: &mut EvictedPage) -> Result<LinAddr, LeafError> {
        Ok(LinAddr(0))
    }

    fn eldu(
        &self,
        _: EpcPage,
        _: VaSlot,
        _: LinAddr,
        _: Option<EpcPage>,
        _: &EvictedPage,
    ) -> Result<(), LeafError> {
        Ok(())
    }

    fn eldb(
        &self,
        _: EpcPage,
        _: VaSlot,
        _: LinAddr,
        _: Option<EpcPage>,
        _: &EvictedPage,
    ) -> Result<(), LeafError> {
        Ok(())
    }

    fn eaug(&self, _: EpcPage, _: EpcPage, _: LinAddr) -> Result<(), Fault> {
        Ok(())
    }

    fn emodpr(&self, _: EpcPage, _: &Secinfo) -> Result<(), LeafError> {
        Ok(())
    }

    fn emodt(&self, _: EpcPage, _: &Secinfo) -> Result<(), LeafError> {
        Ok(())
    }
}
