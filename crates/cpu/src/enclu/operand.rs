//! Operands of user leaves: from a linear address to an EPC page that stays.
//!
//! The page tables can change while a leaf looks at them. On hardware the leaf would be over before the kernel
//! gets to the EPCM; here a refusal by the EPCM counts as such only if the page tables still say the same.
//! Otherwise it is an ordinary `#PF`, and the kernel sorts it out. While an operand is held the page is pinned,
//! so what is read and written is surely the enclave's own. Source: SDM volume 3D, "ENCLU", operand rules.

use usgx_isa::{EpcPage, LinAddr, PAGE_SIZE};

use super::{EncluError, Translate};
use crate::bytes::PageBytes;
use crate::epcm::{Access, Entry};
use crate::lock::Held;
use crate::processor::Processor;
use crate::secs::Resident;
use crate::tracking::LogicalProcessors;

/// An address that is mapped to an EPC page. Nothing else of it is checked yet.
pub(super) struct Mapped<'a> {
    pub(super) page: EpcPage,
    pub(super) entry: &'a Entry,
    addr: LinAddr,
    write: bool,
    map: &'a dyn Translate,
}

/// A [`Mapped`] page that no leaf can take away or replace until this is dropped.
pub(super) struct Pinned<'a> {
    pub(super) mapped: Mapped<'a>,
    _pin: Held<'a>,
}

impl<'a> Mapped<'a> {
    /// Looks `addr` up in the page tables.
    pub(super) fn find<B: PageBytes, L: LogicalProcessors>(
        cpu: &'a Processor<B, L>,
        addr: LinAddr,
        write: bool,
        map: &'a dyn Translate,
    ) -> Result<Self, EncluError> {
        let fault = |sgx| EncluError::PageFault { addr, write, sgx };
        let page = map.translate(addr, write).ok_or(fault(false))?;
        let entry = cpu.entry(page).ok_or(fault(true))?;
        Ok(Self { page, entry, addr, write, map })
    }

    /// Whether the page tables still say what they said.
    pub(super) fn is_current(&self) -> bool {
        self.map.translate(self.addr, self.write) == Some(self.page)
    }

    /// The `#PF` of an EPCM refusal.
    pub(super) fn refusal(&self) -> EncluError {
        EncluError::PageFault { addr: self.addr, write: self.write, sgx: self.is_current() }
    }

    /// `error`, or the ordinary `#PF` if the page was not the right one to ask.
    pub(super) fn or_retry(&self, error: EncluError) -> EncluError {
        if self.is_current() {
            error
        } else {
            EncluError::PageFault { addr: self.addr, write: self.write, sgx: false }
        }
    }

    /// Pins the page, if no leaf has it exclusively.
    pub(super) fn pin(self) -> Result<Pinned<'a>, Self> {
        match self.entry.lock.pin() {
            Some(pin) => Ok(Pinned { mapped: self, _pin: pin }),
            None => Err(self),
        }
    }

    /// Pins the page and checks that `enclave` may access it: the checks of every operand in enclave memory.
    pub(super) fn check(self, enclave: &Resident) -> Result<Pinned<'a>, EncluError> {
        // Accesses lock nothing on hardware, so there is no conflict to report: the kernel is busy with the page.
        let pinned = self.pin().map_err(|this| EncluError::PageFault {
            addr: this.addr,
            write: this.write,
            sgx: false,
        })?;
        let mapped = &pinned.mapped;
        let access = if mapped.write { Access::Write } else { Access::Read };
        let entry = mapped.entry.snapshot();
        let permitted = entry.is_some_and(|entry| entry.permits(enclave.page, mapped.addr, access));
        if permitted { Ok(pinned) } else { Err(mapped.refusal()) }
    }
}

impl Pinned<'_> {
    /// Reads what the operand points to.
    pub(super) fn read<const N: usize, B: PageBytes, L: LogicalProcessors>(
        &self,
        cpu: &Processor<B, L>,
    ) -> [u8; N] {
        let mut out = [0; N];
        cpu.bytes().read(self.mapped.page, self.offset(), &mut out);
        out
    }

    /// Writes to where the operand points.
    pub(super) fn write<B: PageBytes, L: LogicalProcessors>(&self, cpu: &Processor<B, L>, bytes: &[u8]) {
        cpu.bytes().write(self.mapped.page, self.offset(), bytes);
    }

    /// Operands are aligned so that none crosses a page.
    fn offset(&self) -> usize {
        (self.mapped.addr.0 % PAGE_SIZE as u64) as usize
    }
}
