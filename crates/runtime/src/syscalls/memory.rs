//! Mappings of enclaves, and what changes them: mmap, mprotect, munmap, mremap, madvise.
//!
//! A mapping of an enclave is the view, mapped inaccessible, registered with the userfaultfd, made known to the
//! machine, and only then given its protection: a mapping that the machine does not know would lose writes. The
//! table in [`crate::enclaves`] holds what the program asked for. A view goes away first and is taken off the
//! machine's list afterwards, since the machine takes "not mapped there" in its stride. Everything that touches
//! a range with enclaves runs under [`enclaves::CHANGES`].
//!
//! Checks and their order are those of Linux's mmap and mprotect hooks for SGX.

use core::sync::atomic::{AtomicI32, Ordering};

use usgx_wire::channel::{Request, op};
use usgx_wire::place::{RUNTIME_BASE, RUNTIME_END};
use usgx_wire::slot::{NR_WORDS, call};
use usgx_wire::window::entry;

use crate::arch::syscall::{errno, nr, on_behalf};
use crate::arch::{close, complain};
use crate::devices;
use crate::enclaves::{self, CHANGES, Enclave, Mapping};
use crate::process::reserve;
use crate::thread::Thread;
use crate::{cpuid, filter, link, sys};

const PAGE: u64 = 4096;
const PROT_NONE: u32 = 0;
const PROT_EXEC: u32 = 4;
const MAP_TYPE: u64 = 0xf;
const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_NORESERVE: u64 = 0x4000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

/// The process's userfaultfd, or -1.
static USERFAULTFD: AtomicI32 = AtomicI32::new(-1);

fn round_up(len: u64) -> Option<u64> {
    Some(len.checked_add(PAGE - 1)? & !(PAGE - 1))
}

/// Whether a range touches the runtime's own addresses.
fn hits_runtime(start: u64, len: u64) -> bool {
    start < RUNTIME_END && start.saturating_add(len) > RUNTIME_BASE
}

/// `mmap`.
pub fn mmap(thread: &mut Thread, args: [u64; 6]) -> i64 {
    let [start, len, prot, flags, fd, _] = args;
    let replaces = flags & MAP_FIXED != 0 && flags & MAP_FIXED_NOREPLACE == 0;
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 && hits_runtime(start, len) {
        return -errno::ENOMEM;
    }
    let of_file = flags & MAP_ANONYMOUS == 0;
    if of_file && let Some(enclave) = devices::of_fd(fd as i32) {
        return map_enclave(thread, enclave, args);
    }
    let result = if replaces && enclaves::overlaps(start, len) {
        let _guard = CHANGES.lock();
        // SAFETY: the program's own call.
        let result = unsafe { on_behalf(nr::MMAP, args) };
        if result >= 0 {
            forget_locked(thread, start, start + round_up(len).unwrap_or(len));
        }
        result
    } else {
        // SAFETY: the program's own call.
        unsafe { on_behalf(nr::MMAP, args) }
    };
    let patchable = of_file && flags & MAP_TYPE == MAP_PRIVATE && prot as u32 & PROT_EXEC != 0;
    if result > 0 && patchable && cpuid::needs_patching() {
        cpuid::patch_range(result as u64, round_up(len).unwrap_or(len), prot as u32);
    }
    result
}

