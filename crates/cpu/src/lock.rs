//! The locks that leaves take on EPC pages, in one word for each page.
//!
//! Leaves take a page shared or exclusive (*base*), and three groups of leaves exclude each other per page
//! whatever their base lock is: *accept*, *build* and *track*. A conflict is reported by the leaf that finds
//! the lock taken and is never waited for. Source: SDM volume 3D, the concurrency tables of the leaves.
//!
//! The model needs one kind more. User leaves (EREPORT, EGETKEY, EACCEPT, implicit stores) read and write
//! pages that they do not lock, or lock only against their own kind; on hardware they are over before an EWB
//! of the page can start. Here such an access holds a *pin*: it can not be taken while the page is exclusive,
//! and whoever takes the page exclusively waits until the pins present are gone. That wait is for at most one
//! copy of a page, holders of pins never wait for anything, and new pins are refused meanwhile, so a program
//! can neither make a supervisor leaf fail nor hold it up by running user leaves in a loop.

use std::sync::atomic::{AtomicU32, Ordering};

const SHARED_ONE: u32 = 1;
const SHARED: u32 = 0xfff;
const PIN_ONE: u32 = 1 << 12;
const PINS: u32 = 0xfff << 12;
const TRACK: u32 = 1 << 28;
const BUILD: u32 = 1 << 29;
const ACCEPT: u32 = 1 << 30;
const EXCLUSIVE: u32 = 1 << 31;

/// The lock word of one EPC page.
#[derive(Debug)]
pub(crate) struct PageLock(AtomicU32);

/// A lock that is held; released when dropped.
#[derive(Debug)]
#[must_use = "a lock that is not kept is released at once"]
pub(crate) struct Held<'a> {
    word: &'a AtomicU32,
    /// What taking the lock added to the word.
    share: u32,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Pairs with the `Acquire` of `PageLock::take`: the next holder sees what this one did.
        self.word.fetch_sub(self.share, Ordering::Release);
    }
}

impl PageLock {
    /// A lock that nobody holds.
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Takes the base lock shared, unless a leaf has the page exclusively.
    pub(crate) fn shared(&self) -> Option<Held<'_>> {
        self.take(SHARED_ONE, EXCLUSIVE, SHARED)
    }

    /// Takes the base lock exclusively, unless a leaf has it at all; waits for pins to go.
    pub(crate) fn exclusive(&self) -> Option<Held<'_>> {
        let held = self.take(EXCLUSIVE, EXCLUSIVE | SHARED, 0)?;
        // The pins' holders only copy bytes and take no lock, so this ends.
        while self.0.load(Ordering::Acquire) & PINS != 0 {
            std::thread::yield_now();
        }
        Some(held)
    }

    /// Joins the accept group (EACCEPT, EACCEPTCOPY, EMODPE, EMODPR, EMODT) on this page.
    pub(crate) fn accept(&self) -> Option<Held<'_>> {
        self.take(ACCEPT, ACCEPT, 0)
    }

    /// Joins the build group (EADD, EEXTEND, EINIT) on this SECS.
    pub(crate) fn build(&self) -> Option<Held<'_>> {
        self.take(BUILD, BUILD, 0)
    }

    /// Joins the track group (ETRACK) on this SECS.
    pub(crate) fn track(&self) -> Option<Held<'_>> {
        self.take(TRACK, TRACK, 0)
    }

    /// Keeps the page from being taken exclusively for the time of one access.
    pub(crate) fn pin(&self) -> Option<Held<'_>> {
        self.take(PIN_ONE, EXCLUSIVE, PINS)
    }

    /// As [`pin`](Self::pin), after whichever leaf has the page exclusively is over.
    pub(crate) fn pin_wait(&self) -> Held<'_> {
        loop {
            match self.pin() {
                Some(held) => return held,
                None => std::thread::yield_now(),
            }
        }
    }

    /// Adds `share` to the word, unless it has a bit of `conflict` or the counter `counter` is full.
    fn take(&self, share: u32, conflict: u32, counter: u32) -> Option<Held<'_>> {
        self.0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                let full = counter != 0 && word & counter == counter;
                (word & conflict == 0 && !full).then(|| word + share)
            })
            .ok()
            .map(|_| Held { word: &self.0, share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_and_exclusive_conflict_as_the_tables_say() {
        let lock = PageLock::new();
        let first = lock.shared().expect("free");
        let second = lock.shared().expect("shared and shared agree");
        assert!(lock.exclusive().is_none());
        drop((first, second));
        let only = lock.exclusive().expect("free again");
        assert!(lock.shared().is_none() && lock.exclusive().is_none() && lock.pin().is_none());
        drop(only);
        assert_eq!(lock.0.into_inner(), 0);
    }

    #[test]
    fn groups_are_independent_of_base_locks() {
        let lock = PageLock::new();
        let _base = lock.exclusive().expect("free");
        for group in [PageLock::accept, PageLock::build, PageLock::track] {
            let held = group(&lock).expect("no one of the group is here");
            assert!(group(&lock).is_none());
            drop(held);
            assert!(group(&lock).is_some());
        }
    }

    #[test]
    fn exclusive_waits_for_pins_and_refuses_new_ones() {
        let lock = PageLock::new();
        let pin = lock.pin().expect("free");
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| lock.exclusive().is_some());
            while lock.pin().is_some() {
                std::thread::yield_now();
            }
            assert!(!taker.is_finished());
            drop(pin);
            assert!(taker.join().expect("no panic"));
        });
    }

    #[test]
    fn a_full_counter_is_a_conflict() {
        let lock = PageLock::new();
        let held: Vec<_> = (0..SHARED).map(|_| lock.shared().expect("not full yet")).collect();
        assert!(lock.shared().is_none());
        drop(held);
        assert!(lock.exclusive().is_some());
    }
}
