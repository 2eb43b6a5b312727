//! ECREATE, EADD and EEXTEND: building an enclave and its measurement.
//!
//! Called by the driver's `ioctl`s of the same names. Source: SDM volume 3D, the leaves' own sections.

use usgx_isa::code::Operand;
use usgx_isa::layout::{Secinfo, gprsgx, secs as layout};
use usgx_isa::{EpcPage, Fault, LinAddr, PAGE_SIZE, Page};

use crate::bytes::PageBytes;
use crate::enclu::tcs;
use crate::epcm::State;
use crate::le;
use crate::measure::CHUNK;
use crate::processor::Processor;
use crate::profile::{ATTRIBUTE_KSS, Profile};
use crate::secinfo::{self, PAGE_TYPE, PT_REG, PT_SECS, PT_TCS, R, RWX, W};
use crate::secs::{MODE64BIT, Resident, at};
use crate::tracking::LogicalProcessors;

/// Bytes of an EXINFO in an SSA frame, the only MISC component.
const EXINFO_SIZE: u64 = 16;

/// Runs ECREATE.
pub(super) fn ecreate<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    target: EpcPage,
    source: &Page,
    secinfo: &Secinfo,
) -> Result<(), Fault> {
    let entry = cpu.operand(target, Operand::Target)?;
    if secinfo::checked_flags(secinfo)? & PAGE_TYPE != PT_SECS {
        return Err(Fault::Gp);
    }
    let _target = entry.lock.exclusive().ok_or(Fault::Gp)?;
    if entry.state().is_valid() {
        return Err(cpu.epcm_fault(Operand::Target));
    }
    check_secs(cpu.profile(), &source.0)?;

    let xsave = cpu.profile().xsave();
    let resident = Resident::create(target, cpu.new_eid(), &source.0, &xsave, cpu.threads());
    let mut contents = source.0;
    resident.store(&mut contents);
    cpu.bytes().write(target, 0, &contents);
    let slot = cpu.residents().insert(resident);
    entry.publish(State::valid(PT_SECS), slot);
    Ok(())
}

/// ECREATE's checks of the source SECS, all of which end in `#GP`.
fn check_secs(profile: &Profile, secs: &[u8; PAGE_SIZE]) -> Result<(), Fault> {
    let [size, base] = [at::SIZE, at::BASEADDR].map(|offset| le::get_u64(secs, offset));
    let [attributes, xfrm] = [at::ATTRIBUTES, at::XFRM].map(|offset| le::get_u64(secs, offset));
    let [ssaframesize, miscselect] =
        [at::SSAFRAMESIZE, at::MISCSELECT].map(|offset| le::get_u32(secs, offset));
    let mode64 = attributes & MODE64BIT != 0;
    let kss = attributes & ATTRIBUTE_KSS != 0;
    let xsave = profile.xsave();
    let zero = |from: usize, to: usize| le::is_zero(&secs[from..to]);

    let frame_needs = || {
        let misc = if miscselect & 1 != 0 { EXINFO_SIZE } else { 0 };
        u64::from(xsave.area_size(xfrm)) + misc + gprsgx::SIZE as u64
    };
    let legal = xsave.is_legal(xfrm)
        // The fields of CET are reserved, since no profile has CET.
        && zero(at::RESERVED1, at::ATTRIBUTES)
        && miscselect & !profile.miscselect() == 0
        && u64::from(ssaframesize) * PAGE_SIZE as u64 >= frame_needs()
        && (if mode64 { is_canonical(base) } else { base >> 32 == 0 })
        && size < profile.size_bound(mode64)
        && size >= 2 * PAGE_SIZE as u64
        && size.is_power_of_two()
        && base & (size - 1) == 0
        && attributes & !profile.attributes() == 0
        && xfrm & !profile.xfrm() == 0
        && zero(at::RESERVED2, at::MRSIGNER)
        && zero(at::RESERVED3, layout::CONFIGID)
        && zero(layout::RESERVED, PAGE_SIZE)
        && (kss || zero(layout::CONFIGID, layout::ISVPRODID) && zero(layout::CONFIGSVN, layout::RESERVED));
    if legal { Ok(()) } else { Err(Fault::Gp) }
}

