//! The device, the vDSO's function and ENCLU: what an SGX program does that no safe crate does for it.
#![expect(unsafe_code, reason = "enters enclaves")]

use std::arch::{asm, global_asm};
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr;

use anyhow::{Context as _, Result, ensure};

use super::image::{FIRST_DATA, Image, PAGE_SIZE, Region, SIGSTRUCT_SIZE};

const CREATE: libc::c_ulong = 0x4008_a400;
const ADD_PAGES: libc::c_ulong = 0xc030_a401;
const INIT: libc::c_ulong = 0x4008_a402;
const MODIFY_TYPES: libc::c_ulong = 0xc028_a406;
const REMOVE_PAGES: libc::c_ulong = 0xc018_a407;
const EENTER: u32 = 2;
const EEXIT: u32 = 4;

// The enclave. RDI: address of the first page, RSI: how many. With RDX = 0 it reads a word of each page. Otherwise RDX
// is what it accepts each page as (SECINFO.FLAGS), and R8 where in its own memory there is room for a SECINFO; new
// pages it writes to, as it will have to some time. Then it leaves. A page that cannot be accepted ends in `#UD`.
global_asm!(
    ".pushsection .rodata.usgx_bench_enclave, \"a\", @progbits",
    ".globl usgx_bench_enclave, usgx_bench_enclave_end",
    "usgx_bench_enclave:",
    "   test rsi, rsi",
    "   jz 3f",
    "   test rdx, rdx",
    "   jnz 4f",
    "2: mov rax, [rdi]",
    "   add rdi, 4096",
    "   dec rsi",
    "   jnz 2b",
    "3: mov rbx, rcx",
    "   mov eax, 4",
    "   enclu",
    "   ud2",
    "4: pxor xmm0, xmm0",
    "   movdqa [r8], xmm0",
    "   movdqa [r8 + 16], xmm0",
    "   movdqa [r8 + 32], xmm0",
    "   movdqa [r8 + 48], xmm0",
    "   mov [r8], rdx",
    "   mov r9, rcx",
    "   mov rbx, r8",
    "5: mov rcx, rdi",
    "   mov eax, 5",
    "   enclu",
    "   test eax, eax",
    "   jnz 7f",
    "   test edx, 8",
    "   jz 6f",
    "   mov [rdi], rdi",
    "6: add rdi, 4096",
    "   dec rsi",
    "   jnz 5b",
    "   mov rcx, r9",
    "   jmp 3b",
    "7: ud2",
    "usgx_bench_enclave_end:",
    ".popsection",
);

unsafe extern "C" {
    static usgx_bench_enclave: u8;
    static usgx_bench_enclave_end: u8;
}

/// The enclave's code.
pub(super) fn code() -> &'static [u8] {
    let (start, end) = (&raw const usgx_bench_enclave, &raw const usgx_bench_enclave_end);
    // SAFETY: the two symbols are the ends of one object in read-only memory.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// Addresses that are reserved, and unmapped at the end.
///
/// # Invariants
///
/// `start` and `length` are a mapping that belongs to this value.
pub(super) struct Range {
    start: *mut libc::c_void,
    length: usize,
}

impl Range {
    /// Addresses in which an enclave of `size` bytes finds its place.
    pub(super) fn reserve(size: usize) -> Result<Self> {
        Self::map(2 * size, libc::PROT_NONE)
    }

