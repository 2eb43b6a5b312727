//! Memory of the program around the enclave: never trusted, copied once, and never the enclave's own.

use crate::layout;

fn base() -> *mut u8 {
    let base: *mut u8;
    // SAFETY: The instruction only computes an address. Written out, because a compiler may fetch the address
    // of a symbol from a table that somebody would have to relocate.
    unsafe { core::arch::asm!("lea {}, [rip + enclave_base]", out(reg) base, options(pure, nomem, nostack)) };
    base
}

/// The heap's first byte.
pub(crate) fn heap() -> *mut u8 {
    base().wrapping_add(layout::HEAP)
}

/// Tells whether a range lies wholly outside the enclave: without this check a caller could make the enclave
/// read or overwrite its own secrets.
fn is_outside(address: usize, length: usize) -> bool {
    match address.checked_add(length) {
        Some(end) => end <= base().addr() || address >= base().addr() + layout::SIZE,
        None => false,
    }
}

/// Copies out of the program's memory; false if the range is not outside.
pub(crate) fn read(address: usize, into: &mut [u8]) -> bool {
    if !is_outside(address, into.len()) {
        return false;
    }
    for (index, byte) in into.iter_mut().enumerate() {
        // SAFETY: The address is outside the enclave; if nothing is mapped there, the access faults and the
        // program around us has to deal with it. Volatile, because others can write there at any time.
        *byte = unsafe { core::ptr::read_volatile((address + index) as *const u8) };
    }
    true
}

/// Copies into the program's memory; false if the range is not outside.
pub(crate) fn write(address: usize, from: &[u8]) -> bool {
    if !is_outside(address, from.len()) {
        return false;
    }
    for (index, &byte) in from.iter().enumerate() {
        // SAFETY: As in `read`.
        unsafe { core::ptr::write_volatile((address + index) as *mut u8, byte) };
    }
    true
}
