//! The enclaves that this process knows, and where they are mapped.
//!
//! Two tables of fixed size. An [`Enclave`] is entered once, when its device descriptor first matters, and found
//! by the socket's inode number. A mapping is an address range with the protection that the *program* asked for;
//! the real protection may be narrower where the EPCM's is. Both are changed under [`CHANGES`], and read without
//! a lock by handlers of any thread: enclaves are published by their handle, mappings by a sequence count.
//!
//! A mapping may be a *placeholder*: plain inaccessible memory, either because the enclave does not exist yet or
//! because the range lies outside of it. It becomes real when ECREATE gives the enclave its place.

use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};

use usgx_wire::place::{RUNTIME_END, WINDOWS_BASE};
use usgx_wire::window;

use crate::arch::close;
use crate::arch::lock::Lock;
use crate::arch::syscall::{errno, nr};
use crate::sys;

/// Most enclaves that a process knows at the same time.
pub const MAX_ENCLAVES: usize = 512;
/// Bytes reserved for each enclave's window.
const WINDOW_STRIDE: u64 = ((RUNTIME_END - WINDOWS_BASE) / MAX_ENCLAVES as u64) & !0xfff;
/// Most separate mappings.
pub const MAX_MAPPINGS: usize = 16384;

/// An enclave. Fields are set before `handle`, which publishes them.
pub struct Enclave {
    handle: AtomicU64,
    ino: AtomicU64,
    view_fd: AtomicI32,
    window_fd: AtomicI32,
    window: AtomicPtr<window::Header>,
    window_bytes: AtomicU64,
    base: AtomicU64,
    size: AtomicU64,
    max_prot: AtomicU32,
}

impl Enclave {
    const fn new() -> Self {
        Self {
            handle: AtomicU64::new(0),
            ino: AtomicU64::new(0),
            view_fd: AtomicI32::new(-1),
            window_fd: AtomicI32::new(-1),
            window: AtomicPtr::new(core::ptr::null_mut()),
            window_bytes: AtomicU64::new(0),
            base: AtomicU64::new(0),
            size: AtomicU64::new(0),
            max_prot: AtomicU32::new(0),
        }
    }

    /// The machine's name for it.
    pub fn handle(&self) -> u64 {
        self.handle.load(Ordering::Acquire)
    }

    /// Inode number of its device socket.
    pub fn ino(&self) -> u64 {
        self.ino.load(Ordering::Relaxed)
    }

    /// The view's memfd.
    pub fn view_fd(&self) -> i32 {
        self.view_fd.load(Ordering::Relaxed)
    }

    /// The window's header, once the enclave is created.
    pub fn window(&self) -> Option<&'static window::Header> {
        let header = self.window.load(Ordering::Acquire);
        // SAFETY: mapped before it was stored, and only unmapped when no mapping of the enclave is left.
        (!header.is_null()).then(|| unsafe { &*header })
    }

    /// Base and size, once created.
    pub fn range(&self) -> Option<(u64, u64)> {
        let size = self.size.load(Ordering::Acquire);
        (size != 0).then(|| (self.base.load(Ordering::Relaxed), size))
    }

    /// Notes where the enclave lies. Preconditions: [`CHANGES`] is held, and the window is mapped.
    pub fn set_range(&self, base: u64, size: u64) {
        self.base.store(base, Ordering::Relaxed);
        self.size.store(size, Ordering::Release);
    }

    /// The most that a mapping may be (`PROT_*`), by how its device was opened; `None`: not mapped at all.
    pub fn max_prot(&self) -> Option<u32> {
        Some(self.max_prot.load(Ordering::Relaxed)).filter(|prot| *prot != 0)
    }

    /// The window's word for the page at `address`: [`window::entry`] bits; 0 outside of the enclave.
    pub fn page_word(&self, address: u64) -> u32 {
        let (Some(header), Some((base, size))) = (self.window(), self.range()) else { return 0 };
        let Some(offset) = address.checked_sub(base).filter(|offset| *offset < size) else { return 0 };
        let words = (&raw const *header).cast::<u8>().wrapping_add(window::PAGES_OFFSET).cast::<AtomicU32>();
        // SAFETY: the window has a word for each page of ELRANGE, and `offset` is inside.
        unsafe { (*words.add((offset / 4096) as usize)).load(Ordering::Acquire) }
    }

    /// A thread control structure in the window.
    pub fn tcs(&self, index: usize) -> Option<&'static window::Tcs> {
        let header = self.window()?;
        let first = (&raw const *header).cast::<u8>().wrapping_add(window::TCS_OFFSET).cast::<window::Tcs>();
        // SAFETY: the window holds MAX_TCS of them.
        (index < window::MAX_TCS).then(|| unsafe { &*first.add(index) })
    }

    /// Maps the window, once the enclave has its place. Preconditions: [`CHANGES`] is held.
    pub fn map_window_locked(&'static self, size: u64) -> Result<(), i64> {
        if self.window().is_some() {
            return Ok(());
        }
        let bytes = window::window_size(size);
        let place = WINDOWS_BASE + index_of(self) as u64 * WINDOW_STRIDE;
        if bytes > WINDOW_STRIDE {
            return Err(errno::ENOMEM);
        }
        const PROT_RW: u64 = 3;
        const MAP_SHARED_FIXED: u64 = 0x11;
        // SAFETY: the place is the runtime's, and this enclave's alone.
        let result = unsafe {
            sys!(nr::MMAP, place, bytes, PROT_RW, MAP_SHARED_FIXED, self.window_fd.load(Ordering::Relaxed), 0)
        };
        if result < 0 {
            return Err(-result);
        }
        self.window_bytes.store(bytes, Ordering::Relaxed);
        self.window.store(place as *mut window::Header, Ordering::Release);
        close(self.window_fd.swap(-1, Ordering::Relaxed));
        Ok(())
    }
}