/// `mmap` of `/dev/sgx_enclave`.
fn map_enclave(thread: &mut Thread, enclave: &'static Enclave, args: [u64; 6]) -> i64 {
    let [start, len, prot, flags, _, offset] = args;
    let prot = prot as u32 & 7;
    let Some(len) = round_up(len).filter(|len| *len != 0) else { return -errno::EINVAL };
    if flags & MAP_TYPE == MAP_PRIVATE || flags & MAP_SHARED == 0 || offset & (PAGE - 1) != 0 {
        return -errno::EINVAL;
    }
    let Some(max_prot) = enclave.max_prot() else { return -errno::EACCES };
    if prot & !max_prot != 0 {
        return -errno::EACCES;
    }
    if reads_imply_exec() {
        return -errno::EACCES;
    }
    if let Err(error) = filter::arm_memory() {
        return -error;
    }
    let _guard = CHANGES.lock();
    if enclaves::room() < 8 {
        return -errno::ENOMEM;
    }
    let replaces = flags & MAP_FIXED != 0 && flags & MAP_FIXED_NOREPLACE == 0;
    if replaces && start & (PAGE - 1) != 0 {
        return -errno::EINVAL;
    }
    // A place that is not fixed must be found before it can be judged.
    let placed = if replaces { start as i64 } else { reserve_place(start, len, flags) };
    if placed < 0 {
        return placed;
    }
    let at = placed as u64;
    if let Err(error) = may(thread, call::MMAP, enclave, at, len, prot) {
        if !replaces {
            // SAFETY: the reservation is ours.
            unsafe { sys!(nr::MUNMAP, at, len) };
        }
        return -error;
    }
    if replaces {
        let result = reserve_place(at, len, MAP_FIXED);
        if result < 0 {
            return result;
        }
        forget_locked(thread, at, at + len);
    }
    let mapping = Mapping { start: at, end: at + len, prot, max_prot, placeholder: true, enclave };
    enclaves::replace_locked(at, at + len, Some(mapping));
    match realize_locked(thread, &mapping) {
        Ok(()) => placed,
        Err(error) => {
            forget_locked(thread, at, at + len);
            // SAFETY: the range is the mapping that has just been made.
            unsafe { sys!(nr::MUNMAP, at, len) };
            -error
        }
    }
}

/// Inaccessible memory at the place that the program asks for.
fn reserve_place(start: u64, len: u64, flags: u64) -> i64 {
    let how = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: the place is the program's to give.
    unsafe { sys!(nr::MMAP, start, len, PROT_NONE, how, -1i64, 0) }
}

/// Whether the thread's personality makes readable memory executable.
fn reads_imply_exec() -> bool {
    const READ_IMPLIES_EXEC: i64 = 0x40_0000;
    // SAFETY: a question.
    (unsafe { sys!(nr::PERSONALITY, 0xffff_ffffu64) }) & READ_IMPLIES_EXEC != 0
}

/// Asks the machine whether a range may be mapped, or get a protection. Returns the enclave's range, if it has one.
fn may(
    thread: &mut Thread,
    what: u64,
    enclave: &'static Enclave,
    start: u64,
    len: u64,
    prot: u32,
) -> Result<Option<(u64, u64)>, i64> {
    let words = slot_call(thread, [what, enclave.handle(), start, len, u64::from(prot)]);
    let result = words[1] as i64;
    if result < 0 {
        return Err(-result);
    }
    let (base, size) = (words[2], words[3]);
    if size == 0 {
        return Ok(None);
    }
    enclave.map_window_locked(size)?;
    enclave.set_range(base, size);
    Ok(Some((base, size)))
}

fn slot_call(thread: &mut Thread, words: [u64; 5]) -> [u64; NR_WORDS] {
    let mut all = [0; NR_WORDS];
    all[..5].copy_from_slice(&words);
    link::slot_call(thread, all)
}

/// Maps the view where a placeholder lies inside of the enclave.
fn realize_locked(thread: &mut Thread, placeholder: &Mapping) -> Result<(), i64> {
    let Some((base, size)) = placeholder.enclave.range() else { return Ok(()) };
    let (start, end) = (placeholder.start.max(base), placeholder.end.min(base + size));
    if start >= end {
        return Ok(());
    }
    let mapping = Mapping { start, end, placeholder: false, ..*placeholder };
    map_view(thread, &mapping, base)?;
    enclaves::replace_locked(start, end, Some(mapping));
    protect(mapping.enclave, start, end, mapping.prot, None)
}

/// Maps the view at a mapping's place, inaccessible, and makes it known to the machine.
fn map_view(thread: &mut Thread, mapping: &Mapping, base: u64) -> Result<(), i64> {
    const MADV_DONTFORK: u64 = 10;
    let (start, len) = (mapping.start, mapping.end - mapping.start);
    let fd = mapping.enclave.view_fd();
    // SAFETY: the place is a placeholder's.
    let result = unsafe { sys!(nr::MMAP, start, len, PROT_NONE, MAP_SHARED | MAP_FIXED, fd, start - base) };
    if result < 0 {
        return Err(-result);
    }
    register(start, len)?;
    // SAFETY: a child maps views itself.
    unsafe { sys!(nr::MADVISE, start, len, MADV_DONTFORK) };
    let words = slot_call(thread, [call::REGISTER, mapping.enclave.handle(), start, len, 0]);
    if (words[1] as i64) < 0 { Err(-(words[1] as i64)) } else { Ok(()) }
}

