//! A lock of one word: spin a little, then sleep in the kernel.
//!
//! Taken only in signal handlers of the runtime (the program's signals are blocked there) or before the
//! program runs, so no code of the program ever runs on top of a holder. Never held across a copy of the
//! program's memory unless the holder's comment says why that is fine.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use super::syscall::nr;
use crate::sys;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;
const FUTEX_WAIT_PRIVATE: u64 = 128;
const FUTEX_WAKE_PRIVATE: u64 = 129;

/// A lock without data.
pub struct RawLock(AtomicU32);

impl RawLock {
    /// A free lock.
    pub const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Takes the lock.
    pub fn acquire(&self) {
        for _ in 0..200 {
            if self.0.compare_exchange_weak(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return;
            }
            core::hint::spin_loop();
        }
        while self.0.swap(CONTENDED, Ordering::Acquire) != FREE {
            // SAFETY: the kernel reads the word, which lives as long as the image.
            unsafe { sys!(nr::FUTEX, self.0.as_ptr(), FUTEX_WAIT_PRIVATE, CONTENDED, 0) };
        }
    }

    /// Gives the lock back. Only its holder may call this (or, in a fork's child, the holder's copy).
    pub fn release(&self) {
        if self.0.swap(FREE, Ordering::Release) == CONTENDED {
            // SAFETY: the kernel takes the word's address only.
            unsafe { sys!(nr::FUTEX, self.0.as_ptr(), FUTEX_WAKE_PRIVATE, 1) };
        }
    }
}

/// A lock around data.
pub struct Lock<T> {
    raw: RawLock,
    data: UnsafeCell<T>,
}

// SAFETY: the data is reached only under the lock.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A free lock around `data`.
    pub const fn new(data: T) -> Self {
        Self { raw: RawLock::new(), data: UnsafeCell::new(data) }
    }

    /// Takes the lock.
    pub fn lock(&self) -> Guard<'_, T> {
        self.raw.acquire();
        Guard(self)
    }

    /// The lock alone, for a fork that holds all locks across the call.
    pub fn raw(&self) -> &RawLock {
        &self.raw
    }
}

/// A held lock.
pub struct Guard<'a, T>(&'a Lock<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.0.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and the guard is borrowed exclusively.
        unsafe { &mut *self.0.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.raw.release();
    }
}