static ENCLAVES: [Enclave; MAX_ENCLAVES] = [const { Enclave::new() }; MAX_ENCLAVES];

/// Guards every change of the two tables and of the address space where enclaves are mapped. Held across slot
/// calls: an upcall is answered by the holder itself and needs no lock.
pub static CHANGES: Lock<()> = Lock::new(());

/// The enclave behind the device socket with this inode number.
pub fn by_ino(ino: u64) -> Option<&'static Enclave> {
    ENCLAVES.iter().find(|enclave| enclave.handle() != 0 && enclave.ino() == ino)
}

/// Whether the process knows any enclave.
pub fn any() -> bool {
    ENCLAVES.iter().any(|enclave| enclave.handle() != 0)
}

/// All enclaves.
pub fn all() -> impl Iterator<Item = &'static Enclave> {
    ENCLAVES.iter().filter(|enclave| enclave.handle() != 0)
}

/// Enters an enclave. Preconditions: [`CHANGES`] is held.
pub fn add_locked(
    handle: u64,
    ino: u64,
    view_fd: i32,
    window_fd: i32,
    max_prot: Option<u32>,
) -> Option<&'static Enclave> {
    let enclave = ENCLAVES.iter().find(|enclave| enclave.handle() == 0)?;
    enclave.ino.store(ino, Ordering::Relaxed);
    enclave.view_fd.store(view_fd, Ordering::Relaxed);
    enclave.window_fd.store(window_fd, Ordering::Relaxed);
    enclave.window.store(core::ptr::null_mut(), Ordering::Relaxed);
    enclave.size.store(0, Ordering::Relaxed);
    enclave.max_prot.store(max_prot.unwrap_or(0), Ordering::Relaxed);
    enclave.handle.store(handle, Ordering::Release);
    Some(enclave)
}

/// Forgets an enclave that has no mapping; its descriptor, if it still exists, is attached again when it
/// matters. Preconditions: [`CHANGES`] is held.
pub fn remove_locked(enclave: &'static Enclave) {
    enclave.handle.store(0, Ordering::Release);
    let header = enclave.window.swap(core::ptr::null_mut(), Ordering::AcqRel);
    if !header.is_null() {
        // SAFETY: the window's place is this enclave's alone, and no thread is inside an enclave without mappings.
        unsafe { sys!(nr::MUNMAP, header, enclave.window_bytes.load(Ordering::Relaxed)) };
    }
    close(enclave.view_fd.swap(-1, Ordering::Relaxed));
    close(enclave.window_fd.swap(-1, Ordering::Relaxed));
}

/// Whether an enclave is mapped anywhere.
pub fn is_mapped(enclave: &'static Enclave) -> bool {
    consistent(|count| (0..count).any(|i| core::ptr::eq(MAPPINGS[i].load().enclave, enclave)))
}

/// The index of an enclave in the table, for places that are made from it.
pub fn index_of(enclave: &'static Enclave) -> usize {
    (&raw const *enclave as usize - ENCLAVES.as_ptr() as usize) / size_of::<Enclave>()
}

/// A mapping of an enclave in this process.
#[derive(Clone, Copy)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// What the program asked for (`PROT_*`).
    pub prot: u32,
    /// The most that it may become: a descriptor opened for reading gives no write.
    pub max_prot: u32,
    /// Plain inaccessible memory rather than the view.
    pub placeholder: bool,
    /// The enclave.
    pub enclave: &'static Enclave,
}

/// A mapping in the table: addresses and, packed, protections, placeholder and the enclave's index.
struct Entry {
    start: AtomicU64,
    end: AtomicU64,
    rest: AtomicU64,
}

impl Entry {
    fn load(&self) -> Mapping {
        let rest = self.rest.load(Ordering::Relaxed);
        Mapping {
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            prot: rest as u32 & 7,
            max_prot: (rest >> 4) as u32 & 7,
            placeholder: rest & 0x100 != 0,
            enclave: &ENCLAVES[(rest >> 32) as usize % MAX_ENCLAVES],
        }
    }

    fn store(&self, mapping: &Mapping) {
        let index = index_of(mapping.enclave) as u64;
        let rest = u64::from(mapping.prot & 7)
            | u64::from(mapping.max_prot & 7) << 4
            | u64::from(mapping.placeholder) << 8
            | index << 32;
        self.start.store(mapping.start, Ordering::Relaxed);
        self.end.store(mapping.end, Ordering::Relaxed);
        self.rest.store(rest, Ordering::Relaxed);
    }
}

