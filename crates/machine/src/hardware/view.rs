//! A view: one enclave's pages as its processes see them.
//!
//! The view is a memory file that processes map where they map the device. A page that is *mapped* has its bytes
//! there; all others are holes, and touching a hole raises SIGBUS in the thread. A page enters through the
//! userfaultfd of the process that asked for it ([`View::map`]) and leaves by write protection everywhere, a copy
//! and a hole ([`View::unmap`]). TCS pages never enter; they are shown in the window instead.
//!
//! Lock order: the enclave's lock (the driver's), then the view's, then the processor's and a page's place. All
//! of it without waiting for a client: the kernel calls take the client's memory map lock, which a stopped
//! process does not hold. The list of members has its own lock, innermost.
//!
//! Taking pages out is most of what reclaiming costs, and is done without any lock, so that threads that do it for one
//! enclave do not wait for each other. The pages are listed as *leaving* meanwhile ([`Departures`]), and whoever wants
//! to map one of them, to take it out, or to show it to one more process waits until it has left.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Condvar;
use usgx_cpu::{EnclaveState, EpcmEntry};
use usgx_driver::{EnclaveId, MapFailed};
use usgx_epc::OrderedGuard;
use usgx_isa::layout::PageType;
use usgx_isa::{EpcPage, PAGE_SIZE};
use usgx_sys::Errno;
use usgx_sys::memfd::Memfd;
use usgx_sys::uffd::Userfaultfd;
use usgx_wire::window::entry;

use crate::clients::Client;
use crate::hardware::books::{Books, Faulter, Mapped, Place, Recent, Registration};
use crate::hardware::departures::Departures;
use crate::hardware::frames::Frames;
use crate::hardware::ranges::RangeSet;
use crate::hardware::window::Window;
use crate::kernel::platform::HostPlatform;
use crate::order::{self, Ordered};
use crate::system::Hw;

/// Most ranges that one process may have registered for one enclave: the default limit of mappings of a process.
const MAX_RANGES: usize = 65_530;
/// Most pages that are taken out of a view together: as many as a reclaim pass has at most.
const BATCH: usize = 256;

/// The lock of the books, held.
type Guard<'a> = OrderedGuard<'a, HostPlatform, Books>;

/// One enclave's view.
#[derive(Debug)]
pub(crate) struct View {
    id: EnclaveId,
    file: Arc<Memfd>,
    window_file: Memfd,
    place: OnceLock<Place>,
    epoch: AtomicU64,
    books: Ordered<Books>,
    /// Pages have left. With the lock of `books`.
    left: Condvar,
    members: Ordered<Vec<Weak<Client>>>,
}

impl View {
    /// Makes the view of an enclave that has no place yet.
    pub(crate) fn new(id: EnclaveId) -> Result<Self, Errno> {
        Ok(Self {
            id,
            file: Arc::new(Memfd::create("usgx-view")?),
            window_file: Memfd::create("usgx-window")?,
            place: OnceLock::new(),
            epoch: AtomicU64::new(0),
            books: Ordered::new(order::BOOKS, Books::default()),
            left: Condvar::new(),
            members: Ordered::new(order::LISTS, Vec::new()),
        })
    }

    pub(crate) fn id(&self) -> EnclaveId {
        self.id
    }

    pub(crate) fn file(&self) -> &Memfd {
        &self.file
    }

    pub(crate) fn window_file(&self) -> &Memfd {
        &self.window_file
    }

    /// Gives view and window their sizes. If a process has spoilt the files, nothing of this enclave will ever be
    /// mapped, which is its own loss.
    pub(crate) fn set_place(&self, base: u64, size: u64) -> Result<(), Errno> {
        self.file.seal_size(size)?;
        let window = Window::map(&self.window_file, size)?;
        window.set_epoch(self.epoch.load(SeqCst));
        let _ = self.place.set(Place { base, size, window });
        Ok(())
    }

    /// Describes the enclave in the window.
    pub(crate) fn describe(&self, state: &EnclaveState) {
        if let Some(place) = self.place.get() {
            place.window.describe(state);
        }
    }

