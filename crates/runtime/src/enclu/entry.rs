//! EENTER and ERESUME: the processor's checks in its order, then the state change.
//!
//! [`attempt`] does it all from what the window shows and makes no call; where something is missing it says
//! what ([`Obstacle`]), and what was done is undone. A handler then resolves the obstacle with the machine and tries
//! again ([`enter`]); the vDSO function, which runs with signals open, leaves the rest to a handler by
//! executing its ENCLU.
//!
//! The order that keeps two threads off one TCS and the machine informed: take the TCS (compare and swap of
//! its word), publish the entry in the slot, store into the SSA frame, replace FS and GS, and only then be
//! inside. [`undo`] goes the same way back. Source: SDM volume 3D, "EENTER" and "ERESUME".

use core::arch::naked_asm;
use core::mem::MaybeUninit;
use core::sync::atomic::{Ordering, compiler_fence, fence};

use usgx_wire::slot::fault_kind;
use usgx_wire::window::{self, entry, tcs_word};

use super::exception::{Exception, Verdict, pf, raise};
use super::frame::{Gpr, XsaveArea};
use super::mode::{INSIDE, Mode, SELECTOR_ALLOW, SELECTOR_BLOCK};
use super::{dispatch, fault, segments, vdso};
use crate::enclaves::{self, Enclave};
use crate::signals::frame::{SigInfo, Ucontext};
use crate::thread::Thread;
use crate::{link, usercopy};

/// Bytes of the instruction.
pub(super) const ENCLU_LEN: u64 = 3;
const TF: u64 = 1 << 8;
/// RFLAGS bits that ERESUME takes from the SSA: CF, PF, AF, ZF, SF, DF, OF, NT, RF, AC, ID.
const RESUMED_FLAGS: u64 = 0x0025_4cd5;
/// TCS.FLAGS.
const DBGOPTIN: u64 = 1 << 0;
const AEXNOTIFY: u64 = 1 << 1;
const PROT_RW: u32 = 3;
/// How often a handler works on obstacles before it lets other signals through.
const ROUNDS: u32 = 64;

/// Which leaf, and its operands.
#[derive(Clone, Copy)]
pub(super) struct Request {
    pub resume: bool,
    pub tcs: u64,
    pub aep: u64,
    /// RSP and RBP outside, for EENTER.
    pub rsp: u64,
    pub rbp: u64,
    /// TF outside.
    pub trap_flag: bool,
}

