//! The asynchronous exit: the enclave's state goes into the SSA frame, the program sees synthetic registers.
//!
//! It never fails and never faults. The stores are guarded copies; what does not get through (the page is on
//! its way out of the EPC, or the program has taken the mapping's protection away) is handed to the machine,
//! which stores it where the page's bytes are. Only when all is stored does the thread count as outside.
//! Source: SDM volume 3D, "Asynchronous Enclave Exit".

use core::sync::atomic::Ordering;

use usgx_wire::slot::{NR_WORDS, call};
use usgx_wire::window::tcs_word;

use super::exception::{Exception, pf, vector};
use super::frame::{EXINFO_SIZE, Gpr, HEADER, Image, LEGACY_WRITTEN};
use super::mode::{OUTSIDE, SELECTOR_ALLOW};
use super::{entry, fault, segments};
use crate::signals::frame::Ucontext;
use crate::thread::Thread;
use crate::{link, usercopy};

const PAGE: u64 = 4096;
const TF: u64 = 1 << 8;
/// CF, PF, AF, ZF, SF, OF, RF.
const CLEARED_FLAGS: u64 = 0x0001_08d5;
const ERESUME: u64 = 3;
const MISC_EXINFO: u32 = 1 << 0;

/// Leaves the enclave asynchronously; `event` is the exception that causes it, if one does. Preconditions: the
/// thread is inside, and the context is the enclave's.
pub(super) fn exit(thread: &mut Thread, uc: &mut Ucontext, event: Option<&Exception>) {
    let cssa = thread.enclave.cssa();
    let frame = thread.enclave.frame(cssa);
    let gpr_at = Gpr::address(frame, thread.enclave.frame_size);

    save_registers(thread, uc, event, gpr_at);
    save_extended(thread, uc, frame);
    let [ursp, urbp] = outside_stack(thread, gpr_at);
    make_synthetic(thread, uc, event, ursp, urbp);

    entry::restore_segments(&thread.enclave);
    release_tcs(thread, cssa + 1);
    thread.enclave.unpublish();
    thread.enclave.selector.store(SELECTOR_ALLOW, Ordering::Relaxed);
    thread.enclave.set_phase(OUTSIDE);
}

/// Ends an exception or an interrupt that the program does not get to see: the thread has left and come back. That
/// is bookkeeping alone, unless the enclave wants to be told (AEX-Notify): then the exit is made, and the ERESUME at
/// the AEP tells.
pub(super) fn come_back(thread: &mut Thread, uc: &mut Ucontext, event: Option<&Exception>) {
    if wants_notice(thread) {
        exit(thread, uc, event);
    } else {
        thread.enclave.refresh();
    }
}

/// Whether an exit now would be told of at the ERESUME from it. A frame that cannot be read now may say so.
pub(super) fn wants_notice(thread: &Thread) -> bool {
    let mode = &thread.enclave;
    mode.is_inside() && mode.is_notified(mode.cssa()) != Some(false)
}

fn save_registers(thread: &mut Thread, uc: &Ucontext, event: Option<&Exception>, gpr_at: u64) {
    let miscselect = thread.enclave.miscselect;
    let exitinfo = event.map_or(0, |event| exit_information(event, miscselect));
    let gpr = Gpr::save(uc, exitinfo, segments::get());
    for (offset, bytes) in gpr.stored() {
        store(thread, gpr_at + offset, bytes);
    }
    if let Some(event) = event
        && miscselect & MISC_EXINFO != 0
        && matches!(event.vector, vector::PF | vector::GP)
    {
        let mut exinfo = [0_u8; EXINFO_SIZE as usize];
        exinfo[..8].copy_from_slice(&event.address.to_le_bytes());
        exinfo[8..12].copy_from_slice(&event.error.to_le_bytes());
        store(thread, gpr_at - EXINFO_SIZE, &exinfo);
    }
}

/// EXITINFO: vector, type and VALID of a reported exception, otherwise 0.
fn exit_information(event: &Exception, miscselect: u32) -> u32 {
    const VALID: u32 = 1 << 31;
    const HARDWARE: u32 = 3 << 8;
    const SOFTWARE: u32 = 6 << 8;
    let number = u32::from(event.vector);
    match event.vector {
        vector::BP => VALID | SOFTWARE | number,
        vector::DE | vector::DB | vector::BR | vector::UD | vector::MF | vector::AC | vector::XM => {
            VALID | HARDWARE | number
        }
        vector::GP | vector::PF if miscselect & MISC_EXINFO != 0 => VALID | HARDWARE | number,
        _ => 0,
    }
}