/// Registers a range with the userfaultfd, for missing pages and write protection.
fn register(start: u64, len: u64) -> Result<(), i64> {
    const UFFDIO_REGISTER: u64 = 0xc020_aa00;
    const MISSING_AND_WP: u64 = 1 | 2;
    let fd = userfaultfd()?;
    let request = [start, len, MISSING_AND_WP, 0u64];
    // SAFETY: the kernel reads and writes the request.
    let result = unsafe { sys!(nr::IOCTL, fd, UFFDIO_REGISTER, request.as_ptr()) };
    if result < 0 { Err(-result) } else { Ok(()) }
}

/// The process's userfaultfd; made, and handed to the machine, when first needed.
fn userfaultfd() -> Result<i32, i64> {
    let known = USERFAULTFD.load(Ordering::Relaxed);
    if known >= 0 {
        return Ok(known);
    }
    const USER_MODE_ONLY_CLOEXEC_NONBLOCK: u64 = 1 | 0o2000000 | 0o4000;
    const UFFDIO_API: u64 = 0xc018_aa3f;
    const API: u64 = 0xaa;
    const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    const MISSING_SHMEM: u64 = 1 << 5;
    const SIGBUS: u64 = 1 << 7;
    const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    // SAFETY: makes a descriptor.
    let fd = unsafe { sys!(nr::USERFAULTFD, USER_MODE_ONLY_CLOEXEC_NONBLOCK) };
    if fd < 0 {
        explain_refusal(-fd);
        return Err(-fd);
    }
    let fd = reserve(fd as i32);
    let api = [API, SIGBUS | PAGEFAULT_FLAG_WP | MISSING_SHMEM | WP_HUGETLBFS_SHMEM, 0];
    // SAFETY: the kernel reads and writes `api`.
    let result = unsafe { sys!(nr::IOCTL, fd, UFFDIO_API, api.as_ptr()) };
    let result = if result < 0 {
        explain_refusal(-result);
        result
    } else {
        let request = Request { op: op::USERFAULTFD, reserved: 0, args: [0; 4] };
        link::channel_call(request, Some(fd), true).0.status
    };
    if result < 0 {
        close(fd);
        return Err(-result);
    }
    USERFAULTFD.store(fd, Ordering::Relaxed);
    Ok(fd)
}

/// Says why no enclave can be mapped, if it is for the kernel's sake: the program sees only an errno.
fn explain_refusal(error: i64) {
    if matches!(error, errno::ENOSYS | errno::EPERM | errno::EINVAL) {
        complain(
            "usgx: no enclave can be mapped: the kernel refuses a userfaultfd of the kind that usgx needs; \
             'usgx doctor' says what is missing\n",
        );
    }
}

/// Drops the parent's userfaultfd, in a fork's child.
pub fn forget_userfaultfd() {
    close(USERFAULTFD.swap(-1, Ordering::Relaxed));
}

/// Gives a range of one enclave's view its real protection: what the program asked for, narrowed page by page to
/// what the EPCM allows of a page that is mapped.
pub fn protect(enclave: &Enclave, start: u64, end: u64, prot: u32, pkey: Option<u64>) -> Result<(), i64> {
    let real = |address: u64| {
        let word = enclave.page_word(address);
        if word & entry::MAPPED == 0 { prot } else { prot & (word / entry::R) & 7 }
    };
    let mut from = start;
    while from < end {
        let wanted = real(from);
        let mut to = from + PAGE;
        while to < end && real(to) == wanted {
            to += PAGE;
        }
        // SAFETY: a view, which no Rust code borrows.
        let result = unsafe {
            match pkey {
                Some(key) => sys!(nr::PKEY_MPROTECT, from, to - from, wanted, key),
                None => sys!(nr::MPROTECT, from, to - from, wanted),
            }
        };
        if result < 0 {
            return Err(-result);
        }
        from = to;
    }
    Ok(())
}

