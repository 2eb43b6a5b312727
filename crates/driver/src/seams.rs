//! What the driver needs of the system it runs in, as traits, and the errors they report.
//!
//! Implemented by the machine (user-space address spaces, files in memory), by the test kit, and by a kernel.

use usgx_epc::Platform;
use usgx_isa::{Encls, EpcPage, EvictedPage, Page};

use crate::event::Event;
use crate::page::PageKind;

/// The number of an enclave, never used twice by one driver.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EnclaveId(pub u64);

/// The types that make up one system; a name for the bundle, so that signatures stay short.
pub trait Machine: Send + Sync + 'static {
    /// The processor.
    type Hw: Encls + 'static;
    /// Locks, signals, scheduling.
    type Platform: Platform;
    /// The programs' page tables.
    type Spaces: AddressSpaces;
    /// Where evicted pages go.
    type Store: BackingStore;

    /// Is told everything that happens to an enclave, in the thread that does it. Called with the enclave's lock
    /// held or without: it must neither wait nor call the driver. A machine that does not want to know pays nothing.
    fn observe(_platform: &Self::Platform, _enclave: EnclaveId, _event: &Event<'_>) {}
}

/// A page could not be made accessible.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapFailed;

/// The address spaces of all programs that map an enclave.
///
/// `map` and `hide` are called with the enclave's lock held, and `zap` with it or for pages that are being reclaimed,
/// which nobody maps: so no page is mapped by a fault while it is taken out, changed or written back.
/// `test_and_clear_young` is called without; if it meets one of the others, either comes first. None of them may wait for
/// a program. Linear addresses are page-aligned, and ascend where there are several.
pub trait AddressSpaces: Send + Sync + 'static {
    /// The enclave got its place: ECREATE succeeded. No lock is held; no page exists yet.
    fn created(&self, enclave: EnclaveId, base: u64, size: u64);

    /// Makes a resident page accessible to every process that maps its address. A page that is accessible
    /// already stays so, which is no error.
    ///
    /// # Errors
    /// It can not be done; the program gets SIGBUS.
    fn map(&self, enclave: EnclaveId, addr: u64, page: EpcPage, kind: PageKind) -> Result<(), MapFailed>;

    /// Takes pages out of all address spaces; afterwards their bytes are in the EPC page and nobody but the
    /// processor changes them. Pages that are in none are skipped. Contiguous runs may be handled as ranges.
    ///
    /// Called before eviction and removal, and before a page becomes a TCS.
    fn zap(&self, enclave: EnclaveId, pages: &[(u64, EpcPage)]);

    /// Called when what the EPCM says of pages changes (EMODPR, EMODT to TRIM): whoever keeps a copy of that must find
    /// out in the next `map`. Page tables may keep such pages, since the processor looks at the EPCM itself, and
    /// error codes tell that they do.
    fn hide(&self, enclave: EnclaveId, pages: &[(u64, EpcPage)]) {
        self.zap(enclave, pages);
    }

    /// Tests and clears the accessed bit of each page: `young[i]` tells whether page `i` was used since the last
    /// call. Where there is no such bit, a page that is mapped is young, and unmapping it is the clearing.
    fn test_and_clear_young(&self, enclave: EnclaveId, pages: &[(u64, EpcPage)], young: &mut [bool]);

    /// Makes every thread that is inside the enclave leave it once; returns when they have, or after a bound. No
    /// lock is held.
    fn kick(&self, enclave: EnclaveId);

    /// The enclave is gone: no program has it open or mapped. Forgets everything about it; when this returns,
    /// none of its pages is mapped and no thread counts as inside. No lock is held.
    fn destroyed(&self, enclave: EnclaveId);
}

/// Why the backing store did not do as asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StoreError {
    /// There is no room.
    Full,
    /// An enclave of that size can have no backing.
    TooLarge,
    /// Reading or writing failed.
    Io,
}

/// Keeps evicted pages. Pages are named by their index in the enclave; the SECS has the index after the last, and VA
/// pages have those after that.
pub trait BackingStore: Send + Sync + 'static {
    /// Makes the store of an enclave of `size` bytes; reserves nothing.
    ///
    /// # Errors
    /// [`StoreError`]; there is no store then.
    fn create(&self, enclave: EnclaveId, size: u64) -> Result<(), StoreError>;

    /// Makes room for a page, so that the `put` that follows is not refused for want of it. Idempotent.
    ///
    /// # Errors
    /// [`StoreError`]; the page then stays in the EPC.
    fn reserve(&self, enclave: EnclaveId, index: u64) -> Result<(), StoreError>;

    /// Stores a page.
    ///
    /// # Errors
    /// [`StoreError`]; the driver then takes the page back into the EPC.
    fn put(&self, enclave: EnclaveId, index: u64, page: &EvictedPage) -> Result<(), StoreError>;

    /// Reads a page that was put.
    ///
    /// # Errors
    /// [`StoreError`]; the page stays stored and may be asked for again.
    fn get(&self, enclave: EnclaveId, index: u64, out: &mut EvictedPage) -> Result<(), StoreError>;

    /// Gives up the page, or the room reserved for it, if there is any.
    fn discard(&self, enclave: EnclaveId, index: u64);

    /// Gives up the whole store.
    fn destroy(&self, enclave: EnclaveId);
}

/// The caller's memory can not be accessed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Efault;

/// A page that was to be copied into an enclave can not be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SourceError {
    /// Nothing readable is there.
    Fault,
    /// What is there may never be executed (a file on a `noexec` mount).
    Access,
}

/// The caller of an ioctl: its memory, signals and files. Called without locks.
pub trait Caller {
    /// Copies from the caller's memory.
    ///
    /// # Errors
    /// Some of it can not be read.
    fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), Efault>;

    /// Copies to the caller's memory.
    ///
    /// # Errors
    /// Some of it can not be written.
    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), Efault>;

    /// Copies one page that is to go into an enclave. `remaining` is the number of bytes, this page's included,
    /// that the call still wants from `addr` on, if nothing goes wrong.
    ///
    /// # Errors
    /// [`SourceError`].
    fn source_page(&self, addr: u64, remaining: u64, out: &mut Page) -> Result<(), SourceError>;

    /// Whether a signal waits for the caller.
    fn signal_pending(&self) -> bool;

    /// Whether the caller's file descriptor `fd` is open on `/dev/sgx_provision`.
    fn is_provision_fd(&self, fd: i32) -> bool;
}