    /// What EINIT changes: ATTRIBUTES; and every TCS is to be looked at anew.
    /// Preconditions: the enclave's lock is held.
    pub(crate) fn initialised(&self, state: &EnclaveState, hw: &Hw) {
        let Some(place) = self.place.get() else { return };
        place.window.set_attributes(state.attributes);
        let mut books = self.books.lock();
        let shown: Vec<u32> =
            books.mapped.iter().filter(|(_, m)| m.tcs.is_some()).map(|(i, _)| i as u32).collect();
        for index in shown {
            books.hide_tcs(place, hw, index, entry::PRESENT);
        }
    }

    /// The current epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }

    /// Says that entries carry `epoch` from now on; never goes back.
    pub(crate) fn set_epoch(&self, epoch: u64) {
        let now = self.epoch.fetch_max(epoch, SeqCst).max(epoch);
        if let Some(place) = self.place.get() {
            place.window.set_epoch(now);
        }
    }

    /// Lists a process among those whose threads can be inside.
    pub(crate) fn add_member(&self, client: &Arc<Client>) {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        if !members.iter().any(|member| std::ptr::eq(member.as_ptr(), Arc::as_ptr(client))) {
            members.push(Arc::downgrade(client));
        }
    }

    /// The processes whose threads can be inside.
    pub(crate) fn members(&self) -> Vec<Arc<Client>> {
        self.members.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Lists a range of a process. Preconditions: `start` to `end` are pages of user space.
    pub(crate) fn register(
        &self,
        client: u64,
        uffd: &Arc<Userfaultfd>,
        start: u64,
        end: u64,
    ) -> Result<(), Errno> {
        let mut books = self.books.lock();
        let registration = books
            .registrations
            .entry(client)
            .or_insert_with(|| Registration { uffd: Arc::clone(uffd), ranges: RangeSet::default() });
        if registration.ranges.len() >= MAX_RANGES {
            return Err(Errno::NOMEM);
        }
        registration.ranges.insert(start, end);
        // Pages that are leaving were not write-protected here, as those are that leave from now on.
        let begun = books.leaving.nr_begun();
        if let Some((first, last)) = self.index_range(start, end) {
            self.wait_while(&mut books, |leaving| leaving.has_older(first, last, begun));
        }
        Ok(())
    }

    /// Forgets a range of a process; returns whether it has others left.
    pub(crate) fn unregister(&self, client: u64, start: u64, end: u64) -> bool {
        let mut books = self.books.lock();
        let Some(registration) = books.registrations.get_mut(&client) else { return false };
        registration.ranges.remove(start, end);
        let any_left = !registration.ranges.is_empty();
        if !any_left {
            books.registrations.remove(&client);
        }
        any_left
    }

    /// The first address from `addr` on where the process has mapped the enclave.
    pub(crate) fn next_mapped(&self, client: u64, addr: u64) -> Option<u64> {
        self.books.lock().registrations.get(&client)?.ranges.next(addr)
    }

    fn index(&self, addr: u64) -> Option<(&Place, u32)> {
        let place = self.place.get()?;
        let offset = addr.checked_sub(place.base).filter(|offset| *offset < place.size)?;
        Some((place, u32::try_from(offset / PAGE_SIZE as u64).ok()?))
    }

    /// The numbers of the first and the last page between two addresses.
    fn index_range(&self, start: u64, end: u64) -> Option<(u32, u32)> {
        let place = self.place.get()?;
        let index = |addr: u64| {
            let offset = addr.saturating_sub(place.base).min(place.size);
            u32::try_from(offset / PAGE_SIZE as u64).unwrap_or(u32::MAX)
        };
        Some((index(start), index(end)))
    }

    /// Waits while pages that matter are on their way out. The thread takes out none itself just then, and those who do
    /// need no lock that may be held here, so they are through soon.
    fn wait_while(&self, books: &mut Guard<'_>, matter: impl Fn(&Departures) -> bool) {
        while matter(&books.leaving) {
            self.left.wait(books.inner());
        }
    }

    /// What the window says of the page at `addr`; 0 if it is not mapped.
    pub(crate) fn entry(&self, addr: u64) -> u32 {
        let Some((_, index)) = self.index(addr) else { return 0 };
        self.books.lock().mapped.get(index.into()).map_or(0, |mapped| mapped.entry)
    }

    /// Shows new permissions of the page at `addr`, if it is mapped.
    /// Preconditions: the enclave's lock is held.
    pub(crate) fn refresh(&self, addr: u64, epcm: &EpcmEntry) {
        let Some((place, index)) = self.index(addr) else { return };
        if let Some(mapped) =
            self.books.lock().mapped.get_mut(index.into()).filter(|mapped| mapped.tcs.is_none())
        {
            mapped.entry = entry::MAPPED | entry::PRESENT | permissions(epcm);
            place.window.set_entry(index, mapped.entry);
        }
    }

    /// Makes a resident page accessible, if the EPCM lets anybody access it.
    /// Preconditions: the enclave's lock is held.
    pub(crate) fn map(
        &self,
        hw: &Hw,
        frames: &Frames,
        addr: u64,
        page: EpcPage,
        faulter: Option<&Faulter<'_>>,
    ) -> Result<(), MapFailed> {
        let (place, index) = self.index(addr).ok_or(MapFailed)?;
        let Some(epcm) = hw.epcm(page) else { return Err(MapFailed) };
        if epcm.blocked || epcm.pending || epcm.modified {
            return Ok(());
        }
        let mut books = self.books.lock();
        self.wait_while(&mut books, |leaving| leaving.has(index));
        match epcm.page_type {
            PageType::Tcs => {
                books.show_tcs(place, hw, index, addr, page, faulter);
                Ok(())
            }
            PageType::Reg => {
                let Some(faulter) = faulter else { return Ok(()) };
                let (clock, faulted) = books.tick(faulter);
                let uffd = books.uffd(faulter.client, addr).ok_or(MapFailed)?;
                if let Some(mapped) = books.mapped.get_mut(index.into()) {
                    // Its bytes are in the view, so this process has met the marker of an old write protection.
                    (mapped.clock, mapped.faulted) = (clock, faulted);
                    return match uffd.write_protect(addr, PAGE_SIZE as u64, false) {
                        Ok(()) => Ok(()),
                        Err(_) => Err(MapFailed),
                    };
                }
                let offset = u64::from(index) * PAGE_SIZE as u64;
                frames
                    .to_view(page, &self.file, offset, |bytes| match uffd.copy_page(addr, bytes) {
                        // Somebody has touched the view behind the machine's back. The page that is there is
                        // overwritten; that it exists also means that writing allocates nothing.
                        Err(Errno::EXIST) => {
                            let _ = uffd.write_protect(addr, PAGE_SIZE as u64, false);
                            self.file.write(offset, bytes)
                        }
                        other => other,
                    })
                    .map_err(|error| {
                        tracing::debug!(%error, addr, enclave = self.id.0, "cannot map a page");
                        MapFailed
                    })?;
                let entry = entry::MAPPED | entry::PRESENT | permissions(&epcm);
                let mapped = Mapped { page, entry, faulted, clock, tcs: None, spared: 0 };
                books.mapped.insert(index.into(), mapped);
                place.window.set_entry(index, entry);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes pages out of all address spaces; those that are mapped nowhere are skipped. `rest` is what the
    /// window says of them then. Preconditions: addresses ascend; if nobody may map the pages before this returns, the
    /// enclave's lock is held, or they are being reclaimed.
    pub(crate) fn unmap(&self, hw: &Hw, frames: &Frames, mut pages: &[(u64, EpcPage)], rest: u32) {
        let mut books = self.books.lock();
        let Some(place) = self.place.get() else { return };
        let mut run: Vec<(u32, EpcPage)> = Vec::with_capacity(pages.len().min(BATCH));
        while !pages.is_empty() {
            pages = self.next_run(&mut books, hw, pages, rest, &mut run);
            self.unmap_run(&mut books, place, frames, &run, rest);
            run.clear();
        }
    }

    /// Collects the next pages that lie in the view one after the other; returns those that are behind them. TCS pages in
    /// between leave the window at once.
    fn next_run<'a>(
        &self,
        books: &mut Guard<'_>,
        hw: &Hw,
        pages: &'a [(u64, EpcPage)],
        rest: u32,
        run: &mut Vec<(u32, EpcPage)>,
    ) -> &'a [(u64, EpcPage)] {
        for (done, (addr, page)) in pages.iter().enumerate() {
            let Some((place, index)) = self.index(*addr) else { continue };
            if run.len() == BATCH || run.last().is_some_and(|(last, _)| last + 1 != index) {
                return &pages[done..];
            }
            if !run.is_empty() && books.leaving.has(index) {
                // The lock is not let go between the look at a page and its leaving.
                return &pages[done..];
            }
            self.wait_while(books, |leaving| leaving.has(index));
            if rest & entry::PRESENT == 0 {
                place.window.set_entry(index, rest);
            }
            let Some((mapped, is_tcs)) =
                books.mapped.get(index.into()).map(|mapped| (mapped.page, mapped.tcs.is_some()))
            else {
                continue;
            };
            debug_assert_eq!(mapped, *page, "driver and view agree where a page is");
            if is_tcs {
                books.hide_tcs(place, hw, index, rest);
                continue;
            }
            run.push((index, mapped));
        }
        &[]
    }

    /// Takes pages out of the view that lie one after the other, with the lock let go.
    fn unmap_run(
        &self,
        books: &mut Guard<'_>,
        place: &Place,
        frames: &Frames,
        run: &[(u32, EpcPage)],
        rest: u32,
    ) {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { return };
        let offset = u64::from(*first) * PAGE_SIZE as u64;
        let length = run.len() as u64 * PAGE_SIZE as u64;
        let ranges = books.ranges(place.base + offset, place.base + offset + length);
        let number = books.leaving.begin(*first, *last);
        books.unlocked(|| {
            // From here on nobody can write; readers still see the same bytes until the hole is there.
            for (uffd, start, end) in &ranges {
                protect(uffd, *start, *end);
            }
            frames.to_frames(run.iter().map(|(_, page)| *page), &self.file, offset);
            if let Err(error) = self.file.punch_hole(offset, length) {
                tracing::warn!(%error, enclave = self.id.0, "cannot take pages out of a view");
            }
        });
        for (index, _) in run {
            if let Some(mapped) = books.mapped.remove((*index).into()) {
                let permissions = mapped.entry & (entry::R | entry::W | entry::X);
                place.window.set_entry(*index, if rest == 0 { 0 } else { rest | permissions });
            }
        }
        books.leaving.end(number);
        self.left.notify_all();
    }

    /// Ages pages: those that are mapped are young, and are unmapped unless a thread needed them just now.
    /// Preconditions: addresses ascend.
    pub(crate) fn age(&self, hw: &Hw, frames: &Frames, pages: &[(u64, EpcPage)], young: &mut [bool]) {
        let mut old = Vec::with_capacity(pages.len());
        {
            let mut books = self.books.lock();
            let Books { mapped: all, clocks, .. } = &mut *books;
            let mut recent = Recent::new(clocks);
            for ((addr, page), young) in pages.iter().zip(young) {
                let mapped = self.index(*addr).and_then(|(_, index)| all.get_mut(index.into()));
                *young = mapped.is_some();
                let Some(mapped) = mapped else { continue };
                if !recent.spares(mapped) {
                    old.push((*addr, *page));
                }
            }
        }
        self.unmap(hw, frames, &old, entry::PRESENT);
    }

    /// The enclave is gone: empties the view. Processes that still map it see holes.
    pub(crate) fn close(&self) {
        let mut books = self.books.lock();
        books.mapped.clear();
        books.registrations.clear();
        if let Some(place) = self.place.get() {
            let _ = self.file.punch_hole(0, place.size);
        }
    }

    /// Pages in the view or the window.
    pub(crate) fn nr_mapped(&self) -> usize {
        self.books.lock().mapped.len()
    }
}

/// The window's bits for what the EPCM permits.
fn permissions(epcm: &EpcmEntry) -> u32 {
    let bit = |allowed, bit| if allowed { bit } else { 0 };
    bit(epcm.r, entry::R) | bit(epcm.w, entry::W) | bit(epcm.x, entry::X)
}

/// Write-protects a range of a process. What is not registered there any more, or belongs to a process that is
/// gone, needs no protection.
fn protect(uffd: &Userfaultfd, start: u64, end: u64) {
    if uffd.write_protect(start, end - start, true) == Err(Errno::NOENT) && end - start > PAGE_SIZE as u64 {
        for page in (start..end).step_by(PAGE_SIZE) {
            let _ = uffd.write_protect(page, PAGE_SIZE as u64, true);
        }
    }
}