/// Takes a range, which no longer holds views, off the machine's list and off the table.
fn forget_locked(thread: &mut Thread, start: u64, end: u64) {
    let mut at = start;
    while let Some(mapping) = enclaves::first_in(at, end) {
        let (from, to) = (mapping.start.max(start), mapping.end.min(end));
        if !mapping.placeholder {
            slot_call(thread, [call::UNREGISTER, mapping.enclave.handle(), from, to - from, 0]);
        }
        at = to;
    }
    enclaves::replace_locked(start, end, None);
}

/// After ECREATE: the enclave has its place, so mappings made before become real.
pub fn on_created(thread: &mut Thread, enclave: &'static Enclave) {
    let _guard = CHANGES.lock();
    if !matches!(may(thread, call::MMAP, enclave, 0, PAGE, PROT_NONE), Ok(Some(_))) {
        return;
    }
    let mut at = 0;
    while let Some(mapping) = enclaves::first_in(at, u64::MAX) {
        at = mapping.end;
        if mapping.placeholder && core::ptr::eq(mapping.enclave, enclave) {
            // A placeholder that cannot become real stays one: its pages fault.
            let _ = realize_locked(thread, &mapping);
        }
    }
}

/// In a fork's child, which inherits no view: maps all of them again.
pub fn map_views_anew(thread: &mut Thread) -> Result<(), i64> {
    let _guard = CHANGES.lock();
    let mut at = 0;
    let mut result = Ok(());
    while let Some(mapping) = enclaves::first_in(at, u64::MAX) {
        at = mapping.end;
        if mapping.placeholder {
            continue;
        }
        let Some((base, _)) = mapping.enclave.range() else { continue };
        let done = map_view(thread, &mapping, base)
            .and_then(|()| protect(mapping.enclave, mapping.start, mapping.end, mapping.prot, None));
        if done.is_err() {
            result = done;
        }
    }
    result
}

/// `mprotect`, `pkey_mprotect`.
pub fn mprotect(thread: &mut Thread, number: u64, args: [u64; 6]) -> i64 {
    let [start, len, prot, pkey, ..] = args;
    let bytes = round_up(len).unwrap_or(0);
    if !enclaves::overlaps(start, bytes) || start & (PAGE - 1) != 0 || prot & !7 != 0 {
        // SAFETY: the program's own call.
        let result = unsafe { on_behalf(number, args) };
        if result == 0 && prot as u32 & PROT_EXEC != 0 && cpuid::needs_patching() {
            cpuid::patch_range(start, bytes, prot as u32);
        }
        return result;
    }
    let pkey = (number == nr::PKEY_MPROTECT).then_some(pkey);
    let _guard = CHANGES.lock();
    let (mut at, end) = (start, start + bytes);
    while at < end {
        let next = enclaves::first_in(at, end);
        let gap_end = next.map_or(end, |mapping| mapping.start.max(at));
        if gap_end > at {
            // SAFETY: the program's own memory between enclaves.
            let result = unsafe { on_behalf(number, [at, gap_end - at, prot, args[3], 0, 0]) };
            if result < 0 {
                return result;
            }
        }
        let Some(mapping) = next else { break };
        let to = mapping.end.min(end);
        if let Err(error) = change(thread, &mapping, gap_end, to, prot as u32, pkey) {
            return -error;
        }
        at = to;
    }
    0
}

/// Changes the protection of a part of one mapping.
fn change(
    thread: &mut Thread,
    mapping: &Mapping,
    start: u64,
    end: u64,
    prot: u32,
    pkey: Option<u64>,
) -> Result<(), i64> {
    if prot & !mapping.max_prot != 0 {
        return Err(errno::EACCES);
    }
    may(thread, call::MPROTECT, mapping.enclave, start, end - start, prot)?;
    if enclaves::room() < 4 {
        return Err(errno::ENOMEM);
    }
    enclaves::replace_locked(start, end, Some(Mapping { start, end, prot, ..*mapping }));
    if mapping.placeholder {
        return Ok(());
    }
    protect(mapping.enclave, start, end, prot, pkey)
}

