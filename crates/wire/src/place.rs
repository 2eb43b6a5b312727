//! Where the runtime lives in a program's address space: fixed addresses, far from what loaders, sanitizers
//! and garbage collectors use.
//!
//! They are fixed because a seccomp filter survives `execve` and knows the runtime by its addresses.

/// First address of everything that belongs to the runtime.
pub const RUNTIME_BASE: u64 = 0x2a00_0000_0000;
/// Bytes reserved for the runtime's image (code and data). System calls from here pass the seccomp filter.
pub const IMAGE_SIZE: u64 = 0x0100_0000;
/// The vDSO image that programs find by `AT_SYSINFO_EHDR`.
pub const VDSO_BASE: u64 = RUNTIME_BASE + IMAGE_SIZE;
/// Bytes reserved for the vDSO image.
pub const VDSO_SIZE: u64 = 0x1_0000;
/// The region shared with the machine ([`crate::process`]).
pub const REGION_BASE: u64 = RUNTIME_BASE + 0x1000_0000;
/// Records of threads: one stride each, an alternate signal stack below the record.
pub const THREADS_BASE: u64 = RUNTIME_BASE + 0x1_0000_0000;
/// Bytes from one thread's record to the next; a power of two, so that a stack pointer names its record.
pub const THREAD_STRIDE: u64 = 0x4_0000;
/// Most threads of one process.
pub const MAX_THREADS: u64 = 0x4000;
/// Windows of enclaves ([`crate::window`]) are mapped from here on.
pub const WINDOWS_BASE: u64 = RUNTIME_BASE + 0x10_0000_0000;
/// End of everything that belongs to the runtime.
pub const RUNTIME_END: u64 = RUNTIME_BASE + 0x100_0000_0000;
