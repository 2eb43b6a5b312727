//! The caller of an ioctl: memory in pages, signals that come after a number of looks, and files.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use parking_lot::Mutex;
use usgx_driver::{Caller, Efault, SourceError};
use usgx_isa::Page;

#[derive(Debug, Default)]
struct State {
    pages: BTreeMap<u64, Box<Page>>,
    read_only: BTreeSet<u64>,
    never_executable: BTreeSet<u64>,
    provision_fds: BTreeSet<i32>,
    /// Looks at the signal until there is one.
    signal_after: Option<usize>,
    sources: usize,
}

/// A simulated caller. Memory that was not written is not mapped.
#[derive(Debug, Default)]
pub struct SimCaller(Mutex<State>);

impl SimCaller {
    /// A caller with no memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `bytes` at `addr`, mapping what is not mapped.
    pub fn set(&self, addr: u64, bytes: &[u8]) {
        let mut state = self.0.lock();
        for (page, at, range) in
            pieces(addr, bytes.len()).expect("no test writes at the end of all addresses")
        {
            let bytes = &bytes[range];
            state.pages.entry(page).or_default().0[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Reads a 64-bit number.
    ///
    /// # Panics
    /// If it is not mapped.
    pub fn word(&self, addr: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes).expect("the word is mapped");
        u64::from_le_bytes(bytes)
    }

    /// Unmaps the page of `addr`.
    pub fn unmap(&self, addr: u64) {
        self.0.lock().pages.remove(&(addr / 4096));
    }

    /// Makes the page of `addr` read-only, for copies out.
    pub fn set_read_only(&self, addr: u64) {
        self.0.lock().read_only.insert(addr / 4096);
    }

    /// Makes the page of `addr` one that may never be executed.
    pub fn set_never_executable(&self, addr: u64) {
        self.0.lock().never_executable.insert(addr / 4096);
    }

    /// Makes `fd` an open provision device.
    pub fn add_provision_fd(&self, fd: i32) {
        self.0.lock().provision_fds.insert(fd);
    }

    /// Makes a signal pending after `looks` looks; `None` takes it away.
    pub fn set_signal_after(&self, looks: Option<usize>) {
        self.0.lock().signal_after = looks;
    }

    /// How many source pages were asked for.
    pub fn nr_sources(&self) -> usize {
        self.0.lock().sources
    }
}

/// The pieces of `len` bytes at `addr` that lie in one page each: number of the page, place in it, and in the bytes.
fn pieces(addr: u64, len: usize) -> Result<impl Iterator<Item = (u64, usize, Range<usize>)>, Efault> {
    addr.checked_add(len as u64).ok_or(Efault)?;
    let mut done = 0;
    Ok(std::iter::from_fn(move || {
        let at = addr + done as u64;
        let offset = (at % 4096) as usize;
        let count = (4096 - offset).min(len - done);
        done += count;
        (count > 0).then_some((at / 4096, offset, done - count..done))
    }))
}

impl Caller for SimCaller {
    fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), Efault> {
        let state = self.0.lock();
        for (page, at, range) in pieces(addr, out.len())? {
            let out = &mut out[range];
            out.copy_from_slice(&state.pages.get(&page).ok_or(Efault)?.0[at..at + out.len()]);
        }
        Ok(())
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), Efault> {
        let mut state = self.0.lock();
        for (page, at, range) in pieces(addr, bytes.len())? {
            if state.read_only.contains(&page) {
                return Err(Efault);
            }
            let bytes = &bytes[range];
            state.pages.get_mut(&page).ok_or(Efault)?.0[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn source_page(&self, addr: u64, remaining: u64, out: &mut Page) -> Result<(), SourceError> {
        assert!(
            addr.is_multiple_of(4096) && remaining >= 4096 && remaining.is_multiple_of(4096),
            "whole pages"
        );
        let mut state = self.0.lock();
        state.sources += 1;
        let page = state.pages.get(&(addr / 4096)).ok_or(SourceError::Fault)?;
        if state.never_executable.contains(&(addr / 4096)) {
            return Err(SourceError::Access);
        }
        out.0 = page.0;
        Ok(())
    }

    fn signal_pending(&self) -> bool {
        match &mut self.0.lock().signal_after {
            None => false,
            Some(0) => true,
            Some(looks) => {
                *looks -= 1;
                false
            }
        }
    }

    fn is_provision_fd(&self, fd: i32) -> bool {
        self.0.lock().provision_fds.contains(&fd)
    }
}
