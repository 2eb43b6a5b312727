//! The counters add up: each balance of `stats.rs`, at the end of workloads that use every way in and out.

use usgx_driver::{Counts, Driver, EnclaveStats, Prot, Stats};
use usgx_testkit::{Image, Rng, SimMachine, System, Touch};

const BASE: u64 = 0x10_0000_0000;

fn addr(index: u64) -> u64 {
    BASE + index * 4096
}

/// Each enclave's pages are where its counters say.
fn check_enclave(stats: &EnclaveStats) {
    let counts = &stats.counts;
    let there = stats.resident + u64::from(stats.secs_resident);
    assert_eq!(stats.pages, 1 + counts.pages_added - counts.pages_removed, "{stats:?}");
    assert_eq!(stats.pages, there + counts.evictions - counts.loads, "{stats:?}");
    assert_eq!(stats.evicted(), counts.evictions - counts.loads);
    assert_eq!(stats.va_pages, stats.va_resident + counts.va_evictions - counts.va_loads, "{stats:?}");
}

fn check_counts(counts: &Counts) {
    let ways = counts.evictions_at_once + counts.evictions_after_etrack + counts.evictions_after_kick;
    assert_eq!(counts.evictions, ways, "{counts:?}");
    let ends =
        [counts.remaps, counts.fault_loads, counts.fault_augments, counts.retries, counts.fault_failures];
    assert_eq!(counts.epc_faults, ends.iter().sum::<u64>(), "{counts:?}");
    assert!(counts.pages_augmented <= counts.pages_added);
}

/// The driver's counters, and those of enclaves that are open, of which all that ever were there.
fn check(driver: &Driver<SimMachine>, stats: &Stats) {
    let enclaves = driver.enclave_stats();
    let mut sum = Counts::default();
    for (_, enclave) in &enclaves {
        check_enclave(enclave);
        check_counts(&enclave.counts);
        let mut counts = enclave.counts;
        for ((_, total), (_, one)) in sum.fields().zip(counts.fields()) {
            *total += *one;
        }
    }
    assert_eq!(sum, stats.counts);
    let roots = stats.va_pages - enclaves.iter().map(|(_, enclave)| enclave.va_resident).sum::<u64>();
    let used = roots + enclaves.iter().map(|(_, enclave)| enclave.epc_pages()).sum::<u64>();
    assert_eq!(stats.total_pages, stats.free_pages + used + stats.leaked_pages + stats.poisoned_pages);
    let found = stats.pages_young + stats.pages_refused + stats.pages_needed + stats.pages_kept;
    assert_eq!(stats.pages_scanned, found + stats.pages_reclaimed, "{stats:?}");
    let nodes = driver.node_stats();
    assert_eq!(nodes.iter().map(|node| node.total as u64).sum::<u64>(), stats.total_pages);
    assert_eq!(nodes.iter().map(|node| node.free as u64).sum::<u64>(), stats.free_pages);
    // Sanitising has given each node all its pages once.
    let taken = nodes.iter().map(|node| node.total as u64 + node.hits + node.misses - node.freed);
    assert_eq!(taken.sum::<u64>(), used);
}

#[test]
fn counters_balance_under_pressure() {
    let system = System::with_epc_pages(96);
    let enclaves: Vec<_> = (0..3).map(|_| system.build(&Image::data(BASE, 70))).collect();
    let mut rng = Rng::new(7);
    for round in 0..3000 {
        let enclave = &enclaves[rng.below(3) as usize];
        let at = addr(1 + rng.below(69));
        let touched =
            if round % 2 == 0 { system.read(enclave, at) } else { system.write(enclave, at, round) };
        assert!(matches!(touched, Touch::Done(_)));
        if round % 500 == 0 {
            check(&system.driver, &system.driver.stats());
        }
    }
    let stats = system.driver.stats();
    assert!(stats.evictions > 500 && stats.remaps > 0 && stats.fault_loads > 500, "{stats:?}");
    check(&system.driver, &stats);
}

#[test]
fn the_ways_of_ewb_are_told_apart() {
    let system = System::with_epc_pages(128);
    let enclave = system.build(&Image::data(BASE, 20));
    system.evict_all();
    let stats = system.driver.stats();
    // 21 pages in two batches, and the SECS: each has an ETRACK, after which nobody is inside.
    assert_eq!((stats.evictions, stats.evictions_after_kick), (22, 0), "{stats:?}");
    assert!(stats.evictions_after_etrack > 0);
    check(&system.driver, &stats);
    assert!(matches!(system.read(&enclave, addr(3)), Touch::Done(3)));
    // A thread that stays inside until it is kicked.
    let enclave = system.build(&Image::data(BASE, 20));
    let eid = enclave.with_pages(|secs, _| system.hw.enclave(secs)).expect("resident").expect("created").eid;
    system.threads.enter(eid, 1);
    system.evict_all();
    let stats = system.driver.stats();
    assert!(stats.kicks > 0 && stats.evictions_after_kick > 0, "{stats:?}");
    check(&system.driver, &stats);
    // Outside of the enclave there is nothing.
    let before = system.driver.stats();
    let _ = enclave.fault(BASE + (1 << 40), Prot::R);
    let after = system.driver.stats();
    assert_eq!((after.fault_failures, after.epc_faults), (before.fault_failures + 1, before.epc_faults + 1));
    check(&system.driver, &after);
}
