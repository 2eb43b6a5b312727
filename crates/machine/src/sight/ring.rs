//! The ring of events: the last ones that happened while somebody listened.
//!
//! Events are numbered without gaps. A reader knows the number that it wants next; if that has been overwritten,
//! it goes on with the oldest one there is and learns how many it has missed. Nobody waits for a reader. Without
//! readers an event costs one load.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::event::{EventRecord, Happening};

/// Most readers at a time; each has a thread.
const MAX_READERS: usize = 16;

#[derive(Debug)]
struct Entry {
    time_us: u64,
    pid: u32,
    enclave: u64,
    what: Happening,
}

#[derive(Debug, Default)]
struct Entries {
    /// The last ones, the oldest first.
    kept: VecDeque<Entry>,
    /// The number of the next event.
    next: u64,
    /// Readers that sleep.
    sleepers: usize,
}

/// The ring.
#[derive(Debug)]
pub(crate) struct Ring {
    size: usize,
    readers: AtomicUsize,
    entries: Mutex<Entries>,
    more: Condvar,
}

/// Events that a reader gets, and how many it has missed before them.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Batch {
    pub(crate) lost: u64,
    pub(crate) events: Vec<EventRecord>,
}

impl Ring {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, readers: AtomicUsize::new(0), entries: Mutex::default(), more: Condvar::new() }
    }

    /// Whether anybody wants events. Relaxed: a reader that comes just now may miss what happens just now.
    pub(crate) fn has_readers(&self) -> bool {
        self.readers.load(Relaxed) != 0
    }

    /// Adds an event, over the oldest one if there is no room. Its time is that since `born`, and is taken with the
    /// lock held, so that times ascend as numbers do.
    pub(crate) fn push(&self, born: Instant, pid: u32, enclave: u64, what: Happening) {
        let mut entries = self.entries.lock();
        let time_us = u64::try_from(born.elapsed().as_micros()).unwrap_or(u64::MAX);
        if entries.kept.len() == self.size {
            entries.kept.pop_front();
        }
        entries.kept.push_back(Entry { time_us, pid, enclave, what });
        entries.next += 1;
        if entries.sleepers > 0 {
            self.more.notify_all();
        }
    }

    /// Begins to read, with the next event; `None` if too many read already.
    pub(crate) fn reader(self: &Arc<Self>) -> Option<Reader> {
        let add = |readers| (readers < MAX_READERS).then_some(readers + 1);
        self.readers.fetch_update(Relaxed, Relaxed, add).ok()?;
        Some(Reader { next: self.entries.lock().next, ring: Arc::clone(self) })
    }
}

/// A reader's place in the ring.
#[derive(Debug)]
pub(crate) struct Reader {
    ring: Arc<Ring>,
    next: u64,
}

impl Reader {
    /// Waits for events, at most for `bound`, and takes up to `most`.
    pub(crate) fn read(&mut self, most: usize, bound: Duration) -> Batch {
        let mut entries = self.ring.entries.lock();
        if entries.next == self.next {
            entries.sleepers += 1;
            self.ring.more.wait_while_for(&mut entries, |entries| entries.next == self.next, bound);
            entries.sleepers -= 1;
        }
        let oldest = entries.next - entries.kept.len() as u64;
        let first = self.next.max(oldest);
        let taken = entries.kept.iter().skip((first - oldest) as usize).take(most);
        let events: Vec<_> = (first..)
            .zip(taken)
            .map(|(seq, entry)| EventRecord::new(seq, entry.time_us, entry.pid, entry.enclave, entry.what))
            .collect();
        let lost = first - self.next;
        self.next = first + events.len() as u64;
        Batch { lost, events }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Without readers nothing is added, so what is left would be old news for the next one.
        if self.ring.readers.fetch_sub(1, Relaxed) == 1 {
            self.ring.entries.lock().kept.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use usgx_driver::Event;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn push(ring: &Ring, count: u64) {
        for addr in 0..count {
            ring.push(Instant::now(), 1, 2, Happening::of(&Event::Load { addr }));
        }
    }

    #[test]
    fn events_come_in_order_and_once() {
        let ring = Arc::new(Ring::new(8));
        assert!(!ring.has_readers());
        let mut reader = ring.reader().expect("the first");
        assert!(ring.has_readers());
        push(&ring, 5);
        let first = reader.read(3, NOW);
        assert_eq!((first.lost, first.events.len()), (0, 3));
        let rest = reader.read(100, NOW);
        let seqs: Vec<u64> = first.events.iter().chain(&rest.events).map(|event| event.seq).collect();
        assert_eq!(seqs, [0, 1, 2, 3, 4]);
        assert_eq!(reader.read(100, NOW), Batch::default());
        drop(reader);
        assert!(!ring.has_readers());
    }

    #[test]
    fn a_slow_reader_is_told_how_many_it_has_missed() {
        let ring = Arc::new(Ring::new(8));
        let (mut slow, mut quick) = (ring.reader().expect("room"), ring.reader().expect("room"));
        push(&ring, 6);
        assert_eq!(quick.read(100, NOW).events.len(), 6);
        push(&ring, 6);
        let batch = quick.read(100, NOW);
        assert_eq!((batch.lost, batch.events.len()), (0, 6));
        let batch = slow.read(100, NOW);
        assert_eq!((batch.lost, batch.events.len(), batch.events[0].seq), (4, 8, 4));
        // Whatever is lost and whatever comes add up to what happened.
        push(&ring, 100);
        let batch = slow.read(100, NOW);
        assert_eq!(batch.lost + batch.events.len() as u64, 100);
    }

    #[test]
    fn a_new_reader_gets_nothing_old() {
        let ring = Arc::new(Ring::new(8));
        let first = ring.reader().expect("room");
        push(&ring, 3);
        drop(first);
        let mut second = ring.reader().expect("room");
        assert_eq!(second.read(9, NOW), Batch::default());
        push(&ring, 1);
        let batch = second.read(9, NOW);
        assert_eq!((batch.lost, batch.events[0].seq), (0, 3));
    }

    #[test]
    fn readers_are_few_and_writers_wait_for_none() {
        let ring = Arc::new(Ring::new(8));
        let readers: Vec<_> = std::iter::from_fn(|| ring.reader()).collect();
        assert_eq!(readers.len(), MAX_READERS);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| push(&ring, 1000));
            }
        });
        for mut reader in readers {
            let batch = reader.read(usize::MAX, NOW);
            assert_eq!(batch.lost + batch.events.len() as u64, 4000);
            assert!(batch.events.is_sorted_by_key(|event| event.seq));
        }
    }

    #[test]
    fn a_reader_that_sleeps_is_woken() {
        let ring = Arc::new(Ring::new(8));
        let mut reader = ring.reader().expect("room");
        let writer = std::thread::spawn({
            let ring = Arc::clone(&ring);
            move || push(&ring, 1)
        });
        assert_eq!(reader.read(9, Duration::from_secs(30)).events.len(), 1);
        writer.join().expect("it ends");
    }
}
