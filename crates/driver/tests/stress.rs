//! Real threads: faults, reclaim, direct reclaim, ioctls and release, all at once on an EPC that is too small.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use usgx_testkit::{Image, Rng, System, Touch};

const EPC_PAGES: u32 = 96;
/// More than the EPC has: every enclave is paged, also where the threads happen to run one after the other.
const PAGES: u64 = 100;

fn base(number: u64) -> u64 {
    0x7000_0000_0000 + (number << 32)
}

/// Builds an enclave, has several threads count up in its pages, checks the sums, drops it.
fn live(system: &System, number: u64, rounds: u64) {
    let enclave = system.build(&Image::data(base(number), PAGES));
    thread::scope(|scope| {
        for part in 0..2 {
            let enclave = enclave.clone();
            scope.spawn(move || {
                let mut rng = Rng::new(number * 2 + part);
                let mut expected: Vec<u64> = (0..=PAGES).collect();
                for value in 0..rounds {
                    // Each thread has every second page to itself.
                    let page = 1 + rng.below(PAGES / 2) * 2 + part;
                    let addr = base(number) + page * 4096;
                    let old = Touch::Done(expected[page as usize]);
                    assert_eq!(system.write(&enclave, addr, value), old, "enclave {number}, page {page}");
                    expected[page as usize] = value;
                }
            });
        }
    });
}

#[test]
fn everything_at_once() {
    let mut system = System::with_epc_pages(EPC_PAGES);
    system.plays_ksgxd = false;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if system.driver.ksgxd_should_run() {
                    system.driver.ksgxd_pass();
                }
                thread::yield_now();
            }
        });
        let users: Vec<_> = (0..3)
            .map(|user| {
                let system = &system;
                scope.spawn(move || (0..4).for_each(|life| live(system, user * 10 + life, 300)))
            })
            .collect();
        let results: Vec<_> = users.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Release);
        assert!(results.iter().all(Result::is_ok));
    });
    system.check_invariants();
    assert_eq!(system.driver.free_pages(), EPC_PAGES as usize);
    let stats = system.driver.stats();
    assert!(stats.evictions > 100 && stats.loads > 100 && stats.leaked_pages == 0, "{stats:?}");
}