/// Why an entry has not happened; nothing has changed.
pub(super) enum Obstacle {
    /// The leaf raises this.
    Raise(Exception),
    /// The TCS is not in the window.
    Tcs { enclave: &'static Enclave, prot: u32, address: u64 },
    /// A page of the SSA frame is not mapped.
    Page { enclave: &'static Enclave, prot: u32, address: u64 },
    /// Something moved meanwhile; try again.
    Again,
}

impl Obstacle {
    /// The page fault that the processor raises because of it, if it does.
    pub(super) fn page_fault(&self) -> Option<Exception> {
        match self {
            Self::Page { address, .. } => Some(Exception::bus(*address, pf::W)),
            _ => None,
        }
    }
}

/// What an entry loads into the registers.
pub(super) enum Entered {
    /// At the entry point: RAX = CSSA, RCX = the instruction behind ENCLU, everything else as it was.
    Fresh { rip: u64, rax: u64 },
    /// Where an asynchronous exit interrupted.
    Resumed { gpr: Gpr },
}

/// Carries out EENTER or ERESUME at the interrupted ENCLU.
pub(super) fn enter(thread: &mut Thread, uc: &mut Ucontext, info: &mut SigInfo, resume: bool) -> Verdict {
    let registers = &uc.mcontext;
    let request = Request {
        resume,
        tcs: registers.rbx,
        aep: registers.rcx,
        rsp: registers.rsp,
        rbp: registers.rbp,
        trap_flag: registers.eflags & TF != 0,
    };
    if link::ensure_slot(thread).is_err() {
        return raise(thread, uc, info, &Exception::GP);
    }
    dispatch::enable(thread);
    let mut area = XsaveArea::new();
    for _ in 0..ROUNDS {
        let obstacle = match attempt(thread, &request, resume.then_some(&mut area)) {
            Ok(entered) => {
                load(thread, uc, &entered, &area);
                thread.enclave.set_phase(INSIDE);
                return Verdict::Resume;
            }
            Err(obstacle) => obstacle,
        };
        if undo(thread) == TcsLeft::AtMachine {
            fault::give_back_tcs(thread);
        }
        match overcome(thread, obstacle) {
            fault::Outcome::Repaired => {}
            fault::Outcome::Retry => return Verdict::Resume,
            fault::Outcome::Raise(exception) => return raise(thread, uc, info, &exception),
        }
    }
    // The ENCLU runs again, after whatever signals wait.
    Verdict::Resume
}

/// Asks the machine for what was missing, if that is what was in the way.
pub(super) fn overcome(thread: &mut Thread, obstacle: Obstacle) -> fault::Outcome {
    match obstacle {
        Obstacle::Again => fault::Outcome::Repaired,
        Obstacle::Raise(exception) => fault::Outcome::Raise(exception),
        Obstacle::Tcs { enclave, prot, address } => {
            fault::ask(thread, enclave, address, pf::U, prot, fault_kind::TCS)
        }
        Obstacle::Page { enclave, prot, address } => {
            fault::ask(thread, enclave, address, pf::U | pf::W, prot, fault_kind::ACCESS)
        }
    }
}

/// Loads the registers of an entry that has been made.
fn load(thread: &Thread, uc: &mut Ucontext, entered: &Entered, area: &XsaveArea) {
    let mode = &thread.enclave;
    match entered {
        Entered::Fresh { rip, rax } => {
            let registers = &mut uc.mcontext;
            registers.rcx = registers.rip.wrapping_add(ENCLU_LEN);
            registers.rax = *rax;
            registers.rip = *rip;
        }
        Entered::Resumed { gpr } => {
            gpr.load(uc);
            uc.mcontext.eflags = uc.mcontext.eflags & !RESUMED_FLAGS | gpr.rflags & RESUMED_FLAGS;
            area.load(uc, mode.xfrm);
        }
    }
    if !mode.opt_in {
        uc.mcontext.eflags &= !TF;
    }
}

/// Tries to enter. On success everything is done except the registers and the phase; otherwise the caller has
/// to [`undo`] what was done.
pub(super) fn attempt(
    thread: &mut Thread,
    request: &Request,
    area: Option<&mut XsaveArea>,
) -> Result<Entered, Obstacle> {
    let found = find(thread, request)?;
    take(thread, request, &found, area)
}

/// The TCS that a request names.
struct Found {
    enclave: &'static Enclave,
    window: &'static window::Header,
    tcs: &'static window::Tcs,
    word: u64,
}

/// The checks up to STATE, without touching anything.
fn find(thread: &mut Thread, request: &Request) -> Result<Found, Obstacle> {
    const PAGE_OFFSET: u64 = 0xfff;
    let raise = |exception| Err(Obstacle::Raise(exception));
    if request.tcs & PAGE_OFFSET != 0 {
        return raise(Exception::GP);
    }
    let Some(mapping) = enclaves::mapping_at(request.tcs) else {
        // Ordinary memory is not in the EPC; no memory at all is an ordinary fault.
        return raise(match usercopy::get::<u8>(request.tcs) {
            Some(_) => Exception::sgx(request.tcs, 0),
            None => Exception::unmapped(request.tcs, 0),
        });
    };
    let (enclave, prot) = (mapping.enclave, mapping.prot);
    if mapping.placeholder {
        return raise(Exception::bus(request.tcs, 0));
    }
    let word = enclave.page_word(request.tcs);
    if prot == 0 {
        return raise(Exception::denied(request.tcs, fault::present(word)));
    }
    if !is_canonical(request.aep) {
        return raise(Exception::GP);
    }
    let missing = || Obstacle::Tcs { enclave, prot, address: request.tcs };
    let window = enclave.window().ok_or_else(missing)?;
    if word & entry::TCS == 0 {
        return Err(missing());
    }
    let tcs = enclave.tcs((word >> entry::TCS_SHIFT) as usize).ok_or_else(missing)?;
    let tcs_word = tcs.word.load(Ordering::Acquire);
    if tcs_word & tcs_word::VALID == 0 || tcs.address.load(Ordering::Relaxed) != request.tcs {
        return Err(missing());
    }
    if tcs.refuses.load(Ordering::Relaxed) != 0 {
        return raise(Exception::GP);
    }
    let cssa = (tcs_word >> tcs_word::CSSA_SHIFT) as u32;
    if request.resume && cssa == 0 || !request.resume && cssa >= tcs.nssa.load(Ordering::Relaxed) {
        return raise(Exception::GP);
    }
    remember(thread, request, enclave, window, tcs);
    let mode = &thread.enclave;
    check_frame(mode, enclave, if request.resume { cssa - 1 } else { cssa })?;
    if request.resume && mode.is_notified(cssa - 1) == Some(true) {
        check_next_frame(mode, enclave, cssa, tcs.nssa.load(Ordering::Relaxed))?;
    }
    if tcs_word & tcs_word::ACTIVE != 0 {
        return raise(Exception::GP);
    }
    Ok(Found { enclave, window, tcs, word: tcs_word })
}

/// Fields of a TCS that an entry loads.
struct Fields {
    rip: u64,
    fs: u64,
    gs: u64,
    nssa: u32,
}

/// Notes what the processor keeps of the enclave and the TCS while inside.
fn remember(
    thread: &mut Thread,
    request: &Request,
    enclave: &'static Enclave,
    window: &'static window::Header,
    tcs: &'static window::Tcs,
) {
    const PAGE: u64 = 4096;
    let mode = &mut thread.enclave;
    let opt_in = tcs.flags.load(Ordering::Relaxed) & DBGOPTIN != 0;
    mode.tcs = Some(tcs);
    mode.enclave = Some(enclave);
    mode.handle = enclave.handle();
    mode.window = Some(window);
    mode.base = window.base.load(Ordering::Relaxed);
    mode.size = window.size.load(Ordering::Relaxed);
    mode.tcs_address = request.tcs;
    mode.aep = request.aep;
    mode.ssa = tcs.ssa.load(Ordering::Relaxed);
    mode.frame_size = u64::from(window.ssa_frame_pages.load(Ordering::Relaxed)) * PAGE;
    mode.xfrm = window.xfrm.load(Ordering::Relaxed);
    mode.miscselect = window.miscselect.load(Ordering::Relaxed);
    mode.xsave_size =
        window.xsave_size.load(Ordering::Relaxed).clamp(XsaveArea::MIN as u32, XsaveArea::MAX as u32);
    mode.opt_in = opt_in;
    mode.notify = tcs.flags.load(Ordering::Relaxed) & AEXNOTIFY != 0;
    mode.trap_flag = request.trap_flag && !opt_in;
    mode.entry_rsp = request.rsp;
    mode.entry_rbp = request.rbp;
}

/// Checks the frame that an exit after a notification will use.
fn check_next_frame(mode: &Mode, enclave: &'static Enclave, cssa: u32, nssa: u32) -> Result<(), Obstacle> {
    if cssa >= nssa {
        return Err(Obstacle::Raise(Exception::GP));
    }
    check_frame(mode, enclave, cssa)
}

/// Checks that the pages of an SSA frame that hold the XSAVE area and GPRSGX can be read and written.
pub(super) fn check_frame(mode: &Mode, enclave: &'static Enclave, index: u32) -> Result<(), Obstacle> {
    const PAGE: u64 = 4096;
    let frame = mode.frame(index);
    let last = frame + mode.frame_size - PAGE;
    let areas_end = (frame + u64::from(mode.xsave_size)).min(last);
    let mut page = frame;
    loop {
        check_page(enclave, page)?;
        if page >= last {
            return Ok(());
        }
        page = if page + PAGE < areas_end { page + PAGE } else { last };
    }
}

fn check_page(enclave: &'static Enclave, address: u64) -> Result<(), Obstacle> {
    let raise = |exception| Err(Obstacle::Raise(exception));
    let Some(mapping) = enclaves::mapping_at(address) else {
        return raise(Exception::unmapped(address, pf::W));
    };
    let word = enclave.page_word(address);
    if mapping.prot & PROT_RW != PROT_RW {
        return raise(Exception::denied(address, pf::W | fault::present(word)));
    }
    if !core::ptr::eq(mapping.enclave, enclave) {
        return raise(Exception::sgx(address, pf::W));
    }
    if word & entry::MAPPED == 0 {
        return Err(Obstacle::Page { enclave, prot: mapping.prot, address });
    }
    if word & (entry::R | entry::W) != entry::R | entry::W {
        return raise(Exception::sgx(address, pf::W));
    }
    Ok(())
}

/// Takes the TCS and does what must happen before the first instruction.
///
/// Since the look at the TCS, the machine may have given its place in the window to another one, whose word looks
/// the same. So the place is looked at again once it is marked: a word that carries this thread's mark cannot
/// have been given away, or the swap would have removed the mark.
fn take(
    thread: &mut Thread,
    request: &Request,
    found: &Found,
    area: Option<&mut XsaveArea>,
) -> Result<Entered, Obstacle> {
    let slot = link::slot(thread);
    let owner = u64::from(thread.tid.load(Ordering::Relaxed)) & ((1 << tcs_word::OWNER_BITS) - 1);
    let taken = found.word | tcs_word::ACTIVE | owner << tcs_word::OWNER_SHIFT;
    thread.enclave.slot = Some(slot);
    thread.enclave.word_before = found.word;
    thread.enclave.word_taken = taken;
    // `undo` in a handler needs what was noted so far.
    compiler_fence(Ordering::SeqCst);
    let (word, held) = (found.tcs.word.as_ptr(), thread.enclave.held.as_ptr());
    // SAFETY: both words are valid and only accessed atomically, `held` also by handlers of this thread.
    if unsafe { usgx_tcs_take(word, found.word, taken, held) } == 0 {
        return Err(Obstacle::Again);
    }
    let ssa_before = thread.enclave.ssa;
    remember(thread, request, found.enclave, found.window, found.tcs);
    let (rip, fs, gs) = (
        found.tcs.entry.load(Ordering::Relaxed),
        found.tcs.fs_base.load(Ordering::Relaxed),
        found.tcs.gs_base.load(Ordering::Relaxed),
    );
    let nssa = found.tcs.nssa.load(Ordering::Relaxed);
    let address = found.tcs.address.load(Ordering::Relaxed);
    let mode = &mut thread.enclave;
    fence(Ordering::SeqCst);
    if address != request.tcs || mode.ssa != ssa_before || found.tcs.word.load(Ordering::SeqCst) != taken {
        return Err(Obstacle::Again);
    }
    let fields = Fields { rip, fs, gs, nssa };
    mode.publish();
    let cssa = (found.word >> tcs_word::CSSA_SHIFT) as u32;
    let frame = mode.frame(if request.resume { cssa - 1 } else { cssa });
    let missing = |mode: &Mode, at: u64| {
        let prot = enclaves::find(at).map_or(0, |(_, prot)| prot);
        debug_assert!(mode.in_elrange(at));
        Obstacle::Page { enclave: found.enclave, prot, address: at & !0xfff }
    };
    let gpr_at = Gpr::address(frame, mode.frame_size);

    let entered = if let Some(area) = area {
        let mut gpr = MaybeUninit::<Gpr>::uninit();
        let done = Gpr::fetch(gpr_at, &mut gpr).map_err(|at| missing(mode, at))?;
        if mode.notify && done.aexnotify & 1 != 0 {
            // Looked at again: another thread may have asked for it only now.
            check_next_frame(mode, found.enclave, cssa, fields.nssa)?;
            fresh(mode, request, found, cssa, &fields)?
        } else {
            let gpr = *done;
            if !is_canonical(gpr.rip) || !is_canonical(gpr.fs_base) || !is_canonical(gpr.gs_base) {
                return Err(Obstacle::Raise(Exception::GP));
            }
            area.fetch(frame, mode.xsave_size).map_err(|at| missing(mode, at))?;
            if !area.is_legal(mode.xfrm) {
                return Err(Obstacle::Raise(Exception::GP));
            }
            mode.cssa.store(cssa, Ordering::Relaxed);
            decrement_cssa(mode);
            save_segments(mode);
            segments::set(gpr.fs_base, gpr.gs_base);
            Entered::Resumed { gpr }
        }
    } else {
        fresh(mode, request, found, cssa, &fields)?
    };
    found.tcs.aep.store(request.aep, Ordering::Relaxed);
    if mode.dispatch {
        mode.selector.store(SELECTOR_BLOCK, Ordering::Relaxed);
    }
    Ok(entered)
}

/// The state change of EENTER, and of an ERESUME that notifies.
fn fresh(
    mode: &mut Mode,
    request: &Request,
    found: &Found,
    cssa: u32,
    fields: &Fields,
) -> Result<Entered, Obstacle> {
    let gpr_at = Gpr::address(mode.frame(cssa), mode.frame_size);
    if !Gpr::put_outside_stack(gpr_at, request.rsp, request.rbp) {
        let prot = enclaves::find(gpr_at).map_or(0, |(_, prot)| prot);
        return Err(Obstacle::Page { enclave: found.enclave, prot, address: gpr_at & !0xfff });
    }
    let Fields { rip, fs, gs, .. } = *fields;
    if !is_canonical(rip) || !is_canonical(fs) || !is_canonical(gs) {
        return Err(Obstacle::Raise(Exception::GP));
    }
    mode.cssa.store(cssa, Ordering::Relaxed);
    save_segments(mode);
    segments::set(fs, gs);
    Ok(Entered::Fresh { rip, rax: u64::from(cssa) })
}

/// Goes back one frame. Preconditions: the TCS is this thread's, and CSSA is not 0.
pub(super) fn decrement_cssa(mode: &mut Mode) {
    let (before, after) = (mode.word_taken, mode.word_taken - (1 << tcs_word::CSSA_SHIFT));
    mode.cssa.store(mode.cssa() - 1, Ordering::Relaxed);
    mode.word_taken = after;
    // If the machine has taken the TCS out of the window meanwhile, it learns CSSA at the next exit.
    if let Some(tcs) = mode.tcs {
        let _ = tcs.word.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed);
    }
}

fn save_segments(mode: &mut Mode) {
    (mode.outside_fs, mode.outside_gs) = segments::get();
    compiler_fence(Ordering::SeqCst);
    mode.segments.store(1, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
}

/// Gives FS and GS back to the outside.
pub(super) fn restore_segments(mode: &Mode) {
    if mode.segments.swap(0, Ordering::Relaxed) != 0 {
        segments::set(mode.outside_fs, mode.outside_gs);
    }
}

/// What [`undo`] leaves to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TcsLeft {
    /// Nothing.
    Inactive,
    /// The machine has taken the TCS out of the window while it was marked active: it has to be told
    /// ([`fault::give_back_tcs`]).
    AtMachine,
}

/// Takes an entry back that has got anywhere short of being inside. Makes no call.
pub(super) fn undo(thread: &Thread) -> TcsLeft {
    let mode = &thread.enclave;
    mode.selector.store(SELECTOR_ALLOW, Ordering::Relaxed);
    restore_segments(mode);
    mode.unpublish();
    if mode.held.swap(0, Ordering::Relaxed) == 0 {
        return TcsLeft::Inactive;
    }
    let Some(tcs) = mode.tcs else { return TcsLeft::Inactive };
    // Only this thread's own mark is taken back: the place may be another TCS's by now.
    let undone =
        tcs.word.compare_exchange(mode.word_taken, mode.word_before, Ordering::AcqRel, Ordering::Relaxed);
    if undone.is_ok() {
        return TcsLeft::Inactive;
    }
    mode.cssa.store((mode.word_before >> tcs_word::CSSA_SHIFT) as u32, Ordering::Relaxed);
    TcsLeft::AtMachine
}

pub(super) fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

/// Replaces `*word`, if it is `before`, by `after`, and then sets `*held`. A handler that interrupts between
/// the two finds out by the instruction pointer and ZF ([`note_take`]).
#[unsafe(naked)]
unsafe extern "C" fn usgx_tcs_take(word: *mut u64, before: u64, after: u64, held: *mut u32) -> u64 {
    naked_asm!(
        "mov rax, rsi",
        "lock cmpxchg qword ptr [rdi], rdx",
        ".globl usgx_tcs_swapped",
        "usgx_tcs_swapped:",
        "jne 2f",
        ".globl usgx_tcs_taken",
        "usgx_tcs_taken:",
        "mov dword ptr [rcx], 1",
        "mov eax, 1",
        "ret",
        "2:",
        "xor eax, eax",
        "ret",
    )
}

unsafe extern "C" {
    static usgx_tcs_swapped: u8;
    static usgx_tcs_taken: u8;
}

/// If the interrupted instruction stands between taking the TCS and noting so, notes it.
pub(super) fn note_take(thread: &Thread, uc: &Ucontext) {
    const ZF: u64 = 1 << 6;
    let swapped = uc.mcontext.rip == &raw const usgx_tcs_swapped as u64 && uc.mcontext.eflags & ZF != 0;
    if swapped || uc.mcontext.rip == &raw const usgx_tcs_taken as u64 {
        thread.enclave.held.store(1, Ordering::Relaxed);
    }
}

/// Enters for the vDSO function, whose operands are in `block`; says where and with which RAX, or gives up. The program's signals are open.
pub(super) fn enter_quietly(thread: &mut Thread, block: &vdso::Block, block_at: u64) -> Option<(u64, u64)> {
    let request = Request {
        resume: false,
        tcs: block.rbx,
        aep: vdso::enclu_address(),
        rsp: vdso::Block::outside_rsp(block_at),
        rbp: block.rbp,
        trap_flag: false,
    };
    match attempt(thread, &request, None) {
        Ok(Entered::Fresh { rip, rax }) => Some((rip, rax)),
        _ => None,
    }
}
