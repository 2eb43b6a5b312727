//! The mutex of [`SchedulePlatform`](super::SchedulePlatform), for `lock_api`.

#![expect(unsafe_code, reason = "lock_api's trait is unsafe to implement")]

use lock_api::{GuardNoSend, RawMutex};
use shuttle::future::batch_semaphore::{BatchSemaphore, Fairness};

/// A mutex whose every use is a scheduling point.
#[derive(Debug)]
pub struct ScheduleMutex(BatchSemaphore);

// SAFETY: the semaphore has one permit, which `lock` and a successful `try_lock` take and `unlock` gives back, so
// only one thread holds the lock at any time.
unsafe impl RawMutex for ScheduleMutex {
    const INIT: Self = Self(BatchSemaphore::const_new(1, Fairness::Unfair));

    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        self.0.acquire_blocking(1).expect("the semaphore is never closed");
    }

    fn try_lock(&self) -> bool {
        self.0.try_acquire(1).is_ok()
    }

    unsafe fn unlock(&self) {
        self.0.release(1);
    }
}
