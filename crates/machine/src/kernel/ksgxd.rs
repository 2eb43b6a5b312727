//! `ksgxd`: the thread that makes the EPC usable, and then reclaims pages in the background. Now and then it gives back
//! memory that the machine has kept for a burst that is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use usgx_driver::Driver;

use crate::hardware::frames::Frames;
use crate::kernel::platform::{HostPlatform, Task};
use crate::kernel::store::Store;
use crate::system::System;

/// How long to rest after a pass that freed nothing: everything is young, or cannot be written back.
const REST: Duration = Duration::from_millis(1);

/// How long memory is kept that nobody needs: what a burst needs again comes within that time.
const KEEP: Duration = Duration::from_secs(1);

/// Makes the EPC usable.
pub(crate) fn sanitize(driver: &Driver<System>) {
    let unusable = driver.sanitize();
    if unusable != 0 {
        tracing::warn!(unusable, "EPC pages cannot be removed and stay unused");
    }
}

/// Starts the thread; it ends with [`HostPlatform::stop`].
pub(crate) fn start(
    driver: Driver<System>,
    platform: Arc<HostPlatform>,
    frames: Arc<Frames>,
    store: Arc<Store>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("ksgxd".into()).spawn(move || {
        if !driver.is_sanitized() {
            sanitize(&driver);
        }
        let mut cooled = Instant::now();
        loop {
            match platform.wait_for_work(KEEP) {
                Task::Reclaim => reclaim(&driver, &platform),
                Task::Tick => {}
                Task::End => break,
            }
            if cooled.elapsed() >= KEEP {
                frames.cool();
                store.cool();
                cooled = Instant::now();
            }
        }
    })
}

/// Passes up to the high mark, or until there is nothing to reclaim.
fn reclaim(driver: &Driver<System>, platform: &HostPlatform) {
    let mut idle_passes = 0;
    while driver.ksgxd_should_run() && !platform.is_stopped() {
        let freed = driver.ksgxd_pass();
        // A pass over young pages frees none and makes them old, so the next ones will: rest only when several in a
        // row were in vain.
        idle_passes = if freed == 0 { idle_passes + 1 } else { 0 };
        if idle_passes > 64 {
            std::thread::sleep(REST);
        }
    }
}
