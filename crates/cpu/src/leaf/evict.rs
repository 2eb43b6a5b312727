//! EPA, EBLOCK, ETRACK, EWB, ELDU and ELDB: moving pages out of the EPC and back.
//!
//! Called by the reclaimer's write-back pipeline and by the driver's fault path. A page's contents are in the
//! EPC until EWB's last step and again from ELDU's last step on; a leaf that fails has moved nothing. Source: SDM
//! volume 3D, "EPC Page Eviction" and the leaves' own sections.

use std::sync::Arc;

use usgx_isa::code::Operand;
use usgx_isa::layout::{Pcmd, SecinfoFlags};
use usgx_isa::{EpcPage, EvictedPage, Fault, LeafError, LinAddr, SgxCode, VaSlot};

use crate::bytes::PageBytes;
use crate::epcm::{BLOCKED, Entry, State};
use crate::lock::Held;
use crate::paging::{SLOT_SIZE, SLOTS, SlotClaim};
use crate::processor::Processor;
use crate::secinfo::{MODIFIED, PAGE_TYPE, PENDING, PR, PT_REG, PT_SECS, PT_TCS, PT_TRIM, PT_VA, RWX};
use crate::secs::Resident;
use crate::tracking::LogicalProcessors;

/// Runs EPA.
pub(super) fn epa<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    page: EpcPage,
) -> Result<(), Fault> {
    let entry = cpu.operand(page, Operand::Target)?;
    let _target = entry.lock.exclusive().ok_or(Fault::Gp)?;
    if entry.state().is_valid() {
        return Err(cpu.epcm_fault(Operand::Target));
    }
    cpu.bytes().fill_zero(page);
    entry.publish(State::valid(PT_VA), 0);
    Ok(())
}

/// Runs EBLOCK.
pub(super) fn eblock<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    page: EpcPage,
) -> Result<(), LeafError> {
    let entry = cpu.operand(page, Operand::Target)?;
    let _target = entry.lock.shared().ok_or(SgxCode::EpcPageConflict)?;
    let state = entry.state();
    if !state.is_valid() {
        return Err(SgxCode::PgInvld.into());
    }
    if !state.is_child() {
        let is_secs = state.page_type() == PT_SECS;
        return Err(if is_secs { SgxCode::PgIsSecs } else { SgxCode::NotBlockable }.into());
    }
    if entry.set(BLOCKED).has(BLOCKED) {
        return Err(SgxCode::Blkstate.into());
    }
    entry.set_stamp(cpu.owner(state).tracker.epoch());
    Ok(())
}

/// Runs ETRACK.
pub(super) fn etrack<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    secs: EpcPage,
) -> Result<(), LeafError> {
    let entry = cpu.operand(secs, Operand::Target)?;
    let _secs = entry.lock.shared().ok_or(Fault::Gp)?;
    let _track = entry.lock.track().ok_or(Fault::Gp)?;
    let enclave = cpu.resident(secs).ok_or_else(|| cpu.epcm_fault(Operand::Target))?;
    enclave.tracker.advance(cpu.threads())?;
    Ok(())
}

/// Runs EWB.
pub(super) fn ewb<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    page: EpcPage,
    slot: VaSlot,
    out: &mut EvictedPage,
) -> Result<LinAddr, LeafError> {
    let entry = cpu.operand(page, Operand::Target)?;
    let va_entry = va_operand(cpu, slot)?;
    if page == slot.page {
        return Err(Fault::Gp.into());
    }
    let _source = entry.lock.exclusive().ok_or(Fault::Gp)?;
    let (_va, _slot) = lock_slot(cpu, va_entry, slot)?;
    let state = entry.state();
    if !state.is_valid() {
        return Err(cpu.epcm_fault(Operand::Target).into());
    }
    check_va_page(cpu, va_entry)?;
    let owner = evictable(cpu, page, entry, state)?;

    let (linaddr, header_eid, enclaveid) = match &owner {
        Some(secs) if secs.page == page => (LinAddr(0), 0, secs.eid),
        Some(enclave) => (LinAddr(entry.address()), enclave.eid, enclave.eid),
        None => (LinAddr(0), 0, 0),
    };
    cpu.bytes().read(page, 0, &mut out.contents.0);
    if let Some(secs) = owner.as_ref().filter(|owner| owner.page == page) {
        secs.store(&mut out.contents.0);
    }
    out.pcmd = Pcmd { enclaveid, ..Pcmd::default() };
    out.pcmd.secinfo.flags = SecinfoFlags::from_bits_truncate(state.secinfo_flags());
    let version = cpu.paging().seal(&mut out.contents, &mut out.pcmd, linaddr, header_eid);

    let occupied = read_slot(cpu, slot) != 0;
    write_slot(cpu, slot, version);
    if state.page_type() == PT_SECS {
        cpu.residents().remove(entry.address());
    }
    entry.invalidate();
    cpu.bytes().discard(page);
    if let Some(enclave) = owner.filter(|owner| owner.page != page) {
        enclave.drop_child();
    }
    if occupied { Err(SgxCode::VaSlotOccupied.into()) } else { Ok(linaddr) }
}

