//! Page frames: memory for the contents of EPC pages that nobody has mapped.
//!
//! One anonymous mapping, as large as the EPC, of which only the frames in use (and a few spare ones) have
//! memory behind them. A [`Frame`] owns one page of it, so its bytes are an ordinary reference.
#![expect(unsafe_code, reason = "hands out parts of one mapping")]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes of a frame.
pub const FRAME_SIZE: usize = 4096;

/// The pool of frames.
///
/// # Invariants
///
/// `base` is the start of a private mapping of `nr_frames` frames that lives as long as the value. Each
/// frame's number is either in one of the lists of `free` or in exactly one [`Frame`].
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    nr_frames: usize,
    /// Free frames that keep their memory, at most this many: taking one costs no page fault.
    max_warm: usize,
    free: Mutex<FreeFrames>,
}

#[derive(Debug)]
struct FreeFrames {
    /// Free, with memory behind them.
    warm: Vec<u32>,
    /// Free, without.
    cold: Vec<u32>,
}

// SAFETY: the mapping belongs to no thread; frames are handed out by number, each to one owner.
unsafe impl Send for Arena {}
// SAFETY: as above, and the lists have a lock.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes an arena of `nr_frames` frames; at most `max_warm` free ones keep their memory.
    ///
    /// # Errors
    /// Whatever `mmap` says; [`Errno::INVAL`] for no frames or too many.
    pub fn new(nr_frames: usize, max_warm: usize) -> Result<Arc<Self>, Errno> {
        let count = u32::try_from(nr_frames).map_err(|_| Errno::INVAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                nr_frames * FRAME_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        // Huge pages would give a frame's neighbours memory, and a core dump has no use for encrypted pages.
        // SAFETY: advice about our own mapping; neither kind changes its contents. Best effort both.
        unsafe {
            let _ = rustix::mm::madvise(base, nr_frames * FRAME_SIZE, Advice::LinuxNoHugepage);
            let _ = rustix::mm::madvise(base, nr_frames * FRAME_SIZE, Advice::LinuxDontDump);
        }
        // INVARIANT: just mapped; no frame is handed out yet.
        Ok(Arc::new(Self {
            base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)?,
            nr_frames,
            max_warm,
            free: Mutex::new(FreeFrames { warm: Vec::new(), cold: (0..count).rev().collect() }),
        }))
    }

    /// Takes a frame with any contents, or `None` if all are in use.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Frame> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let number = free.warm.pop().or_else(|| free.cold.pop())?;
        // INVARIANT: the number has left the lists and goes to this frame only.
        Some(Frame { arena: Arc::clone(self), number })
    }

    /// Frames in use.
    #[must_use]
    pub fn nr_used(&self) -> usize {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        self.nr_frames - free.warm.len() - free.cold.len()
    }

    fn address(&self, number: u32) -> *mut u8 {
        // SAFETY: numbers are below `nr_frames` by the type's invariant, so this stays inside the mapping.
        unsafe { self.base.as_ptr().add(number as usize * FRAME_SIZE) }
    }

    fn give_back(&self, number: u32) {
        let is_warm = {
            let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.warm.len() < self.max_warm
        };
        if !is_warm {
            // SAFETY: the frame has no owner any more and is in no list yet, so nobody looks at its bytes.
            // If the advice fails, the frame keeps its memory, which does no harm.
            let _ = unsafe {
                rustix::mm::madvise(self.address(number).cast(), FRAME_SIZE, Advice::LinuxDontNeed)
            };
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if is_warm { free.warm.push(number) } else { free.cold.push(number) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: every frame holds a reference to its arena, so there are none left.
        // A failure would leak address space and nothing else.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.nr_frames * FRAME_SIZE) };
    }
}

/// One page of an [`Arena`], given back when dropped.
#[derive(Debug)]
pub struct Frame {
    arena: Arc<Arena>,
    number: u32,
}

impl Deref for Frame {
    type Target = [u8; FRAME_SIZE];

    fn deref(&self) -> &Self::Target {
        // SAFETY: the frame is the only owner of these bytes by the arena's invariant, they are mapped as
        // long as `self.arena` lives, and any bytes are valid.
        unsafe { &*self.arena.address(self.number).cast() }
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { &mut *self.arena.address(self.number).cast() }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.arena.give_back(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_distinct_and_come_back() {
        let arena = Arena::new(4, 1).expect("small");
        let mut frames: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(frames.len(), 4);
        for (value, frame) in (1..).zip(&mut frames) {
            frame.fill(value);
        }
        for (value, frame) in (1..).zip(&frames) {
            assert!(frame.iter().all(|byte| *byte == value));
        }
        drop(frames);
        assert_eq!(arena.nr_used(), 0);
        assert!(arena.take().is_some());
    }
}