/// `munmap`.
pub fn munmap(thread: &mut Thread, args: [u64; 6]) -> i64 {
    let [start, len, ..] = args;
    if hits_runtime(start, len) {
        return -errno::EINVAL;
    }
    if !enclaves::overlaps(start, len) {
        // SAFETY: the program's own call.
        return unsafe { on_behalf(nr::MUNMAP, args) };
    }
    let _guard = CHANGES.lock();
    if enclaves::room() < 4 {
        return -errno::ENOMEM;
    }
    // SAFETY: the program's own call.
    let result = unsafe { on_behalf(nr::MUNMAP, args) };
    if result == 0 {
        forget_locked(thread, start, start + round_up(len).unwrap_or(len));
    }
    result
}

/// `mremap`. A moved enclave page is unusable on hardware, too, so a new place outside of the enclave becomes a
/// placeholder.
pub fn mremap(thread: &mut Thread, args: [u64; 6]) -> i64 {
    const MREMAP_FIXED: u64 = 2;
    const MREMAP_DONTUNMAP: u64 = 4;
    let [old, old_len, new_len, flags, new, _] = args;
    let (Some(old_len), Some(new_len)) = (round_up(old_len), round_up(new_len)) else {
        return -errno::EINVAL;
    };
    let fixed = flags & MREMAP_FIXED != 0;
    if fixed && hits_runtime(new, new_len) || hits_runtime(old, old_len) {
        return -errno::EINVAL;
    }
    let Some(mapping) = enclaves::first_in(old, old.saturating_add(old_len.max(1))) else {
        let hits = fixed && enclaves::overlaps(new, new_len);
        let _guard = hits.then(|| CHANGES.lock());
        // SAFETY: the program's own call.
        let result = unsafe { on_behalf(nr::MREMAP, args) };
        if hits && result >= 0 {
            forget_locked(thread, new, new + new_len);
        }
        return result;
    };
    if new_len == 0 || old & (PAGE - 1) != 0 || flags & MREMAP_DONTUNMAP != 0 {
        return -errno::EINVAL;
    }
    if old_len == 0 || new_len > old_len || mapping.start > old || mapping.end < old + old_len {
        return -errno::EFAULT;
    }
    if new_len < old_len {
        let result = munmap(thread, [old + new_len, old_len - new_len, 0, 0, 0, 0]);
        if result < 0 {
            return result;
        }
    }
    if !fixed {
        return old as i64;
    }
    if new & (PAGE - 1) != 0 || new < old + new_len && old < new + new_len {
        return -errno::EINVAL;
    }
    {
        let _guard = CHANGES.lock();
        let result = reserve_place(new, new_len, MAP_FIXED);
        if result < 0 {
            return result;
        }
        forget_locked(thread, new, new + new_len);
        let moved = Mapping { start: new, end: new + new_len, placeholder: true, ..mapping };
        enclaves::replace_locked(new, new + new_len, Some(moved));
        // Back at its own place, a page can be used. Where that does not work it faults, as anywhere else.
        let _ = realize_locked(thread, &moved);
    }
    munmap(thread, [old, new_len, 0, 0, 0, 0]);
    new as i64
}

/// `madvise`: the kernel must not drop or fill pages of a view behind the machine's back.
pub fn madvise(args: [u64; 6]) -> i64 {
    const DONTNEED: u64 = 4;
    const FREE: u64 = 8;
    const REMOVE: u64 = 9;
    const DOFORK: u64 = 11;
    const DODUMP: u64 = 17;
    const POPULATE_READ: u64 = 22;
    const POPULATE_WRITE: u64 = 23;
    let [start, len, advice, ..] = args;
    if !enclaves::overlaps(start, len) {
        // SAFETY: the program's own call.
        return unsafe { on_behalf(nr::MADVISE, args) };
    }
    match advice {
        DONTNEED | FREE | REMOVE | DOFORK | DODUMP => -errno::EINVAL,
        POPULATE_READ | POPULATE_WRITE => -errno::EFAULT,
        _ => 0,
    }
}
