//! What the standard library would bring: an allocator (one that has no memory) and a panic handler.

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

struct NoMemory;

// SAFETY: it never hands out memory, which the contract allows.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _layout: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _pointer: *mut u8, _layout: Layout) {}
}

#[global_allocator]
static ALLOCATOR: NoMemory = NoMemory;

#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
