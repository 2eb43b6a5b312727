//! The TCS: its fields, what entry checks of it, and what entry and exit store into it.
//!
//! The thread enters and leaves by itself; what it can not see is the EPCM entry of the TCS and the SECS. Called
//! by the machine for a thread that enters, and for one whose AEX or EEXIT found its pages unmapped. Source: SDM
//! volume 3D, "Thread Control Structure (TCS)", "EENTER", "ERESUME" and "Asynchronous Enclave Exit Events".

use usgx_isa::code::Operand;
use usgx_isa::layout::ATTRIBUTE_AEXNOTIFY;
use usgx_isa::{EpcPage, Fault, LinAddr, PAGE_SIZE};

use crate::bytes::PageBytes;
use crate::epcm::BLOCKED;
use crate::le;
use crate::processor::Processor;
use crate::secinfo::{MODIFIED, PENDING, PT_REG, PT_TCS, PT_TRIM};
use crate::secs::MODE64BIT;
use crate::tracking::LogicalProcessors;

const STATE: usize = 0;
/// Offset of FLAGS, the only field that EDBGWR may write.
pub(crate) const FLAGS: usize = 8;
const OSSA: usize = 16;
const CSSA: usize = 24;
const NSSA: usize = 28;
const OENTRY: usize = 32;
const AEP: usize = 40;
const OFSBASE: usize = 48;
const OGSBASE: usize = 56;
const FSLIMIT: usize = 64;
const GSLIMIT: usize = 68;
const RESERVED: usize = 72;
/// `SGX_TCS_LIMIT`: EDBGRD reads below it. The SDM names it without a number; this is where the fields end.
pub(crate) const LIMIT: usize = RESERVED;

const FLAG_DBGOPTIN: u64 = 1 << 0;
const FLAG_AEXNOTIFY: u64 = 1 << 1;
/// Low bits of FSLIMIT and GSLIMIT that are set in 32-bit enclaves.
const LIMIT_GRANULE: u32 = 0xfff;

/// What the EENTER and ERESUME of a thread need to know of a TCS and its enclave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TcsState {
    /// 0 is inactive; 1 is in use by a thread.
    pub state: u64,
    /// DBGOPTIN is bit 0, AEXNOTIFY bit 1.
    pub flags: u64,
    /// Offset of the first SSA frame from the enclave's base.
    pub ossa: u64,
    /// The SSA frame that the next AEX uses.
    pub cssa: u32,
    /// The number of SSA frames.
    pub nssa: u32,
    /// Offset of the entry point from the enclave's base.
    pub oentry: u64,
    /// Where the last entry wants asynchronous exits to go.
    pub aep: u64,
    /// Offset of the FS segment from the enclave's base.
    pub ofsbase: u64,
    /// Offset of the GS segment from the enclave's base.
    pub ogsbase: u64,
    /// Limit of the FS segment, for 32-bit code.
    pub fslimit: u32,
    /// Limit of the GS segment, for 32-bit code.
    pub gslimit: u32,
    /// The enclave's SECS, at this moment.
    pub secs: EpcPage,
    /// The enclave's number, for the table of threads.
    pub eid: u64,
    /// First address of ELRANGE.
    pub base: LinAddr,
    /// Bytes of ELRANGE.
    pub size: u64,
    /// Pages of an SSA frame.
    pub ssaframesize: u32,
    /// Bytes of the XSAVE area in an SSA frame.
    pub xsave_size: u32,
    /// ATTRIBUTES without XFRM.
    pub attributes: u64,
    /// XFRM.
    pub xfrm: u64,
    /// MISCSELECT.
    pub miscselect: u32,
}

impl TcsState {
    /// Where SSA frame `index` starts. Whether it lies in ELRANGE is up to the pages that are there.
    #[must_use]
    pub const fn frame(&self, index: u32) -> LinAddr {
        let offset = (index as u64).wrapping_mul(self.frame_size());
        LinAddr(self.base.0.wrapping_add(self.ossa).wrapping_add(offset))
    }

    /// Bytes of an SSA frame.
    #[must_use]
    pub const fn frame_size(&self) -> u64 {
        self.ssaframesize as u64 * PAGE_SIZE as u64
    }
}

/// Checks of a TCS's contents that EADD and EACCEPT share.
pub(crate) fn check_reserved(tcs: &[u8; PAGE_SIZE], mode64: bool) -> Result<(), Fault> {
    let limits = [FSLIMIT, GSLIMIT].map(|offset| le::get_u32(tcs, offset));
    let good = le::is_zero(&tcs[RESERVED..])
        && (mode64 || limits.iter().all(|limit| limit & LIMIT_GRANULE == LIMIT_GRANULE));
    if good { Ok(()) } else { Err(Fault::Gp) }
}

/// EACCEPT's checks of the page that becomes a TCS.
pub(super) fn check_acceptable(tcs: &[u8; PAGE_SIZE], mode64: bool) -> Result<(), Fault> {
    check_reserved(tcs, mode64)?;
    let good = le::get_u64(tcs, FLAGS) & FLAG_DBGOPTIN == 0
        && le::get_u32(tcs, CSSA) < le::get_u32(tcs, NSSA)
        && le::get_u64(tcs, AEP) == 0
        && le::get_u64(tcs, STATE) == 0;
    if good { Ok(()) } else { Err(Fault::Gp) }
}

