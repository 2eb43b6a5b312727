//! A processor that refuses a leaf of paging at any moment: every page has its way back, or only what is lost is lost.

use usgx_driver::Enclave;
use usgx_testkit::{Image, Operation, Refusable, SimMachine, System, Touch};

const BASES: [u64; 2] = [0x7000_0000_0000, 0x7100_0000_0000];
const PAGES: u64 = 12;

/// Two enclaves, and a thread inside the first, so that tracking matters.
fn world() -> (System, [Enclave<SimMachine>; 2]) {
    let system = System::with_epc_pages(64);
    let enclaves = BASES.map(|base| system.build(&Image::data(base, PAGES)));
    let eid =
        enclaves[0].with_pages(|secs, _| system.hw.enclave(secs)).expect("resident").expect("an SECS").eid;
    system.threads.enter(eid, 1);
    (system, enclaves)
}

/// Reads a page; one that failed once, twice.
fn patient_read(system: &System, enclave: &Enclave<SimMachine>, addr: u64) -> Touch {
    match system.read(enclave, addr) {
        Touch::Sigbus => system.read(enclave, addr),
        touch => touch,
    }
}

#[test]
fn one_refusal_costs_a_retry_and_nothing_else() {
    let leaves = [Refusable::Epa, Refusable::Eblock, Refusable::Etrack, Refusable::Ewb, Refusable::Eldu];
    for leaf in leaves {
        for nth in 1..=36 {
            let (system, enclaves) = world();
            system.refusals.refuse(leaf, nth);
            for round in 0..2 {
                system.driver.shrink();
                system.check_invariants();
                for (enclave, base) in enclaves.iter().zip(BASES) {
                    for page in 1..=PAGES {
                        let touch = patient_read(&system, enclave, base + page * 4096);
                        assert_eq!(touch, Touch::Done(page), "{leaf:?} {nth}, round {round}");
                    }
                }
                system.check_invariants();
            }
            drop(enclaves);
            system.check_invariants();
            assert_eq!(system.driver.free_pages(), 64, "{leaf:?} {nth}");
        }
    }
}

#[test]
fn what_can_neither_be_stored_nor_brought_back_is_lost_alone() {
    let mut losses = 0;
    for nth in 1..=36 {
        let (system, enclaves) = world();
        system.store.fail(Operation::Put, nth);
        // The next ELDU is that which is to bring it back.
        system.refusals.refuse(Refusable::Eldu, 1);
        system.driver.shrink();
        system.check_invariants();
        let mut damaged = 0;
        for (enclave, base) in enclaves.iter().zip(BASES) {
            let lost = (1..=PAGES).filter(|page| {
                let touch = patient_read(&system, enclave, base + page * 4096);
                assert!(matches!(touch, Touch::Sigbus) || touch == Touch::Done(*page), "{touch:?} {nth}");
                touch == Touch::Sigbus
            });
            damaged += usize::from(lost.count() != 0);
        }
        assert!(damaged <= 1, "one enclave's trouble, at most: {nth}");
        let stats = system.driver.stats();
        losses += stats.pages_lost + stats.va_lost;
        system.driver.shrink();
        system.check_invariants();
        drop(enclaves);
        system.check_invariants();
        assert_eq!(system.driver.free_pages(), 64);
    }
    assert!(losses > 20, "{losses}");
}

#[test]
fn a_page_that_cannot_be_removed_is_never_used_again() {
    for nth in 1..=16 {
        let (system, enclaves) = world();
        system.refusals.refuse(Refusable::Eremove, nth);
        drop(enclaves);
        system.check_invariants();
        let stats = system.driver.stats();
        // A child that stays keeps its SECS.
        assert!((1..=2).contains(&stats.leaked_pages), "{nth}: {stats:?}");
        assert_eq!(stats.free_pages + stats.leaked_pages, 64, "{nth}");
        // The others are as good as new.
        let next = system.build(&Image::data(BASES[0], PAGES));
        system.evict_all();
        assert_eq!(system.read(&next, BASES[0] + 4096), Touch::Done(1));
        drop(next);
        system.check_invariants();
        assert_eq!(system.driver.stats().leaked_pages, stats.leaked_pages);
    }
}
