//! Numbered slots of one size in ordinary memory, for evicted pages.
//!
//! Memory comes in chunks. Of those whose slots are all free a few are kept, since a program that walks through more
//! memory than the EPC has empties one as it fills another, and memory that is new costs more than encrypting a page
//! into it; [`Slab::cool`] gives back what nobody has needed. Lock order: the caller's lock protects a slab; it takes
//! none. Copies into a slot and out of it need only the slot's own lock, which is never contended: a slot belongs to
//! one page.

use std::sync::Arc;

use parking_lot::Mutex;

/// Bytes of an evicted page: ciphertext and PCMD.
pub(crate) const SLOT_SIZE: usize = 4096 + 128;
/// Slots of a chunk. With their locks, and the words in front of them, they fill 58 pages but for a few bytes; other numbers
/// would leave much of the last page unused.
const CHUNK_SLOTS: usize = 56;
/// Chunks that are kept though nothing is in them, at most: 58 MiB.
const MAX_SPARE: usize = 256;
/// All slots of a chunk in use.
const FULL: u64 = (1 << CHUNK_SLOTS) - 1;

/// The bytes of a slot. Aligned for copies, though not to cache lines: with its lock a slot would take one more.
#[derive(Debug)]
#[repr(align(16))]
pub(crate) struct Bytes(pub(crate) [u8; SLOT_SIZE]);

/// The memory of a chunk.
type Memory = Arc<[Mutex<Bytes>]>;

/// A slot in use. It can be read and written without the slab.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    memory: Memory,
    at: usize,
}

impl Slot {
    /// The slot's bytes.
    pub(crate) fn bytes(&self) -> &Mutex<Bytes> {
        &self.memory[self.at]
    }
}

#[derive(Debug)]
struct Chunk {
    memory: Memory,
    /// One bit for each slot in use.
    used: u64,
}

/// The slots.
#[derive(Debug, Default)]
pub(crate) struct Slab {
    chunks: Vec<Option<Chunk>>,
    /// Chunks that may have a free slot; every one that has is here.
    candidates: Vec<usize>,
    /// The memory of chunks that have gone.
    spare: Vec<Memory>,
    /// The fewest that were spare since [`Slab::cool`].
    idle: usize,
}

impl Slab {
    /// Takes a slot, whose contents are anything.
    pub(crate) fn take(&mut self) -> u64 {
        loop {
            let Some(&number) = self.candidates.last() else {
                let free = self.chunks.iter().position(Option::is_none);
                let number = free.unwrap_or_else(|| {
                    self.chunks.push(None);
                    self.chunks.len() - 1
                });
                let spare = self.spare.pop();
                self.idle = self.idle.min(self.spare.len());
                let new = || (0..CHUNK_SLOTS).map(|_| Mutex::new(Bytes([0; SLOT_SIZE]))).collect();
                let memory = spare.unwrap_or_else(new);
                self.chunks[number] = Some(Chunk { memory, used: 0 });
                self.candidates.push(number);
                continue;
            };
            if let Some(chunk) = self.chunks[number].as_mut().filter(|chunk| chunk.used != FULL) {
                let bit = chunk.used.trailing_ones();
                chunk.used |= 1 << bit;
                return number as u64 * CHUNK_SLOTS as u64 + u64::from(bit);
            }
            self.candidates.pop();
        }
    }

    /// A slot in use.
    pub(crate) fn slot(&self, slot: u64) -> Slot {
        let (number, at) = (slot as usize / CHUNK_SLOTS, slot as usize % CHUNK_SLOTS);
        let chunk = self.chunks[number].as_ref().expect("a slot in use keeps its chunk");
        Slot { memory: Arc::clone(&chunk.memory), at }
    }

    /// Frees a slot.
    pub(crate) fn free(&mut self, slot: u64) {
        let (number, bit) = (slot as usize / CHUNK_SLOTS, slot as usize % CHUNK_SLOTS);
        let chunk = self.chunks[number].as_mut().expect("a slot in use keeps its chunk");
        if chunk.used == FULL {
            self.candidates.push(number);
        }
        chunk.used &= !(1 << bit);
        if chunk.used == 0 {
            let gone = self.chunks[number].take();
            self.candidates.retain(|candidate| *candidate != number);
            if self.spare.len() < MAX_SPARE {
                self.spare.extend(gone.map(|chunk| chunk.memory));
            }
        }
    }

    /// Gives back the spare memory that nobody has needed since the last call.
    pub(crate) fn cool(&mut self) {
        self.spare.truncate(self.spare.len() - self.idle);
        self.idle = self.spare.len();
    }

    /// Bytes of the chunks with slots in use.
    pub(crate) fn memory(&self) -> u64 {
        (self.chunks.iter().flatten().count() * CHUNK_SLOTS * size_of::<Mutex<Bytes>>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_distinct_and_memory_comes_back() {
        let mut slab = Slab::default();
        let slots: Vec<u64> = (0..1000).map(|_| slab.take()).collect();
        for slot in &slots {
            slab.slot(*slot).bytes().lock().0.fill(*slot as u8);
        }
        for slot in slots.iter().skip(1).step_by(2) {
            slab.free(*slot);
        }
        let more: Vec<u64> = (0..400).map(|_| slab.take()).collect();
        for slot in &more {
            slab.slot(*slot).bytes().lock().0.fill(255);
        }
        for slot in slots.iter().step_by(2) {
            assert!(slab.slot(*slot).bytes().lock().0.iter().all(|byte| *byte == *slot as u8));
        }
        slots.iter().step_by(2).chain(&more).for_each(|slot| slab.free(*slot));
        assert_eq!(slab.memory(), 0);
        slab.cool();
        assert!(!slab.spare.is_empty(), "what was needed a moment ago is kept");
        let again = slab.take();
        slab.free(again);
        slab.cool();
        assert_eq!(slab.spare.len(), 1, "one was needed since");
        slab.cool();
        assert_eq!(slab.spare.len(), 0);
    }
}