/// Gives the fields that belong to the processor their initial values, as EADD does.
pub(crate) fn reset(tcs: &mut [u8; PAGE_SIZE]) {
    let flags = le::get_u64(tcs, FLAGS) & !FLAG_DBGOPTIN;
    le::put(tcs, STATE, &0u64.to_le_bytes());
    le::put(tcs, FLAGS, &flags.to_le_bytes());
    le::put(tcs, CSSA, &0u32.to_le_bytes());
    le::put(tcs, AEP, &0u64.to_le_bytes());
}

impl<B: PageBytes, L: LogicalProcessors> Processor<B, L> {
    /// Checks that `page` is a TCS through which a 64-bit thread may enter at `linaddr`, and reads it.
    ///
    /// What depends on the kind of entry is left to the caller: CSSA against NSSA (EENTER) or 0 (ERESUME), the
    /// SSA's pages, XFRM against XCR0, and that STATE is inactive.
    ///
    /// # Errors
    /// `#GP`, or `#PF` on the TCS.
    pub fn tcs(&self, page: EpcPage, linaddr: LinAddr) -> Result<TcsState, Fault> {
        const FAULT: Fault = Fault::Pf(Operand::Target);
        if !linaddr.is_page_aligned() {
            return Err(Fault::Gp);
        }
        let entry = self.entry(page).ok_or(FAULT)?;
        let _pin = entry.lock.pin().ok_or(Fault::Gp)?;
        let state = entry.state();
        if !state.is_valid()
            || state.has(BLOCKED)
            || state.page_type() != PT_TCS
            || entry.address() != linaddr.0
            || state.has(PENDING | MODIFIED)
        {
            return Err(FAULT);
        }
        let enclave = self.owner(state);
        let mut fields = [0; RESERVED];
        self.bytes().read(page, 0, &mut fields);

        let page_aligned = |offset: usize| LinAddr(le::get_u64(&fields, offset)).is_page_aligned();
        let [attributes, xfrm] = enclave.attributes();
        let flags = le::get_u64(&fields, FLAGS);
        let known_flags = FLAG_DBGOPTIN | if self.profile().has_aex_notify() { FLAG_AEXNOTIFY } else { 0 };
        let notify_agrees = (flags & FLAG_AEXNOTIFY != 0) == (attributes & ATTRIBUTE_AEXNOTIFY != 0);
        if !page_aligned(OSSA)
            || !page_aligned(OFSBASE)
            || !page_aligned(OGSBASE)
            || flags & !known_flags != 0
            || !enclave.is_initialised()
            || !enclave.has(MODE64BIT)
            || (flags & FLAG_DBGOPTIN == 0 && !notify_agrees)
        {
            return Err(Fault::Gp);
        }
        Ok(TcsState {
            state: le::get_u64(&fields, STATE),
            flags,
            ossa: le::get_u64(&fields, OSSA),
            cssa: le::get_u32(&fields, CSSA),
            nssa: le::get_u32(&fields, NSSA),
            oentry: le::get_u64(&fields, OENTRY),
            aep: le::get_u64(&fields, AEP),
            ofsbase: le::get_u64(&fields, OFSBASE),
            ogsbase: le::get_u64(&fields, OGSBASE),
            fslimit: le::get_u32(&fields, FSLIMIT),
            gslimit: le::get_u32(&fields, GSLIMIT),
            secs: enclave.page,
            eid: enclave.eid,
            base: LinAddr(enclave.base),
            size: enclave.size,
            ssaframesize: enclave.ssaframesize,
            xsave_size: enclave.xsave_size,
            attributes,
            xfrm,
            miscselect: enclave.miscselect,
        })
    }

    /// Stores what entry and exit change into the TCS `page`, whatever its EPCM entry forbids.
    ///
    /// Never faults; if a leaf has the page, waits for its end. Returns whether there still was such a page: a
    /// thread that counts as having left can be too late. That it is the thread's own TCS is the caller's to know.
    pub fn store_tcs(&self, page: EpcPage, state: u64, cssa: u32, aep: u64) -> bool {
        // EMODT can have made it a PT_TRIM page while the thread was inside.
        self.store(page, &[PT_TCS, PT_TRIM], |bytes| {
            bytes.write(page, STATE, &state.to_le_bytes());
            bytes.write(page, CSSA, &cssa.to_le_bytes());
            bytes.write(page, AEP, &aep.to_le_bytes());
        })
    }

    /// Stores part of an AEX into an SSA page, whatever its EPCM entry forbids.
    ///
    /// As [`store_tcs`](Self::store_tcs).
    ///
    /// # Panics
    /// If the bytes do not lie within the page.
    pub fn store_implicit(&self, page: EpcPage, offset: usize, stored: &[u8]) -> bool {
        assert!(offset <= PAGE_SIZE && stored.len() <= PAGE_SIZE - offset, "stores stay within a page");
        self.store(page, &[PT_REG], |bytes| bytes.write(page, offset, stored))
    }

    /// Runs `store` while `page` is surely a valid one of these types.
    fn store(&self, page: EpcPage, types: &[u64], store: impl FnOnce(&B)) -> bool {
        let Some(entry) = self.entry(page) else { return false };
        let _pin = entry.lock.pin_wait();
        let state = entry.state();
        let there = state.is_valid() && types.contains(&state.page_type());
        if there {
            store(self.bytes());
        }
        there
    }
}