/// The XSAVE area, in the standard format, with mask XFRM.
fn save_extended(thread: &mut Thread, uc: &Ucontext, frame: u64) {
    let Some(image) = Image::of(uc) else { return };
    let xfrm = thread.enclave.xfrm;
    let area_size = thread.enclave.xsave_size as usize;
    let valid = image.valid() & xfrm;
    store(thread, frame, image.bytes(0, LEGACY_WRITTEN));
    let mut header = [0_u8; 64];
    header[..8].copy_from_slice(&valid.to_le_bytes());
    store(thread, frame + HEADER as u64, &header);
    for (index, offset, size) in image.components(xfrm) {
        if valid & 1 << index != 0 && offset + size <= area_size {
            store(thread, frame + offset as u64, image.bytes(offset, size));
        }
    }
}

/// URSP and URBP, which the enclave may have changed. If the frame's page is not mapped it is asked for, as the
/// processor would read it; at worst they are what they were at entry.
fn outside_stack(thread: &mut Thread, gpr_at: u64) -> [u64; 2] {
    const TRIES: u32 = 8;
    for _ in 0..TRIES {
        if let Some(both) = Gpr::outside_stack(gpr_at) {
            return both;
        }
        if !fault::read_in(thread, gpr_at) {
            break;
        }
    }
    [thread.enclave.entry_rsp, thread.enclave.entry_rbp]
}

fn make_synthetic(thread: &Thread, uc: &mut Ucontext, event: Option<&Exception>, ursp: u64, urbp: u64) {
    let mode = &thread.enclave;
    if let Some(image) = Image::of(uc) {
        let number = event.map(|event| event.vector);
        let (fcw, fsw) = if number == Some(vector::MF) { (0x37e, 0x8081) } else { (0x37f, 0) };
        let mxcsr = if number == Some(vector::XM) { 0x1f01 } else { 0x1fb0 };
        image.reset_legacy(fcw, fsw, mxcsr);
        image.set_valid(mode.xfrm, 0);
    }
    let registers = &mut uc.mcontext;
    registers.rax = ERESUME;
    registers.rbx = mode.tcs_address;
    registers.rcx = mode.aep;
    (registers.rdx, registers.rsi, registers.rdi) = (0, 0, 0);
    (registers.r8, registers.r9, registers.r10, registers.r11) = (0, 0, 0, 0);
    (registers.r12, registers.r13, registers.r14, registers.r15) = (0, 0, 0, 0);
    registers.rsp = ursp;
    registers.rbp = urbp;
    registers.rip = mode.aep;
    registers.eflags &= !CLEARED_FLAGS;
    restore_trap_flag(mode.opt_in, mode.trap_flag, uc);
}

/// Sets TF as it is after an exit.
pub(super) fn restore_trap_flag(opt_in: bool, trap_flag: bool, uc: &mut Ucontext) {
    if !opt_in {
        uc.mcontext.eflags = uc.mcontext.eflags & !TF | if trap_flag { TF } else { 0 };
    }
}

/// Makes the TCS inactive with this CSSA, in the window or, if it is no longer there, at the machine.
pub(super) fn release_tcs(thread: &mut Thread, cssa: u32) {
    let mode = &thread.enclave;
    mode.held.store(0, Ordering::Relaxed);
    mode.cssa.store(cssa, Ordering::Relaxed);
    let after = tcs_word::VALID | u64::from(cssa) << tcs_word::CSSA_SHIFT;
    let in_window = mode.live_tcs().is_some_and(|tcs| {
        tcs.word.compare_exchange(mode.word_taken, after, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    });
    if in_window {
        return;
    }
    fault::give_back_tcs(thread);
}

/// Stores into the SSA, by whichever way works.
fn store(thread: &mut Thread, address: u64, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let at = address + done as u64;
        // SAFETY: `rest` is readable; the address is the enclave's, and the copy is guarded.
        done += unsafe { usercopy::copy_out(at, rest.as_ptr(), rest.len()) };
        if done < bytes.len() {
            done += store_by_machine(thread, address + done as u64, &bytes[done..]);
        }
    }
}

/// Has the machine store the part of `bytes` that lies within one page; returns how much that is.
fn store_by_machine(thread: &mut Thread, address: u64, bytes: &[u8]) -> usize {
    let room = (PAGE - address % PAGE) as usize;
    let part = &bytes[..bytes.len().min(room)];
    // SAFETY: the data area is larger than a page, and no call is under way that uses it.
    unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), link::data(thread), part.len()) };
    let mut words = [0; NR_WORDS];
    words[..4].copy_from_slice(&[call::STORE_SSA, thread.enclave.handle, address, part.len() as u64]);
    // A machine that refuses has lost the enclave, and with it whoever could miss the bytes.
    link::slot_call(thread, words);
    part.len()
}

/// The error code with which an SSA page is asked for.
pub(super) const READ: u32 = pf::U;
