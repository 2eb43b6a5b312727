//! Page frames: memory for the contents of EPC pages that nobody has mapped.
//!
//! One anonymous mapping, as large as the EPC, of which only the frames in use, and spare ones, have memory behind
//! them. Getting memory and giving it back costs as much as encrypting a page, so a spare frame stays *warm* while
//! frames come and go; [`Arena::cool`], called now and then, makes those *cold* that nobody has needed meanwhile.
//! Neighbours get memory, and lose it, together: one system call instead of a page fault for each.
//! A [`Frame`] owns one page of the mapping, so its bytes are an ordinary reference.
#![expect(unsafe_code, reason = "hands out parts of one mapping")]

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Bytes of a frame.
pub const FRAME_SIZE: usize = 4096;

/// Most frames that lose their memory together.
const COOL_BATCH: usize = 1024;
/// Most frames that get memory together: as much as a page of the next size, and not too long a wait for the first.
const WARM_BATCH: usize = 64;

/// The pool of frames.
///
/// # Invariants
///
/// `base` is the start of a private mapping of `nr_frames` frames that lives as long as the value. Each
/// frame's number is in one of the lists of `free`, in exactly one [`Frame`], or with a thread that carries it from
/// one of these to another.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    nr_frames: usize,
    /// Free frames that keep their memory, at most this many.
    max_warm: usize,
    free: Mutex<FreeFrames>,
}

#[derive(Debug)]
struct FreeFrames {
    /// Free, with memory behind them; those that were in use last are at the back, and are taken first.
    warm: VecDeque<u32>,
    /// Free, without.
    cold: Vec<u32>,
    /// The fewest that were warm at any time since the last call of [`Arena::cool`].
    idle: usize,
    /// Free, in no list: on their way from one to the other.
    moving: usize,
    used: usize,
}

impl FreeFrames {
    fn take(&mut self) -> Option<u32> {
        let number = self.warm.pop_back()?;
        self.idle = self.idle.min(self.warm.len());
        self.used += 1;
        Some(number)
    }

    /// Takes cold frames that are neighbours, to be made warm; the lowest is the last.
    fn coldest_neighbours(&mut self) -> Vec<u32> {
        let last = self.cold.iter().rev();
        let count = last.clone().zip(last.skip(1)).take(WARM_BATCH - 1).take_while(|(a, b)| *a + 1 == **b);
        let start = self.cold.len().saturating_sub(1 + count.count());
        let numbers = self.cold.split_off(start);
        self.moving += numbers.len();
        numbers
    }

    /// Takes warm frames, those that have been free for longest, to be made cold.
    fn coldest(&mut self, count: usize) -> Vec<u32> {
        let numbers: Vec<u32> = self.warm.drain(..count).collect();
        self.idle = self.idle.min(self.warm.len());
        self.moving += numbers.len();
        numbers
    }
}

