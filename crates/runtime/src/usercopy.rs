//! Guarded copies of the program's memory.
//!
//! The program's addresses are allegations. One instruction touches them, [`usgx_copy`]'s `rep movsb`; when it
//! faults, the handler calls [`fixup`], which lets the copy end early. What could not be copied is the
//! caller's to judge (usually EFAULT).

use core::arch::naked_asm;

use crate::signals::frame::Ucontext;

/// Copies RDX bytes from RSI to RDI; returns how many bytes were left when a fault stopped it.
#[unsafe(naked)]
unsafe extern "C" fn usgx_copy(dest: *mut u8, src: *const u8, len: usize) -> usize {
    naked_asm!(
        "mov rcx, rdx",
        ".globl usgx_copy_movsb",
        "usgx_copy_movsb:",
        "rep movsb",
        ".globl usgx_copy_fixup",
        "usgx_copy_fixup:",
        "mov rax, rcx",
        "ret",
    )
}

unsafe extern "C" {
    static usgx_copy_movsb: u8;
    static usgx_copy_fixup: u8;
}

/// Copies `len` bytes from the program's address `src`; returns how many were copied before a fault.
///
/// # Safety
/// `dest` is valid for writes of `len` bytes and is not memory of the program.
pub unsafe fn copy_in(dest: *mut u8, src: u64, len: usize) -> usize {
    // SAFETY: a fault on `src` ends the copy; the caller vouches for `dest`.
    len - unsafe { usgx_copy(dest, src as *const u8, len) }
}

/// Copies `len` bytes to the program's address `dest`; returns how many were copied before a fault.
///
/// # Safety
/// `src` is valid for reads of `len` bytes; `dest` is not memory that Rust code owns.
pub unsafe fn copy_out(dest: u64, src: *const u8, len: usize) -> usize {
    // SAFETY: a fault on `dest` ends the copy; the caller vouches for `src`.
    len - unsafe { usgx_copy(dest as *mut u8, src, len) }
}

/// Marks types that any bytes make a valid value of, and that have no padding.
///
/// # Safety
/// As just said.
pub unsafe trait Plain: Copy {}
// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for i32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: an array of such.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Reads a value from the program's memory.
pub fn get<T: Plain>(address: u64) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: `value` has room for its size.
    let done = unsafe { copy_in(value.as_mut_ptr().cast(), address, size_of::<T>()) };
    // SAFETY: all bytes are written, and any bytes are valid.
    (done == size_of::<T>()).then(|| unsafe { value.assume_init() })
}

/// Writes a value to the program's memory; whether all of it got there.
#[must_use]
pub fn put<T: Plain>(address: u64, value: &T) -> bool {
    // SAFETY: `value` is readable; `address` is an address of the program.
    (unsafe { copy_out(address, (&raw const *value).cast(), size_of::<T>()) }) == size_of::<T>()
}

/// If the exception hit a guarded copy, lets that copy end early.
pub fn fixup(uc: &mut Ucontext) -> bool {
    if uc.mcontext.rip != &raw const usgx_copy_movsb as u64 {
        return false;
    }
    uc.mcontext.rip = &raw const usgx_copy_fixup as u64;
    true
}