/// Checks that a page may be evicted now. Returns its enclave: the owner of a child page, or the SECS's own.
fn evictable<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    page: EpcPage,
    entry: &Entry,
    state: State,
) -> Result<Option<Arc<Resident>>, SgxCode> {
    match state.page_type() {
        PT_VA => Ok(None),
        PT_SECS => {
            let secs = cpu.resident(page).expect("a locked SECS page stays resident");
            if secs.nr_children() != 0 { Err(SgxCode::ChildPresent) } else { Ok(Some(secs)) }
        }
        _ => {
            if !state.has(BLOCKED) {
                return Err(SgxCode::PageNotBlocked);
            }
            let enclave = cpu.owner(state);
            let tracked = enclave.tracker.is_tracked(entry.stamp(), cpu.threads());
            if tracked { Ok(Some(enclave)) } else { Err(SgxCode::NotTracked) }
        }
    }
}

/// Runs ELDU (`blocked` is 0) or ELDB (`blocked` is [`BLOCKED`]).
pub(super) fn eld<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    target: EpcPage,
    slot: VaSlot,
    linaddr: LinAddr,
    secs: Option<EpcPage>,
    evicted: &EvictedPage,
    blocked: u64,
) -> Result<(), LeafError> {
    let entry = cpu.operand(target, Operand::Target)?;
    let va_entry = va_operand(cpu, slot)?;
    let _target = entry.lock.exclusive().ok_or(Fault::Gp)?;
    let (_va, _slot) = lock_slot(cpu, va_entry, slot)?;
    if entry.state().is_valid() {
        return Err(cpu.epcm_fault(Operand::Target).into());
    }
    check_va_page(cpu, va_entry)?;
    let flags = evicted.pcmd.secinfo.flags.bits();
    let is_child = matches!(flags & PAGE_TYPE, PT_REG | PT_TCS | PT_TRIM);
    let owner = match (is_child, secs) {
        (true, secs) => Some(lock_owner(cpu, secs)?),
        (false, Some(_)) => return Err(Fault::Gp.into()),
        // Types that do not exist come here too, and have no MAC that fits.
        (false, None) => None,
    };

    let eid = owner.as_ref().map_or(0, |(_, enclave)| enclave.eid);
    let version = read_slot(cpu, slot);
    let mut contents = evicted.contents.0;
    if !cpu.paging().open(&mut contents, &evicted.pcmd, linaddr, eid, version) {
        return Err(SgxCode::MacCompareFail.into());
    }

    write_slot(cpu, slot, 0);
    cpu.bytes().write(target, 0, &contents);
    // The MAC was right, so these are the flags that EWB wrote.
    let flags = flags & (RWX | PENDING | MODIFIED | PR | PAGE_TYPE);
    match owner {
        Some((_secs, enclave)) => {
            enclave.add_child();
            entry.publish(State::owned(flags | blocked, enclave.page), linaddr.0);
        }
        None if flags & PAGE_TYPE == PT_SECS => {
            let xsave = cpu.profile().xsave();
            let resident = Resident::reload(target, &contents, &xsave, cpu.threads());
            entry.publish(State::valid(flags), cpu.residents().insert(resident));
        }
        None => entry.publish(State::valid(flags), 0),
    }
    Ok(())
}

/// Takes the SECS of a child page that is to be loaded.
fn lock_owner<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    secs: Option<EpcPage>,
) -> Result<(Held<'_>, Arc<Resident>), Fault> {
    let no_secs = || cpu.epcm_fault(Operand::Secs);
    // Without an SECS the operand is address 0, which is not in the EPC.
    let secs = secs.ok_or_else(no_secs)?;
    let held = cpu.operand(secs, Operand::Secs)?.lock.shared().ok_or(Fault::Gp)?;
    Ok((held, cpu.resident(secs).ok_or_else(no_secs)?))
}

/// The entry of a VA slot's page. A slot outside the page is an address that is not in the EPC.
fn va_operand<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    slot: VaSlot,
) -> Result<&Entry, Fault> {
    let entry = cpu.operand(slot.page, Operand::VaSlot)?;
    if slot.index < SLOTS { Ok(entry) } else { Err(cpu.epcm_fault(Operand::VaSlot)) }
}

/// Takes a VA page shared and one slot of it alone.
fn lock_slot<'a, B: PageBytes, L: LogicalProcessors>(
    cpu: &'a Processor<B, L>,
    va_entry: &'a Entry,
    slot: VaSlot,
) -> Result<(Held<'a>, SlotClaim<'a>), Fault> {
    let va = va_entry.lock.shared().ok_or(Fault::Gp)?;
    let claim = cpu.paging().claim(slot).ok_or(Fault::Gp)?;
    Ok((va, claim))
}

fn check_va_page<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    va_entry: &Entry,
) -> Result<(), Fault> {
    let state = va_entry.state();
    let is_va = state.is_valid() && state.page_type() == PT_VA;
    if is_va { Ok(()) } else { Err(cpu.epcm_fault(Operand::VaSlot)) }
}

fn read_slot<B: PageBytes, L: LogicalProcessors>(cpu: &Processor<B, L>, slot: VaSlot) -> u64 {
    let mut bytes = [0; SLOT_SIZE];
    cpu.bytes().read(slot.page, usize::from(slot.index) * SLOT_SIZE, &mut bytes);
    u64::from_le_bytes(bytes)
}

fn write_slot<B: PageBytes, L: LogicalProcessors>(cpu: &Processor<B, L>, slot: VaSlot, value: u64) {
    cpu.bytes().write(slot.page, usize::from(slot.index) * SLOT_SIZE, &value.to_le_bytes());
}
