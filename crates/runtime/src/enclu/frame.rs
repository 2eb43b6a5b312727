//! The SSA frame: GPRSGX, EXINFO and the XSAVE area, to and from a signal's context.
//!
//! Everything here reads and writes enclave memory by guarded copies, and says where a copy stopped. Layouts:
//! SDM volume 3D, "State Save Area (SSA) Frame".

use core::mem::{MaybeUninit, offset_of};

use super::segments;
use crate::signals::frame::{FP_MAGIC1, FpState, Ucontext};
use crate::usercopy;

/// GPRSGX.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "registers")]
pub(super) struct Gpr {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rflags: u64,
    pub rip: u64,
    pub ursp: u64,
    pub urbp: u64,
    pub exitinfo: u32,
    pub reserved: [u8; 3],
    pub aexnotify: u8,
    pub fs_base: u64,
    pub gs_base: u64,
}

const _: () = assert!(size_of::<Gpr>() == 184);
const _: () = assert!(offset_of!(Gpr, ursp) == 144 && offset_of!(Gpr, aexnotify) == 167);

/// Bytes of EXINFO, which ends where GPRSGX starts.
pub(super) const EXINFO_SIZE: u64 = 16;

impl Gpr {
    /// Where GPRSGX is in a frame.
    pub(super) fn address(frame: u64, frame_size: u64) -> u64 {
        frame + frame_size - size_of::<Self>() as u64
    }

    /// Reads it; the error is the address that could not be read.
    pub(super) fn fetch(address: u64, into: &mut MaybeUninit<Self>) -> Result<&Self, u64> {
        // SAFETY: there is room for it.
        let done = unsafe { usercopy::copy_in(into.as_mut_ptr().cast(), address, size_of::<Self>()) };
        if done < size_of::<Self>() {
            return Err(address + done as u64);
        }
        // SAFETY: all bytes are written, and any bytes are valid.
        Ok(unsafe { into.assume_init_ref() })
    }

    /// Stores URSP and URBP, as EENTER does.
    pub(super) fn put_outside_stack(address: u64, rsp: u64, rbp: u64) -> bool {
        usercopy::put(address + offset_of!(Self, ursp) as u64, &[rsp, rbp])
    }

    /// Reads URSP and URBP.
    pub(super) fn outside_stack(address: u64) -> Option<[u64; 2]> {
        usercopy::get(address + offset_of!(Self, ursp) as u64)
    }

    /// Reads bit 0 of AEXNOTIFY.
    pub(super) fn aexnotify(address: u64) -> Option<bool> {
        usercopy::get::<u8>(address + offset_of!(Self, aexnotify) as u64).map(|byte| byte & 1 != 0)
    }

    /// The interrupted registers, as an asynchronous exit saves them.
    pub(super) fn save(uc: &Ucontext, exitinfo: u32, bases: (u64, u64)) -> Self {
        let from = &uc.mcontext;
        const TF: u64 = 1 << 8;
        Self {
            rax: from.rax,
            rcx: from.rcx,
            rdx: from.rdx,
            rbx: from.rbx,
            rsp: from.rsp,
            rbp: from.rbp,
            rsi: from.rsi,
            rdi: from.rdi,
            r8: from.r8,
            r9: from.r9,
            r10: from.r10,
            r11: from.r11,
            r12: from.r12,
            r13: from.r13,
            r14: from.r14,
            r15: from.r15,
            rflags: from.eflags & !TF,
            rip: from.rip,
            ursp: 0,
            urbp: 0,
            exitinfo,
            reserved: [0; 3],
            aexnotify: 0,
            fs_base: bases.0,
            gs_base: bases.1,
        }
    }

    /// The parts that an asynchronous exit stores: offset and bytes. URSP, URBP and the byte AEXNOTIFY stay as
    /// the enclave left them.
    pub(super) fn stored(&self) -> [(u64, &[u8]); 3] {
        let bytes: *const u8 = (&raw const *self).cast();
        let part = |from: usize, to: usize| {
            // SAFETY: within the structure, which has no padding.
            (from as u64, unsafe { core::slice::from_raw_parts(bytes.add(from), to - from) })
        };
        [
            part(0, offset_of!(Self, ursp)),
            part(offset_of!(Self, exitinfo), offset_of!(Self, reserved)),
            part(offset_of!(Self, fs_base), size_of::<Self>()),
        ]
    }

