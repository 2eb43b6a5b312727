//! The region that a process image shares with the machine, and the slots in it.
//!
//! Everything read here is what a client alleges: callers copy it once and then check the copy. See
//! [`usgx_wire::process`] and [`usgx_wire::slot`] for the layout.

use std::mem::offset_of;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use usgx_sys::memfd::Memfd;
use usgx_sys::shared::SharedMemory;
use usgx_sys::{Errno, futex};
use usgx_wire::process::{DATA_OFFSET, DATA_SIZE, MAX_SLOTS, REGION_SIZE, SLOT_STRIDE, SLOTS_OFFSET};
use usgx_wire::slot::{Inside, NR_WORDS, Slot, turn, waiter};

/// A process's region.
#[derive(Debug)]
pub(crate) struct Region {
    file: Memfd,
    memory: SharedMemory,
}

impl Region {
    /// Makes a region that starts with `header`.
    pub(crate) fn new(header: &[u8]) -> Result<Self, Errno> {
        let file = Memfd::create("usgx-region")?;
        file.seal_size(REGION_SIZE as u64)?;
        let memory = SharedMemory::map(&file, REGION_SIZE)?;
        memory.write(0, header);
        Ok(Self { file, memory })
    }

    /// The file, for the process to map.
    pub(crate) fn file(&self) -> &Memfd {
        &self.file
    }

    /// The slot with number `index`, which is below [`MAX_SLOTS`].
    pub(crate) fn slot(&self, index: u32) -> SlotMemory<'_> {
        let index = index as usize;
        assert!(index < MAX_SLOTS, "the machine numbers slots itself");
        SlotMemory {
            memory: &self.memory,
            base: SLOTS_OFFSET + index * SLOT_STRIDE,
            data: DATA_OFFSET + index * DATA_SIZE,
        }
    }
}

/// One thread's slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotMemory<'a> {
    memory: &'a SharedMemory,
    base: usize,
    data: usize,
}

impl<'a> SlotMemory<'a> {
    fn turn(self) -> &'a AtomicU32 {
        self.memory.word32(self.base + offset_of!(Slot, turn))
    }

    fn waiting(self) -> &'a AtomicU32 {
        self.memory.word32(self.base + offset_of!(Slot, waiting))
    }

    fn looks(self) -> &'a AtomicU32 {
        self.memory.word32(self.base + offset_of!(Slot, looks))
    }

    /// The processor on which the runtime gave the turn away.
    pub(crate) fn processor(self) -> u32 {
        self.memory.word32(self.base + offset_of!(Slot, processor)).load(Relaxed)
    }

    fn word(self, index: usize) -> &'a AtomicU64 {
        assert!(index < NR_WORDS);
        self.memory.word64(self.base + offset_of!(Slot, words) + index * 8)
    }

    /// Whose turn it is. Acquire: pairs with the runtime's store after it has written its words.
    pub(crate) fn load_turn(self) -> u32 {
        self.turn().load(Acquire)
    }

    /// Makes the slot what a new thread expects to find.
    pub(crate) fn reset(self) {
        self.waiting().store(0, Relaxed);
        self.looks().store(0, Relaxed);
        self.inside_word(offset_of!(Inside, enclave)).store(0, Relaxed);
        self.inside_word(offset_of!(Inside, epoch)).store(0, Relaxed);
        self.turn().store(turn::IDLE, SeqCst);
    }

    /// Copies the words of a call or an answer.
    pub(crate) fn load_words(self) -> [u64; NR_WORDS] {
        std::array::from_fn(|index| self.word(index).load(Relaxed))
    }

    /// Writes words and gives the turn to the runtime, which is to look so many times for its next one.
    pub(crate) fn hand_over(self, words: &[u64; NR_WORDS], whose: u32, looks: u32) {
        self.looks().store(looks, Relaxed);
        for (index, word) in words.iter().enumerate() {
            self.word(index).store(*word, Relaxed);
        }
        // SeqCst, against `waiting`: either the runtime sees the new turn before it sleeps, or we see its bit.
        self.turn().store(whose, SeqCst);
        std::sync::atomic::fence(SeqCst);
        if self.waiting().load(SeqCst) & waiter::RUNTIME != 0 {
            futex::wake_all(self.turn());
        }
    }

    /// Tells everybody, the worker and the runtime, that the slot is given up.
    pub(crate) fn close(self) {
        self.turn().store(turn::CLOSED, SeqCst);
        futex::wake_all(self.turn());
    }

    /// Sleeps while the turn is `seen` and `keep_waiting` holds; may return early.
    pub(crate) fn sleep(self, seen: u32, keep_waiting: impl Fn() -> bool) {
        self.waiting().fetch_or(waiter::MACHINE, SeqCst);
        std::sync::atomic::fence(SeqCst);
        if self.turn().load(SeqCst) == seen && keep_waiting() {
            futex::wait(self.turn(), seen, Some(LONGEST_SLEEP));
        }
        self.waiting().fetch_and(!waiter::MACHINE, SeqCst);
    }

    fn inside_word(self, offset: usize) -> &'a AtomicU64 {
        self.memory.word64(self.base + offset_of!(Slot, inside) + offset)
    }

    /// The handle of the enclave that the thread says it is inside of, and the epoch of its entry.
    pub(crate) fn inside(self) -> Option<(u64, u64)> {
        let handle = self.inside_word(offset_of!(Inside, enclave)).load(SeqCst);
        (handle != 0).then(|| (handle, self.inside_word(offset_of!(Inside, epoch)).load(SeqCst)))
    }

    /// Copies out of the data area; the range is the machine's own arithmetic and inside of it.
    pub(crate) fn read_data(self, offset: usize, out: &mut [u8]) {
        assert!(offset + out.len() <= DATA_SIZE);
        self.memory.read(self.data + offset, out);
    }

    /// Copies into the data area; as [`read_data`](Self::read_data).
    pub(crate) fn write_data(self, bytes: &[u8]) {
        assert!(bytes.len() <= DATA_SIZE);
        self.memory.write(self.data, bytes);
    }
}

/// A worker looks after its client this often even if nobody wakes it: a safety net for a client that plays
/// with the futex word, and cheap enough for thousands of idle threads.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
