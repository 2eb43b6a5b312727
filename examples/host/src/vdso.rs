//! Finding `__vdso_sgx_enter_enclave`, as the kernel's own tests do: the vDSO is an ELF image in memory, whose
//! address is in the auxiliary vector; its dynamic section leads to a hash table of its symbols.

use std::ffi::CStr;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;

/// The image.
struct Vdso {
    base: *const u8,
}

impl Vdso {
    /// Reads a value at an offset.
    ///
    /// # Safety
    ///
    /// The image is the kernel's (or one made like it), and the offset is one that it names itself.
    unsafe fn read<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: By the caller's promise the value is inside of the mapped image.
        unsafe { self.base.wrapping_add(offset as usize).cast::<T>().read_unaligned() }
    }

    /// The function's address, if the image has it.
    fn find(&self, name: &CStr) -> Option<usize> {
        // SAFETY: All offsets come from the image's headers and tables, read as the ELF specification says.
        unsafe {
            let (headers, count): (u64, u16) = (self.read(32), self.read(56));
            let header = |index: u16| headers + 56 * u64::from(index);
            let of_type = |wanted| (0..count).map(header).find(|&at| self.read::<u32>(at) == wanted);
            let (load, dynamic) = (of_type(PT_LOAD)?, of_type(PT_DYNAMIC)?);
            let linked_at: u64 = self.read::<u64>(load + 16).wrapping_sub(self.read(load + 8));
            let dynamic: u64 = self.read(dynamic + 8);
            let entry = |wanted| {
                let mut entries = (0..).map(|index| dynamic + 16 * index);
                let found = entries.find(|&at| {
                    let tag = self.read::<u64>(at);
                    tag == wanted || tag == 0
                })?;
                (self.read::<u64>(found) == wanted)
                    .then(|| self.read::<u64>(found + 8).wrapping_sub(linked_at))
            };
            let (hashes, strings, symbols) = (entry(DT_HASH)?, entry(DT_STRTAB)?, entry(DT_SYMTAB)?);
            let nr_buckets: u32 = self.read(hashes);
            let bucket = hash(name.to_bytes()) % nr_buckets;
            let mut index: u32 = self.read(hashes + 8 + 4 * u64::from(bucket));
            while index != 0 {
                let symbol = symbols + 24 * u64::from(index);
                let string = strings + u64::from(self.read::<u32>(symbol));
                if CStr::from_ptr(self.base.wrapping_add(string as usize).cast()) == name {
                    let value = self.read::<u64>(symbol + 8).wrapping_sub(linked_at);
                    return Some(self.base.addr() + value as usize);
                }
                index = self.read(hashes + 8 + 4 * u64::from(nr_buckets) + 4 * u64::from(index));
            }
            None
        }
    }
}

fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0, |hash: u32, &byte| {
        let hash = (hash << 4).wrapping_add(byte.into());
        let high = hash & 0xf000_0000;
        (hash ^ high >> 24) & !high
    })
}

/// The address of the function by which enclaves are entered; `None` on a kernel without SGX.
pub(crate) fn enter_function() -> Option<usize> {
    // SAFETY: `getauxval` reads the auxiliary vector and has no preconditions.
    let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    if base == 0 { None } else { Vdso { base: base as *const u8 }.find(c"__vdso_sgx_enter_enclave") }
}