// SAFETY: the mapping belongs to no thread; frames are handed out by number, each to one owner.
unsafe impl Send for Arena {}
// SAFETY: as above, and the lists have a lock.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes an arena of `nr_frames` frames, of which at most `max_warm` free ones keep their memory.
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
            free: Mutex::new(FreeFrames {
                warm: VecDeque::new(),
                cold: (0..count).rev().collect(),
                idle: 0,
                moving: 0,
                used: 0,
            }),
        }))
    }

    /// Takes a frame with any contents, or `None` if all are in use.
    #[must_use]
    pub fn take(self: &Arc<Self>) -> Option<Frame> {
        let number = self.lock().take();
        number.map(|number| self.frame(number)).or_else(|| self.take_many(1).pop())
    }

    /// Takes `count` frames with any contents, or as many as there are.
    #[must_use]
    pub fn take_many(self: &Arc<Self>, count: usize) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(count);
        loop {
            let mut free = self.lock();
            while frames.len() < count
                && let Some(number) = free.take()
            {
                frames.push(self.frame(number));
            }
            if frames.len() == count {
                return frames;
            }
            let (cold, are_moving) = (free.coldest_neighbours(), free.moving > 0);
            drop(free);
            if !cold.is_empty() {
                self.make_warm(cold);
            } else if are_moving {
                // They come in a moment: their thread waits for nothing.
                std::thread::yield_now();
            } else {
                return frames;
            }
        }
    }

    /// The frame with a number that has just left the lists.
    fn frame(self: &Arc<Self>, number: u32) -> Frame {
        // INVARIANT: each such number goes to one frame only.
        Frame { arena: Arc::clone(self), number }
    }

    /// Frames in use.
    #[must_use]
    pub fn nr_used(&self) -> usize {
        self.lock().used
    }

    /// Gives back the memory of the spare frames that nobody has needed since the last call.
    pub fn cool(&self) {
        let mut idle = self.lock().idle;
        while idle > 0 {
            let numbers = {
                let mut free = self.lock();
                let count = idle.min(COOL_BATCH).min(free.warm.len());
                free.coldest(count)
            };
            if numbers.is_empty() {
                break;
            }
            idle -= numbers.len();
            self.make_cold(numbers);
        }
        let mut free = self.lock();
        free.idle = free.warm.len();
    }

    fn lock(&self) -> MutexGuard<'_, FreeFrames> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address(&self, number: u32) -> *mut u8 {
        // SAFETY: numbers are below `nr_frames` by the type's invariant, so this stays inside the mapping.
        unsafe { self.base.as_ptr().add(number as usize * FRAME_SIZE) }
    }

    fn give_back(&self, number: u32) {
        let surplus = {
            let mut free = self.lock();
            free.used -= 1;
            free.warm.push_back(number);
            let count = if free.warm.len() > self.max_warm { COOL_BATCH.min(free.warm.len()) } else { 0 };
            free.coldest(count)
        };
        self.make_cold(surplus);
    }

    /// Gets memory for frames that are neighbours, in descending order, in no list, and have no owner; lists them.
    fn make_warm(&self, numbers: Vec<u32>) {
        if let Some(&lowest) = numbers.last() {
            // SAFETY: these frames have no owner, and their contents stay as they are. Where the advice fails (Linux
            // before 5.14, or no memory is left), the first touch does the same.
            let _ = unsafe {
                let start = self.address(lowest).cast();
                rustix::mm::madvise(start, numbers.len() * FRAME_SIZE, Advice::LinuxPopulateWrite)
            };
        }
        let mut free = self.lock();
        free.moving -= numbers.len();
        free.warm.extend(numbers);
    }

    /// Gives back the memory of frames that are in no list and have no owner, and lists them.
    fn make_cold(&self, mut numbers: Vec<u32>) {
        if numbers.is_empty() {
            return;
        }
        numbers.sort_unstable();
        for run in numbers.chunk_by(|a, b| a + 1 == *b) {
            // SAFETY: these frames have no owner and are in no list, so nobody looks at their bytes.
            // If the advice fails, they keep their memory, which does no harm.
            let _ = unsafe {
                let start = self.address(run[0]).cast();
                rustix::mm::madvise(start, run.len() * FRAME_SIZE, Advice::LinuxDontNeed)
            };
        }
        let mut free = self.lock();
        free.moving -= numbers.len();
        // Descending, so that neighbours are taken one after the other.
        free.cold.extend(numbers.into_iter().rev());
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

    /// Whether a frame that comes back out of the arena still has what was written into it.
    fn is_warm(frame: &Frame) -> bool {
        frame[0] != 0
    }

    fn filled(arena: &Arc<Arena>, count: usize) -> Vec<Frame> {
        let mut frames: Vec<_> = (0..count).map(|_| arena.take().expect("enough")).collect();
        frames.iter_mut().for_each(|frame| frame.fill(1));
        frames
    }

    #[test]
    fn frames_that_nobody_needs_lose_their_memory() {
        let arena = Arena::new(100, 100).expect("small");
        drop(filled(&arena, 100));
        arena.cool();
        let needed = filled(&arena, 30);
        assert!(needed.iter().all(is_warm));
        drop(needed);
        arena.cool();
        let frames: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(frames.iter().filter(|frame| is_warm(frame)).count(), 30);
    }

    #[test]
    fn few_frames_keep_their_memory() {
        let arena = Arena::new(4000, 2000).expect("small");
        drop(filled(&arena, 4000));
        let frames: Vec<_> = std::iter::from_fn(|| arena.take()).collect();
        let warm = frames.iter().filter(|frame| is_warm(frame)).count();
        assert_eq!(frames.len(), 4000);
        assert!((2000 - COOL_BATCH..=2000).contains(&warm), "{warm}");
    }
}
