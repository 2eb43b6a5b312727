//! The runtime: what usgx puts into the address space of every process of a run.
//!
//! It makes the process believe that the processor has SGX and the kernel its driver: it answers the few
//! system calls that concern SGX, carries out `ENCLU`, and stands between the program and its signals. It is
//! freestanding (no libc, no allocation, no thread-local storage, no panics that unwind) because it runs
//! inside other people's programs, in signal handlers, on threads that it did not make, and with FS and GS
//! belonging to somebody else.
//!
//! What code here may do: raw system calls ([`arch::syscall`]), memory of its own (the image, thread records,
//! the shared region), and guarded copies of the program's memory ([`usercopy`]). It never assumes that an
//! address of the program is valid. Locks are spin-and-futex locks taken only with the program's signals
//! blocked, so no handler of the program runs on top of a holder.
//!
//! The map:
//! - [`start`]: from the injected image to the program's own first instruction.
//! - [`thread`], [`process`]: records of threads; what the process knows. [`link`]: calls to the machine.
//! - [`filter`], [`syscalls`], [`devices`], [`listing`]: system calls that are trapped, the devices that appear, and the
//!   directories that show them. [`procfs`]: what the runtime asks `/proc`.
//! - [`signals`]: the runtime's handlers, and the program's behind them.
//! - [`enclaves`]: enclaves and their mappings in this process. [`source`]: pages that go into them. [`enclu`]: entry, exit, asynchronous exit.
//! - [`cpuid`]: CPUID as the profile's processor answers it.

#![no_std]
#![no_main]

mod arch;
mod cpuid;
mod devices;
mod enclaves;
mod enclu;
mod filter;
mod link;
mod listing;
mod process;
mod procfs;
mod signals;
mod source;
mod start;
mod syscalls;
mod thread;
mod usercopy;

use core::panic::PanicInfo;

/// Ends the process: a panic here is a bug of the runtime, and there is nothing to unwind.
#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    arch::fatal("usgx: the runtime has failed an assertion; please report this\n")
}
