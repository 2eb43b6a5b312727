//! The lock order, checked while the locks are used.
//!
//! Each lock has a [`Rank`]. In builds with debug assertions a thread that takes a lock while it holds one of the same
//! rank or a higher one panics, before it waits: on every such way at once, not only when two threads meet on it. Which
//! locks a thread holds is kept by the platform ([`Platform::with_held`]), since this crate knows no threads. In other
//! builds nothing of this is left.
//!
//! Ranks of the driver are in `usgx-driver`, those of a host in the host.

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use lock_api::{Mutex, MutexGuard};

use crate::platform::Platform;

/// Most locks that a thread ever holds at the same time.
const MAX_HELD: usize = 8;

/// A lock's place in the order: higher ones are taken while lower ones are held, never the other way round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rank {
    number: u8,
    name: &'static str,
}

impl Rank {
    /// The list of reclaimable pages.
    pub(crate) const LRU: Self = Self::new(100, "lru");
    /// The free list of a node.
    pub(crate) const FREE: Self = Self::new(110, "node.free");

    /// A place in the order, and what to call it.
    #[must_use]
    pub const fn new(number: u8, name: &'static str) -> Self {
        Self { number, name }
    }
}

/// The locks that one thread holds, in the order in which it took them.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldLocks {
    ranks: [Option<Rank>; MAX_HELD],
}

impl fmt::Display for HeldLocks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for rank in self.ranks.iter().flatten() {
            write!(out, "{separator}{}", rank.name)?;
            separator = ", ";
        }
        Ok(())
    }
}

impl HeldLocks {
    /// None.
    pub const NONE: Self = Self { ranks: [None; MAX_HELD] };

    /// Notes that the thread is about to take a lock.
    ///
    /// # Panics
    /// The lock order does not allow it, or the thread holds more locks than any should.
    pub fn take(&mut self, rank: Rank) {
        let highest = self.ranks.iter().flatten().map(|held| held.number).max();
        assert!(
            highest.is_none_or(|highest| highest < rank.number),
            "lock order: {} must not be taken with these held: {self}",
            rank.name
        );
        let free = self.ranks.iter_mut().find(|held| held.is_none());
        *free.expect("no thread holds so many locks") = Some(rank);
    }

    /// Notes that the thread has let a lock go.
    pub fn release(&mut self, rank: Rank) {
        if let Some(held) = self.ranks.iter_mut().find(|held| **held == Some(rank)) {
            *held = None;
        }
    }

    fn is_empty(&self) -> bool {
        self.ranks.iter().all(Option::is_none)
    }
}

/// Panics in builds with debug assertions if the calling thread holds a lock: for what may wait for others.
pub fn check_none_held<P: Platform>(what: &str) {
    if cfg!(debug_assertions) {
        P::with_held(&mut |held| {
            assert!(held.is_empty(), "lock order: {what} with these held: {held}");
        });
    }
}

/// A mutex of the platform's kind, with a place in the lock order.
pub struct OrderedMutex<P: Platform, T> {
    rank: Rank,
    mutex: Mutex<P::RawMutex, T>,
}

impl<P: Platform, T> fmt::Debug for OrderedMutex<P, T> {
    /// What is in it is not shown, as that would take the lock.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("OrderedMutex").field(&self.rank.name).finish()
    }
}

impl<P: Platform, T> OrderedMutex<P, T> {
    /// A mutex with a value in it.
    pub fn new(rank: Rank, value: T) -> Self {
        Self { rank, mutex: Mutex::new(value) }
    }

    /// Takes the lock.
    ///
    /// # Panics
    /// In builds with debug assertions: the lock order does not allow it here.
    pub fn lock(&self) -> OrderedGuard<'_, P, T> {
        if cfg!(debug_assertions) {
            P::with_held(&mut |held| held.take(self.rank));
        }
        OrderedGuard { guard: self.mutex.lock(), rank: self.rank, platform: PhantomData }
    }

    /// The value, of a mutex that nobody else knows.
    pub fn get_mut(&mut self) -> &mut T {
        self.mutex.get_mut()
    }
}

/// A lock that is held.
pub struct OrderedGuard<'a, P: Platform, T> {
    guard: MutexGuard<'a, P::RawMutex, T>,
    rank: Rank,
    platform: PhantomData<fn() -> P>,
}

impl<'a, P: Platform, T> OrderedGuard<'a, P, T> {
    /// The guard of the platform's own mutex, for its condition variables. While the thread waits for one, it counts as
    /// holding the lock.
    pub fn inner(&mut self) -> &mut MutexGuard<'a, P::RawMutex, T> {
        &mut self.guard
    }

    /// Lets the lock go while `f` runs.
    ///
    /// # Panics
    /// As [`OrderedMutex::lock`], if `f` leaves the thread with locks that it did not hold.
    pub fn unlocked<R>(&mut self, f: impl FnOnce() -> R) -> R {
        if cfg!(debug_assertions) {
            P::with_held(&mut |held| held.release(self.rank));
        }
        let result = MutexGuard::unlocked(&mut self.guard, f);
        if cfg!(debug_assertions) {
            P::with_held(&mut |held| held.take(self.rank));
        }
        result
    }
}

impl<P: Platform, T> Deref for OrderedGuard<'_, P, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<P: Platform, T> DerefMut for OrderedGuard<'_, P, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<P: Platform, T> Drop for OrderedGuard<'_, P, T> {
    fn drop(&mut self) {
        if cfg!(debug_assertions) {
            P::with_held(&mut |held| held.release(self.rank));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTER: Rank = Rank::new(1, "outer");

    #[test]
    fn locks_are_taken_upwards_and_released_in_any_order() {
        let mut held = HeldLocks::NONE;
        held.take(OUTER);
        held.take(Rank::LRU);
        held.take(Rank::FREE);
        held.release(OUTER);
        held.release(Rank::FREE);
        held.take(Rank::FREE);
        held.release(Rank::LRU);
        held.release(Rank::FREE);
        assert!(held.is_empty());
        held.take(OUTER);
    }

    #[test]
    #[should_panic(expected = "lru must not be taken with these held: outer, node.free")]
    fn a_lower_lock_is_refused() {
        let mut held = HeldLocks::NONE;
        held.take(OUTER);
        held.take(Rank::FREE);
        held.take(Rank::LRU);
    }

    #[test]
    #[should_panic(expected = "outer must not be taken with these held: outer")]
    fn two_of_a_kind_are_refused() {
        let mut held = HeldLocks::NONE;
        held.take(OUTER);
        held.take(OUTER);
    }
}