/// Sorted by address, no two overlap; the first `COUNT` are in use.
static MAPPINGS: [Entry; MAX_MAPPINGS] =
    [const { Entry { start: AtomicU64::new(0), end: AtomicU64::new(0), rest: AtomicU64::new(0) } };
        MAX_MAPPINGS];
static COUNT: AtomicU32 = AtomicU32::new(0);
/// Odd while the table changes.
static SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// Reads the table as it was at one moment.
fn consistent<T>(read: impl Fn(usize) -> T) -> T {
    loop {
        let before = SEQUENCE.load(Ordering::Acquire);
        if before & 1 == 0 {
            let value = read((COUNT.load(Ordering::Relaxed) as usize).min(MAX_MAPPINGS));
            fence(Ordering::Acquire);
            if SEQUENCE.load(Ordering::Relaxed) == before {
                return value;
            }
        }
        core::hint::spin_loop();
    }
}

/// Index of the first mapping that ends above `address`.
fn lower_bound(count: usize, address: u64) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = (low + high) / 2;
        if MAPPINGS[middle].end.load(Ordering::Relaxed) > address {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// The first mapping that overlaps `[start, end)`; none if that is empty.
pub fn first_in(start: u64, end: u64) -> Option<Mapping> {
    consistent(|count| {
        let at = lower_bound(count, start);
        (at < count && start < end).then(|| MAPPINGS[at].load()).filter(|mapping| mapping.start < end)
    })
}

/// The mapping at `address`.
pub fn mapping_at(address: u64) -> Option<Mapping> {
    first_in(address, address.checked_add(1)?)
}

/// The enclave mapped at `address`, and the protection that the program asked for there.
pub fn find(address: u64) -> Option<(&'static Enclave, u32)> {
    mapping_at(address).map(|mapping| (mapping.enclave, mapping.prot))
}

/// Whether an enclave is mapped anywhere in `[start, start + len)`.
pub fn overlaps(start: u64, len: u64) -> bool {
    COUNT.load(Ordering::Relaxed) != 0 && first_in(start, start.saturating_add(len)).is_some()
}

/// How many entries there is room for.
pub fn room() -> usize {
    MAX_MAPPINGS - COUNT.load(Ordering::Relaxed) as usize
}

/// Replaces what the table says about `[start, end)` by `with` (or nothing). Neighbours that became alike are
/// joined. Preconditions: [`CHANGES`] is held, and [`room`] is at least 2.
pub fn replace_locked(start: u64, end: u64, with: Option<Mapping>) {
    let sequence = SEQUENCE.load(Ordering::Relaxed);
    SEQUENCE.store(sequence.wrapping_add(1), Ordering::Relaxed);
    fence(Ordering::Release);
    let mut count = COUNT.load(Ordering::Relaxed) as usize;

    // What stays of the mappings at the two edges, and the new one, in order.
    let first = lower_bound(count, start);
    let mut last = first;
    let mut pieces: [Option<Mapping>; 3] = [None; 3];
    while last < count {
        let old = MAPPINGS[last].load();
        if old.start >= end {
            break;
        }
        if old.start < start {
            pieces[0] = Some(Mapping { end: start, ..old });
        }
        if old.end > end {
            pieces[2] = Some(Mapping { start: end, ..old });
        }
        last += 1;
    }
    pieces[1] = with;

    let fresh = pieces.iter().flatten().count();
    shift(&mut count, first, last, fresh);
    for (i, piece) in pieces.iter().flatten().enumerate() {
        MAPPINGS[first + i].store(piece);
    }

    // Join neighbours, from one before to one behind.
    let mut at = first.saturating_sub(1);
    let mut until = (first + fresh + 1).min(count);
    while at + 1 < until {
        let (a, b) = (MAPPINGS[at].load(), MAPPINGS[at + 1].load());
        let alike = a.end == b.start
            && a.prot == b.prot
            && a.max_prot == b.max_prot
            && a.placeholder == b.placeholder
            && core::ptr::eq(a.enclave, b.enclave);
        if alike {
            MAPPINGS[at].store(&Mapping { end: b.end, ..a });
            shift(&mut count, at + 1, at + 2, 0);
            until -= 1;
        } else {
            at += 1;
        }
    }
    COUNT.store(count as u32, Ordering::Relaxed);
    SEQUENCE.store(sequence.wrapping_add(2), Ordering::Release);
}

/// Makes the entries `[first, last)` into `fresh` ones, moving what is behind.
fn shift(count: &mut usize, first: usize, last: usize, fresh: usize) {
    let tail = *count - last;
    let copy = |from: usize, to: usize| MAPPINGS[to].store(&MAPPINGS[from].load());
    if fresh > last - first {
        for i in (0..tail).rev() {
            copy(last + i, first + fresh + i);
        }
    } else if fresh < last - first {
        for i in 0..tail {
            copy(last + i, first + fresh + i);
        }
    }
    *count = first + fresh + tail;
}