    /// Loads general registers and RIP; the flags are the caller's.
    pub(super) fn load(&self, uc: &mut Ucontext) {
        let to = &mut uc.mcontext;
        to.rax = self.rax;
        to.rcx = self.rcx;
        to.rdx = self.rdx;
        to.rbx = self.rbx;
        to.rsp = self.rsp;
        to.rbp = self.rbp;
        to.rsi = self.rsi;
        to.rdi = self.rdi;
        to.r8 = self.r8;
        to.r9 = self.r9;
        to.r10 = self.r10;
        to.r11 = self.r11;
        to.r12 = self.r12;
        to.r13 = self.r13;
        to.r14 = self.r14;
        to.r15 = self.r15;
        to.rip = self.rip;
    }
}

/// Bytes of the legacy region that XSAVE writes: x87, MXCSR and XMM.
pub(super) const LEGACY_WRITTEN: usize = 416;
/// Offset of the XSAVE header.
pub(super) const HEADER: usize = 512;
const HEADER_SIZE: usize = 64;
/// x87 and SSE.
const LEGACY_COMPONENTS: u64 = 3;

/// A copy of a frame's XSAVE area.
///
/// # Invariants
/// The first `size` bytes are written; once fetched that is at least [`Self::MIN`].
pub(super) struct XsaveArea {
    bytes: MaybeUninit<[u8; Self::MAX]>,
    size: usize,
}

impl XsaveArea {
    /// Legacy region and header.
    pub(super) const MIN: usize = HEADER + HEADER_SIZE;
    /// More than any processor has today (11 KiB with tiles).
    pub(super) const MAX: usize = 16 * 1024;

    /// Room for an area.
    pub(super) fn new() -> Self {
        Self { bytes: MaybeUninit::uninit(), size: 0 }
    }

    fn part(&self, from: usize, len: usize) -> Option<&[u8]> {
        let within = from.checked_add(len)? <= self.size;
        // SAFETY: by the invariant these bytes are written.
        within
            .then(|| unsafe { core::slice::from_raw_parts(self.bytes.as_ptr().cast::<u8>().add(from), len) })
    }

