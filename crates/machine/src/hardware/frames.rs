//! Where the bytes of each EPC page are: in a frame of the machine, or in an enclave's view.
//!
//! A page's bytes are in exactly one place. The processor reads and writes them through [`PageBytes`]; the view
//! moves them ([`Frames::to_view`], [`Frames::to_frames`]) when it maps and unmaps a page, with the lock of the page's
//! place held, so that nobody looks at a page that is on its way.
//! Lock order: the lock of a page's place is innermost, but for the arena's. Only who moves pages holds several, and no
//! page is moved by two threads.

use std::io::IoSliceMut;
use std::sync::Arc;

use parking_lot::Mutex;
use usgx_cpu::PageBytes;
use usgx_isa::{EpcPage, PAGE_SIZE};
use usgx_sys::arena::{Arena, Frame};
use usgx_sys::memfd::Memfd;
use usgx_sys::{Errno, process};

/// Free frames that keep their memory while they come and go take at most this part of the host's. The reclaimer goes
/// round: it unmaps all pages, which need frames then, and writes them back one by one; and who loads an enclave often
/// loads the next. [`Frames::cool`] gives back what is not needed again soon.
const WARM_PART: u64 = 16;

/// The place of one page's bytes.
#[derive(Debug, Default)]
enum Location {
    /// Nowhere: the page is free.
    #[default]
    None,
    /// In a frame.
    Frame(Frame),
    /// In a view, at this offset.
    View(Arc<Memfd>, u64),
}

/// The bytes of all EPC pages.
#[derive(Debug)]
pub(crate) struct Frames {
    arena: Arc<Arena>,
    pages: Box<[Mutex<Location>]>,
}

impl Frames {
    /// Makes room for `nr_pages` pages.
    pub(crate) fn new(nr_pages: u32) -> Result<Self, Errno> {
        let max_warm = (process::memory() / WARM_PART) as usize / PAGE_SIZE;
        Ok(Self {
            arena: Arena::new(nr_pages as usize, max_warm)?,
            pages: (0..nr_pages).map(|_| Mutex::default()).collect(),
        })
    }

    /// Frames in use: pages that are valid and not in a view.
    pub(crate) fn nr_used(&self) -> usize {
        self.arena.nr_used()
    }

    /// Gives back memory that frames have kept and nobody has needed since the last call.
    pub(crate) fn cool(&self) {
        self.arena.cool();
    }

    fn take(&self) -> Frame {
        // There are as many frames as pages, and a page has at most one.
        self.arena.take().expect("every EPC page has its frame")
    }

    /// Runs `copy` on the bytes of `page`, which are in a frame, and if it succeeds frees the frame: the bytes
    /// are in the view now. Preconditions: the enclave's lock is held.
    pub(crate) fn to_view<E>(
        &self,
        page: EpcPage,
        view: &Arc<Memfd>,
        offset: u64,
        copy: impl FnOnce(&[u8; PAGE_SIZE]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut location = self.pages[page.index()].lock();
        match &*location {
            Location::Frame(frame) => copy(frame)?,
            // A page that was never written is zeros; the processor writes every page before it is valid.
            Location::None => copy(&[0; PAGE_SIZE])?,
            Location::View(..) => return Ok(()),
        }
        *location = Location::View(Arc::clone(view), offset);
        Ok(())
    }

    /// Copies pages that lie one after the other in a view, from `offset` on, into frames.
    /// Preconditions: nobody else moves the pages, and no process can write to the view's.
    pub(crate) fn to_frames(&self, pages: impl ExactSizeIterator<Item = EpcPage>, view: &Memfd, offset: u64) {
        let mut frames = self.arena.take_many(pages.len());
        assert_eq!(frames.len(), pages.len(), "every EPC page has its frame");
        let mut locations: Vec<_> = pages.map(|page| self.pages[page.index()].lock()).collect();
        let mut buffers: Vec<_> = frames.iter_mut().map(|frame| IoSliceMut::new(&mut frame[..])).collect();
        if view.read_vectored(offset, &mut buffers).is_err() {
            // Page by page, then; what cannot be read is lost by the client's own doing.
            for (frame, offset) in frames.iter_mut().zip((offset..).step_by(PAGE_SIZE)) {
                view.read_or_zeros(offset, &mut frame[..]);
            }
        }
        for (location, frame) in locations.iter_mut().zip(frames) {
            **location = Location::Frame(frame);
        }
    }
}

/// [`Frames`] as the processor sees them.
#[derive(Clone, Debug)]
pub(crate) struct FrameBytes(pub(crate) Arc<Frames>);

impl PageBytes for FrameBytes {
    fn read(&self, page: EpcPage, offset: usize, out: &mut [u8]) {
        match &*self.0.pages[page.index()].lock() {
            Location::None => out.fill(0),
            Location::Frame(frame) => out.copy_from_slice(&frame[offset..offset + out.len()]),
            Location::View(view, start) => view.read_or_zeros(start + offset as u64, out),
        }
    }

    fn write(&self, page: EpcPage, offset: usize, bytes: &[u8]) {
        let mut location = self.0.pages[page.index()].lock();
        if let Location::View(view, start) = &*location {
            if let Err(error) = view.write(start + offset as u64, bytes) {
                tracing::warn!(%error, "cannot write into a view; its owner has changed it");
            }
            return;
        }
        if matches!(*location, Location::None) {
            let mut frame = self.0.take();
            if bytes.len() != PAGE_SIZE {
                frame.fill(0);
            }
            *location = Location::Frame(frame);
        }
        if let Location::Frame(frame) = &mut *location {
            frame[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn fill_zero(&self, page: EpcPage) {
        self.write(page, 0, &[0; PAGE_SIZE]);
    }

    fn discard(&self, page: EpcPage) {
        let old = std::mem::take(&mut *self.0.pages[page.index()].lock());
        if let Location::View(view, start) = old {
            // Pages leave the view before they are removed, unless the whole enclave goes.
            let _ = view.punch_hole(start, PAGE_SIZE as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_way_to_a_view_and_back() {
        let frames = FrameBytes(Arc::new(Frames::new(2).expect("small")));
        let view = Arc::new(Memfd::create("view").expect("a memfd"));
        view.seal_size(8192).expect("ours alone");
        let pages = [EpcPage(1), EpcPage(0)];
        for (index, page) in (0_u64..).zip(pages) {
            frames.write(page, 0, &[7 + index as u8; PAGE_SIZE]);
            let copy = |bytes: &[u8; PAGE_SIZE]| view.write(index * 4096, bytes);
            frames.0.to_view(page, &view, index * 4096, copy).expect("room");
        }
        assert_eq!(frames.0.nr_used(), 0);
        frames.write(EpcPage(1), 100, &[1, 2, 3]);
        frames.0.to_frames(pages.into_iter(), &view, 0);
        view.punch_hole(0, 8192).expect("a hole");
        let mut out = [0; 4];
        frames.read(EpcPage(1), 99, &mut out);
        assert_eq!(out, [7, 1, 2, 3]);
        frames.read(EpcPage(0), 4092, &mut out);
        assert_eq!(out, [8; 4]);
        frames.discard(EpcPage(0));
        frames.discard(EpcPage(1));
        assert_eq!(frames.0.nr_used(), 0);
    }
}