    fn map(length: usize, protection: i32) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
        ensure!(start != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        // INVARIANT: just mapped.
        Ok(Self { start, length })
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: by the invariant; nothing points there once the value is gone.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// The pages of an image, in memory.
pub(super) struct Source(Range);

impl Source {
    /// Makes them.
    pub(super) fn new(image: &Image) -> Result<Self> {
        let range = Range::map(image.pages() * PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: the range is mapped, zeroed and nobody else's.
        let bytes = unsafe { std::slice::from_raw_parts_mut(range.start.cast::<u8>(), range.length) };
        for (index, page) in bytes.chunks_exact_mut(PAGE_SIZE).enumerate() {
            Image::fill(index, page);
        }
        Ok(Self(range))
    }

    fn page(&self, index: usize) -> u64 {
        self.0.start.addr() as u64 + (index * PAGE_SIZE) as u64
    }
}

/// SECINFO: 64 bytes, aligned to 64.
#[repr(C, align(64))]
struct Secinfo([u64; 8]);

#[repr(C)]
struct AddPages {
    source: u64,
    offset: u64,
    length: u64,
    secinfo: u64,
    flags: u64,
    count: u64,
}

/// `struct sgx_enclave_run`.
#[repr(C)]
struct Run {
    tcs: u64,
    function: u32,
    exception_vector: u16,
    exception_error_code: u16,
    exception_addr: u64,
    user_handler: u64,
    user_data: u64,
    reserved: [u8; 216],
}

/// An enclave that can be entered.
pub(super) struct Enclave {
    base: usize,
    enter: usize,
    image: Image,
    // The mapping goes before the device, which would not matter.
    _range: Range,
    device: File,
}

impl Enclave {
    /// Loads an enclave.
    pub(super) fn load(
        range: Range,
        image: &Image,
        source: &Source,
        sigstruct: &[u8; SIGSTRUCT_SIZE],
    ) -> Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/sgx_enclave")?;
        let base = range.start.addr().next_multiple_of(image.size());
        let secs = image.secs(base as u64);
        ioctl(&device, CREATE, &mut (secs.as_ptr() as u64)).context("CREATE")?;
        for region in image.regions() {
            add(&device, &region, source).context("ADD_PAGES")?;
        }
        ioctl(&device, INIT, &mut (sigstruct.as_ptr() as u64)).context("INIT")?;
        for region in image.regions().iter().filter(|region| region.count != 0) {
            let protection = match region.secinfo {
                0x205 => libc::PROT_READ | libc::PROT_EXEC,
                _ => libc::PROT_READ | libc::PROT_WRITE,
            };
            map(&device, base + region.first * PAGE_SIZE, region.count, protection)?;
        }
        if image.heap_pages > 0 {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            map(&device, base + image.pages() * PAGE_SIZE, image.heap_pages, protection)?;
        }
        let enter = enter_function().context("the vDSO has no __vdso_sgx_enter_enclave")?;
        Ok(Self { base, enter, image: *image, _range: range, device })
    }

    pub(super) fn data_pages(&self) -> usize {
        self.image.data_pages
    }

    fn data(&self, index: usize) -> usize {
        self.base + (FIRST_DATA + index) * PAGE_SIZE
    }

    /// Enters through the vDSO; the enclave touches data pages from `first` on.
    pub(super) fn touch(&self, first: usize, count: usize) -> Result<()> {
        self.enter(self.data(first), count, 0)
    }

    /// The enclave accepts `count` pages of its heap from `first` on, as SECINFO.FLAGS says.
    pub(super) fn accept(&self, first: usize, count: usize, flags: u64) -> Result<()> {
        self.enter(self.data(self.image.data_pages + first), count, flags)
    }

    /// Changes the type of pages of the heap, all or none.
    pub(super) fn modify_types(&self, first: usize, count: usize, page_type: u64) -> Result<()> {
        let [offset, length] = self.heap(first, count);
        let mut argument = [offset, length, page_type, 0, 0];
        ioctl(&self.device, MODIFY_TYPES, &mut argument).context("MODIFY_TYPES")?;
        ensure!(argument[4] == length, "MODIFY_TYPES has changed {:#x} of {length:#x} bytes", argument[4]);
        Ok(())
    }

    /// Removes trimmed pages of the heap.
    pub(super) fn remove_pages(&self, first: usize, count: usize) -> Result<()> {
        let [offset, length] = self.heap(first, count);
        let mut argument = [offset, length, 0];
        ioctl(&self.device, REMOVE_PAGES, &mut argument).context("REMOVE_PAGES")?;
        ensure!(argument[2] == length, "REMOVE_PAGES has removed {:#x} of {length:#x} bytes", argument[2]);
        Ok(())
    }

    /// Offset and length, in bytes, of pages of the heap.
    fn heap(&self, first: usize, count: usize) -> [u64; 2] {
        [self.image.pages() + first, count].map(|pages| (pages * PAGE_SIZE) as u64)
    }

    fn enter(&self, address: usize, count: usize, flags: u64) -> Result<()> {
        let mut run = Run {
            tcs: self.base as u64,
            function: 0,
            exception_vector: 0,
            exception_error_code: 0,
            exception_addr: 0,
            user_handler: 0,
            user_data: 0,
            reserved: [0; 216],
        };
        let status: i32;
        // SAFETY: the function's seventh argument is on the stack; it preserves RBX, RBP and RSP, and everything
        // else is declared lost. The enclave uses its own pages only.
        unsafe {
            asm!(
                "sub rsp, 8",
                "push {run}",
                "call {enter}",
                "add rsp, 16",
                run = in(reg) &raw mut run,
                enter = in(reg) self.enter,
                inout("rdi") address => _,
                inout("rsi") count => _,
                inout("rdx") flags => _,
                inout("ecx") EENTER => _,
                inout("r8") self.data(0) => _,
                inout("r9") 0_u64 => _,
                lateout("eax") status,
                lateout("r12") _,
                lateout("r13") _,
                lateout("r14") _,
                lateout("r15") _,
                clobber_abi("C"),
            );
        }
        ensure!(status == 0, "entering failed with {status}");
        let exception = (run.exception_vector, run.exception_addr);
        ensure!(run.function == EEXIT, "exception {} at {:#x}", exception.0, exception.1);
        Ok(())
    }

    /// Enters by ENCLU, for nothing.
    pub(super) fn enter_by_instruction(&self) {
        // SAFETY: the enclave touches no memory with RSI = 0 and leaves to the instruction behind ENCLU, which
        // is also where an asynchronous exit resumes.
        unsafe {
            asm!(
                "mov {saved}, rbx",
                "mov rbx, {tcs}",
                "lea rcx, [rip + 2f]",
                "mov eax, 2",
                "2: enclu",
                "mov rbx, {saved}",
                saved = out(reg) _,
                tcs = in(reg) self.base,
                inout("rdi") 0_u64 => _,
                inout("rsi") 0_u64 => _,
                out("rax") _,
                out("rcx") _,
            );
        }
    }
}

/// Maps pages of an enclave, within a range that was reserved for it.
fn map(device: &File, start: usize, pages: usize, protection: i32) -> Result<()> {
    let address = start as *mut libc::c_void;
    let (length, flags) = (pages * PAGE_SIZE, libc::MAP_SHARED | libc::MAP_FIXED);
    // SAFETY: replaces a part of the enclave's range, in which nothing is.
    let result = unsafe { libc::mmap(address, length, protection, flags, device.as_raw_fd(), 0) };
    ensure!(result == address, "mmap: {}", io::Error::last_os_error());
    Ok(())
}

fn add(device: &File, region: &Region, source: &Source) -> io::Result<()> {
    let secinfo = Secinfo([region.secinfo, 0, 0, 0, 0, 0, 0, 0]);
    let length = (region.count * PAGE_SIZE) as u64;
    let mut done = 0;
    while done < length {
        let mut argument = AddPages {
            source: source.page(region.first) + done,
            offset: (region.first * PAGE_SIZE) as u64 + done,
            length: length - done,
            secinfo: &raw const secinfo as u64,
            flags: u64::from(region.measured),
            count: 0,
        };
        match ioctl(device, ADD_PAGES, &mut argument) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => done += argument.count,
        }
    }
    Ok(())
}

fn ioctl<T>(device: &File, number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: each number's size field is the size of the type that its only caller passes, and what pointers in it
    // point to lives as long as the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), number, ptr::from_mut(argument)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The vDSO's function, by way of its dynamic section, as the kernel's own tests find it.
fn enter_function() -> Option<usize> {
    const PT_LOAD: u32 = 1;
    const PT_DYNAMIC: u32 = 2;
    const HASH: u64 = 4;
    const STRINGS: u64 = 5;
    const SYMBOLS: u64 = 6;
    // SAFETY: reads the auxiliary vector.
    let base = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    if base == 0 {
        return None;
    }
    let at = |offset: u64| (base + offset) as *const u64;
    // SAFETY: the image is the kernel's, and offsets come from its own headers and tables.
    let u64_at = |offset| unsafe { at(offset).read_unaligned() };
    // SAFETY: as above.
    let u32_at = |offset| unsafe { at(offset).cast::<u32>().read_unaligned() };
    // SAFETY: as above.
    let u16_at = |offset| unsafe { at(offset).cast::<u16>().read_unaligned() };
    let headers = u64_at(32);
    let header = |kind| (0..u64::from(u16_at(56))).map(|i| headers + i * 56).find(|&at| u32_at(at) == kind);
    let load = header(PT_LOAD)?;
    let bias = u64_at(load + 16).wrapping_sub(u64_at(load + 8));
    let dynamic = u64_at(header(PT_DYNAMIC)? + 8);
    let entry = |tag| {
        let found = (0..).map(|i| dynamic + i * 16).find(|&at| u64_at(at) == tag || u64_at(at) == 0)?;
        (u64_at(found) == tag).then(|| u64_at(found + 8).wrapping_sub(bias))
    };
    let (hash, strings, symbols) = (entry(HASH)?, entry(STRINGS)?, entry(SYMBOLS)?);
    // The number of symbols is the number of chains.
    (0..u64::from(u32_at(hash + 4))).map(|i| symbols + i * 24).find_map(|symbol| {
        // SAFETY: a name in the string table, which ends in a zero.
        let name = unsafe { CStr::from_ptr(at(strings + u64::from(u32_at(symbol))).cast()) };
        (name == c"__vdso_sgx_enter_enclave").then(|| (base + u64_at(symbol + 8).wrapping_sub(bias)) as usize)
    })
}
