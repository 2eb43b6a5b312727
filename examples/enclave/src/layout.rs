//! The enclave's address space, as offsets from its base. The loader's build script reads this file too.
//!
//! | from | what |
//! |---|---|
//! | 0 | code, constants, data, as the linker lays them out |
//! | [`THREADS`] | for each thread: TCS, SSA frames, a hole that stops an overflowing stack, the stack |
//! | [`HEAP`] | the heap |

/// Bytes of the whole enclave; the processor demands a power of two.
pub(crate) const SIZE: usize = 0x800_0000;
/// The first thread's TCS.
pub(crate) const THREADS: usize = 0x10_0000;
/// From one thread's TCS to the next.
pub(crate) const THREAD_STRIDE: usize = 0x2_0000;
/// How many threads can be inside at a time.
pub(crate) const NR_THREADS: usize = 2;
/// SSA frames of a thread, of one page each: one for an exception, one for an exception in its handler.
pub(crate) const NR_SSA_FRAMES: usize = 2;
/// First page of a thread's stack, from its TCS.
pub(crate) const STACK_BOTTOM: usize = 0x4000;
/// End of a thread's stack, from its TCS.
pub(crate) const STACK_TOP: usize = 0x1_4000;
/// The heap's first byte.
pub(crate) const HEAP: usize = 0x400_0000;
/// Bytes of the heap.
pub(crate) const HEAP_SIZE: usize = 0x400_0000;
