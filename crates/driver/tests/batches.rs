//! What eviction costs those who are inside: kicks and tracking cycles for each page, against Linux' batches of 16.

use usgx_driver::{Behaviour, Policy};
use usgx_testkit::{Image, Profile, Rng, System, Touch};

const EPC_PAGES: u32 = 4096;
/// Pages of all enclaves together.
const PAGES: u64 = 5632;
const ROUNDS: u64 = 6000;

fn base(number: u64) -> u64 {
    0x7000_0000_0000 + (number << 32)
}

/// Kicks and ETRACKs for 1000 evicted pages, with a thread inside each of `enclaves` enclaves that have more pages than
/// the EPC, and use them at random.
fn cost(enclaves: u64, policy: Policy) -> (u64, u64) {
    let behaviour = Behaviour { reclaim: policy, ..Behaviour::default() };
    let system = System::with_behaviour(EPC_PAGES, Profile::default(), behaviour);
    let ksgxd = |wakes| {
        if system.platform.wakes() != wakes {
            while system.driver.ksgxd_should_run() {
                system.driver.ksgxd_pass();
            }
        }
    };
    let pages = PAGES / enclaves;
    let all: Vec<_> = (0..enclaves)
        .map(|number| {
            let wakes = system.platform.wakes();
            let enclave = system.build(&Image::data(base(number), pages));
            let eid = enclave.with_pages(|secs, _| system.hw.enclave(secs).expect("an SECS").eid);
            system.threads.enter(eid.expect("it was just built"), 1);
            ksgxd(wakes);
            enclave
        })
        .collect();
    let before = system.driver.stats();
    let mut rng = Rng::new(7);
    for _ in 0..ROUNDS {
        let (number, page) = (rng.below(enclaves), 1 + rng.below(pages));
        let wakes = system.platform.wakes();
        assert_eq!(system.read(&all[number as usize], base(number) + page * 4096), Touch::Done(page));
        ksgxd(wakes);
    }
    system.check_invariants();
    let after = system.driver.stats();
    let evictions = after.evictions - before.evictions;
    assert!(evictions > 1000, "there is pressure: {after:?}");
    ((after.kicks - before.kicks) * 1000 / evictions, (after.etracks - before.etracks) * 1000 / evictions)
}

/// `tenths` times fewer, divided by ten.
fn compare(enclaves: u64, tenths: u64) {
    let (linux, ours) = (cost(enclaves, Policy::linux()), cost(enclaves, Policy::default()));
    println!("{enclaves} enclaves, kicks and ETRACKs for 1000 pages: Linux {linux:?}, here {ours:?}");
    assert!(linux.0 * 10 >= ours.0 * tenths, "kicks of {enclaves} enclaves: {linux:?} {ours:?}");
    assert!(linux.1 * 10 >= ours.1 * tenths, "ETRACKs of {enclaves} enclaves: {linux:?} {ours:?}");
}

#[test]
fn one_enclave_is_disturbed_four_times_less() {
    compare(1, 40);
}

#[test]
fn eight_enclaves_are_disturbed_four_times_less() {
    compare(8, 40);
}

#[test]
fn sixty_four_enclaves_are_disturbed_less() {
    compare(64, 15);
}