    fn word(&self, offset: usize) -> u64 {
        self.part(offset, 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    /// Reads `size` bytes (at least [`Self::MIN`], at most [`Self::MAX`]); the error is where it stopped.
    pub(super) fn fetch(&mut self, frame: u64, size: u32) -> Result<(), u64> {
        let size = (size as usize).clamp(Self::MIN, Self::MAX);
        // SAFETY: there is room for MAX bytes.
        let done = unsafe { usercopy::copy_in(self.bytes.as_mut_ptr().cast(), frame, size) };
        // INVARIANT: the copy has written `done` bytes.
        self.size = done;
        if done < size { Err(frame + done as u64) } else { Ok(()) }
    }

    /// Whether XRSTOR would accept it with this mask. Preconditions: fetched.
    pub(super) fn is_legal(&self, xfrm: u64) -> bool {
        const MXCSR: usize = 24;
        // All bits that any processor defines, MM and DAZ among them.
        const MXCSR_DEFINED: u32 = 0x2_ffff;
        let mxcsr = self.word(MXCSR) as u32;
        self.word(HEADER) & !xfrm == 0
            && self.word(HEADER + 8) == 0
            && self.word(HEADER + 16) == 0
            && mxcsr & !MXCSR_DEFINED == 0
    }

    /// Puts the components of `xfrm` into the context. Preconditions: fetched and legal.
    pub(super) fn load(&self, uc: &mut Ucontext, xfrm: u64) {
        let Some(image) = Image::of(uc) else { return };
        let valid = self.word(HEADER);
        self.load_legacy(&image, valid);
        for (index, offset, size) in image.components(xfrm) {
            if valid & 1 << index != 0 {
                image.put(offset, self.part(offset, size));
            }
        }
        image.set_valid(xfrm, valid & xfrm);
    }

    /// Loads x87 and SSE, or puts them into their initial configuration where the header says so. MXCSR is
    /// loaded whatever the header says.
    fn load_legacy(&self, image: &Image, valid: u64) {
        const MXCSR: usize = 24;
        const ST: usize = 32;
        const XMM: usize = 160;
        image.reset_legacy(0x37f, 0, 0);
        image.put(MXCSR, self.part(MXCSR, 4));
        if valid & 1 != 0 {
            image.put(0, self.part(0, MXCSR));
            image.put(ST, self.part(ST, XMM - ST));
        }
        if valid & 2 != 0 {
            image.put(XMM, self.part(XMM, LEGACY_WRITTEN - XMM));
        }
    }
}

/// The extended state in a signal's context.
///
/// # Invariants
/// `base` is the kernel's FXSAVE or XSAVE image on this thread's runtime stack; `size` bytes of it are valid.
pub(super) struct Image {
    base: *mut u8,
    size: usize,
    extended: bool,
}

impl Image {
    /// The image of a context.
    pub(super) fn of(uc: &Ucontext) -> Option<Self> {
        let base = uc.mcontext.fpstate as *mut FpState;
        if base.is_null() {
            return None;
        }
        // SAFETY: the kernel put the image there, and the runtime passes only the kernel's contexts.
        let (magic, size) = unsafe { ((*base).magic1, (*base).xstate_size) };
        let extended = magic == FP_MAGIC1 && size as usize >= XsaveArea::MIN;
        // INVARIANT: without the magic word the kernel has written 512 bytes only.
        Some(Self { base: base.cast(), size: if extended { size as usize } else { HEADER }, extended })
    }

    /// XSTATE_BV: the components that are not in their initial configuration.
    pub(super) fn valid(&self) -> u64 {
        if !self.extended {
            return LEGACY_COMPONENTS;
        }
        // SAFETY: by the invariant the header is there.
        unsafe { self.base.add(HEADER).cast::<u64>().read_unaligned() }
    }

    /// Marks the components of `xfrm` that are in `valid` as valid, the others of `xfrm` as initial.
    pub(super) fn set_valid(&self, xfrm: u64, valid: u64) {
        if self.extended {
            let now = self.valid() & !(xfrm & !LEGACY_COMPONENTS) | valid | LEGACY_COMPONENTS;
            // SAFETY: by the invariant the header is there.
            unsafe { self.base.add(HEADER).cast::<u64>().write_unaligned(now) };
        }
    }

    /// Components of `xfrm` beyond x87 and SSE that the image has room for: index, offset, size.
    pub(super) fn components(&self, xfrm: u64) -> impl Iterator<Item = (u32, usize, usize)> {
        let size = if self.extended { self.size } else { 0 };
        (2..32_u32).filter(move |index| xfrm & 1 << index != 0).filter_map(move |index| {
            let (offset, length) = segments::component(index)?;
            (offset + length <= size.min(XsaveArea::MAX)).then_some((index, offset, length))
        })
    }

    fn put(&self, offset: usize, from: Option<&[u8]>) {
        let Some(from) = from else { return };
        if offset + from.len() <= self.size {
            // SAFETY: within the image, and nothing of ours overlaps it.
            unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), self.base.add(offset), from.len()) };
        }
    }

    /// Bytes of the image.
    pub(super) fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        let len = len.min(self.size.saturating_sub(offset));
        // SAFETY: within the image, which nobody changes while it is borrowed.
        unsafe { core::slice::from_raw_parts(self.base.add(offset), len) }
    }

    /// Puts x87 and SSE into their initial configuration, with these exceptions.
    pub(super) fn reset_legacy(&self, fcw: u16, fsw: u16, mxcsr: u32) {
        let image = self.base.cast::<FpState>();
        // SAFETY: by the invariant the legacy region is there.
        unsafe {
            core::ptr::write_bytes(self.base, 0, 24);
            core::ptr::write_bytes(self.base.add(32), 0, LEGACY_WRITTEN - 32);
            (*image).cwd = fcw;
            (*image).swd = fsw;
            (*image).mxcsr = mxcsr;
        }
    }
}