/// Whether bits 63 to 47 are equal: what LINADDR widths of 48 bits demand.
fn is_canonical(addr: u64) -> bool {
    let top = addr >> 47;
    top == 0 || top == u64::MAX >> 47
}

/// Runs EADD.
pub(super) fn eadd<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    target: EpcPage,
    secs: EpcPage,
    linaddr: LinAddr,
    contents: &Page,
    secinfo: &Secinfo,
) -> Result<(), Fault> {
    let entry = cpu.operand(target, Operand::Target)?;
    if !linaddr.is_page_aligned() {
        return Err(Fault::Gp);
    }
    let secs_entry = cpu.operand(secs, Operand::Secs)?;
    let mut flags = secinfo::checked_flags(secinfo)?;
    if !matches!(flags & PAGE_TYPE, PT_REG | PT_TCS) {
        return Err(Fault::Gp);
    }
    let _target = entry.lock.exclusive().ok_or(Fault::Gp)?;
    if entry.state().is_valid() {
        return Err(cpu.epcm_fault(Operand::Target));
    }
    let _secs = secs_entry.lock.shared().ok_or(Fault::Gp)?;
    let enclave = cpu.resident(secs).ok_or_else(|| cpu.epcm_fault(Operand::Secs))?;

    // The flow copies the page first and checks the copy. The page stays free when a check fails, and nobody
    // can read a free page, so it is the same to check first.
    let is_tcs = flags & PAGE_TYPE == PT_TCS;
    if is_tcs {
        tcs::check_reserved(&contents.0, enclave.has(MODE64BIT))?;
        flags &= !RWX;
    } else if flags & (R | W) == W {
        return Err(Fault::Gp);
    }
    if !enclave.contains(linaddr) {
        return Err(Fault::Gp);
    }
    let _build = secs_entry.lock.build().ok_or(Fault::Gp)?;
    if enclave.is_initialised() {
        return Err(Fault::Gp);
    }

    if is_tcs {
        let mut fresh = contents.0;
        tcs::reset(&mut fresh);
        cpu.bytes().write(target, 0, &fresh);
    } else {
        cpu.bytes().write(target, 0, &contents.0);
    }
    enclave.measurement().add(linaddr.0 - enclave.base, flags);
    enclave.add_child();
    entry.publish(State::owned(flags & (RWX | PAGE_TYPE), secs), linaddr.0);
    Ok(())
}

/// Runs EEXTEND.
pub(super) fn eextend<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    secs: EpcPage,
    target: EpcPage,
    offset: u16,
) -> Result<(), Fault> {
    extend::<CHUNK, _, _>(cpu, secs, target, offset)
}

/// Runs EEXTEND on each chunk of a page. Each by itself would spend a third of its time on locks and look-ups.
pub(super) fn eextend_page<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    secs: EpcPage,
    target: EpcPage,
) -> Result<(), Fault> {
    extend::<PAGE_SIZE, _, _>(cpu, secs, target, 0)
}

/// EEXTEND of the chunks that are in the `LEN` bytes at `offset`; all of them, or none.
fn extend<const LEN: usize, B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    secs: EpcPage,
    target: EpcPage,
    offset: u16,
) -> Result<(), Fault> {
    let secs_entry = cpu.operand(secs, Operand::Secs)?;
    let offset = usize::from(offset);
    if !offset.is_multiple_of(CHUNK) || offset >= PAGE_SIZE {
        return Err(Fault::Gp);
    }
    let entry = cpu.operand(target, Operand::Target)?;
    let _target = entry.lock.shared().ok_or(Fault::Gp)?;
    let state = entry.state();
    if !state.is_valid() || !matches!(state.page_type(), PT_REG | PT_TCS) {
        return Err(cpu.epcm_fault(Operand::Target));
    }
    if state.owner() != secs {
        return Err(Fault::Gp);
    }
    let enclave = cpu.owner(state);
    let _build = secs_entry.lock.build().ok_or(Fault::Gp)?;
    if enclave.is_initialised() {
        return Err(Fault::Gp);
    }
    let mut bytes = [0; LEN];
    cpu.bytes().read(target, offset, &mut bytes);
    let first = entry.address() - enclave.base + offset as u64;
    let mut measurement = enclave.measurement();
    for (at, chunk) in (first..).step_by(CHUNK).zip(bytes.as_chunks().0) {
        measurement.extend(at, chunk);
    }
    Ok(())
}
