//! Eviction and loading: contents survive, books balance, and what fails fails where it belongs.

#![allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use usgx_driver::{Behaviour, Enclave, Errno, FaultOutcome, Prot};
use usgx_testkit::{Call, Image, Operation, Profile, Refusable, Rng, SimCaller, SimMachine, System, Touch};

const BASE: u64 = 0x7000_0000_0000;
const OTHER: u64 = 0x7100_0000_0000;
const RW: Prot = Prot::R.union(Prot::W);

fn addr(page: u64) -> u64 {
    BASE + page * 4096
}

fn eid(system: &System, enclave: &Enclave<SimMachine>) -> u64 {
    enclave.with_pages(|secs, _| system.hw.enclave(secs).unwrap().eid).unwrap()
}

/// Reads every page of an `Image::data` enclave of `pages` pages at `base` and compares.
fn check_data(system: &System, enclave: &Enclave<SimMachine>, base: u64, pages: u64) {
    for page in 1..=pages {
        assert_eq!(system.read(enclave, base + page * 4096), Touch::Done(page));
    }
}

#[test]
fn an_enclave_four_times_the_epc_keeps_its_contents() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 256));
    system.check_invariants();
    let (mut oracle, mut rng): (Vec<u64>, _) = ((0..=256).collect(), Rng::new(1));
    for value in 1000..4000 {
        let page = 1 + rng.below(256);
        let expected = Touch::Done(oracle[page as usize]);
        if rng.below(2) == 0 {
            assert_eq!(system.read(&enclave, addr(page)), expected, "page {page}");
        } else {
            assert_eq!(system.write(&enclave, addr(page), value), expected, "page {page}");
            oracle[page as usize] = value;
        }
    }
    let stats = system.driver.stats();
    assert!(stats.evictions > 1000 && stats.loads > 1000 && stats.peak_pages <= 64, "{stats:?}");
    system.check_invariants();
    drop(enclave);
    system.check_invariants();
    assert_eq!(system.driver.free_pages(), 64);
}

#[test]
fn the_secs_goes_last_and_comes_back_first() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 20));
    system.evict_all();
    assert_eq!(system.driver.free_pages(), 63, "only a root VA page is left");
    assert_eq!(enclave.stats().resident, 0);
    assert!(enclave.with_pages(|_, _| ()).is_err());
    system.check_invariants();
    assert_eq!(system.read(&enclave, addr(7)), Touch::Done(7));
    assert_eq!(system.driver.free_pages(), 60, "the page, its SECS, its VA page and the root page");
    assert!(
        enclave.with_pages(|_, look_up| look_up(addr(7)).is_some() && look_up(addr(8)).is_none()).unwrap()
    );
    system.check_invariants();
}

#[test]
fn on_linux_the_secs_stays_before_init() {
    let system = System::with_behaviour(64, Profile::default(), Behaviour::linux());
    let (enclave, caller, image) = (system.open(), SimCaller::new(), Image::data(BASE, 20));
    image.create(&enclave, &caller).unwrap();
    image.add_pages(&enclave, &caller).unwrap();
    system.evict_all();
    assert_eq!(enclave.stats().resident, 0);
    assert!(enclave.with_pages(|_, _| ()).is_ok());
    Call { enclave: &enclave, caller: &caller }.init(&image.sigstruct()).unwrap();
    check_data(&system, &enclave, BASE, 20);
    system.check_invariants();
}

#[test]
fn version_arrays_grow_with_the_pages_and_not_with_churn() {
    let system = System::with_epc_pages(128);
    // SECS, TCS and 510 pages: exactly one VA page's worth.
    let (enclave, caller) = (system.build(&Image::data(BASE, 510)), SimCaller::new());
    assert_eq!((enclave.stats().pages, enclave.stats().va_pages), (512, 1));
    let call = Call { enclave: &enclave, caller: &caller };
    for _ in 0..3 {
        assert_eq!(system.accept(&enclave, addr(1), addr(600), 0x20b), Ok(()));
        assert_eq!(enclave.stats().va_pages, 2);
        assert_eq!(call.modify_types(600 * 4096, 4096, 4).outcome, Ok(()));
        assert_eq!(system.accept(&enclave, addr(1), addr(600), 0x410), Ok(()));
        assert_eq!(call.remove_pages(600 * 4096, 4096).outcome, Ok(()));
        assert_eq!(enclave.stats().pages, 512);
        system.check_invariants();
    }
}

#[test]
fn an_enclave_destroyed_in_the_middle_of_a_pass_gives_everything_back() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 40));
    let zapped = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&zapped);
    system.spaces.on_next_zap(move || {
        drop(enclave);
        flag.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    system.driver.ksgxd_pass();
    assert!(zapped.load(std::sync::atomic::Ordering::SeqCst));
    system.check_invariants();
    assert_eq!((system.driver.free_pages(), system.driver.stats().enclaves), (64, 0));
}

#[test]
fn a_page_in_reclaim_is_left_alone() {
    let system = System::with_epc_pages(128);
    let enclave = system.build(&Image::data(BASE, 40));
    let (eid, other, caller) = (eid(&system, &enclave), enclave.clone(), SimCaller::new());
    system.threads.enter(eid, 1);
    // The kick of the pass comes after EBLOCK, with no lock held.
    system.spaces.on_next_kick(move || {
        let page = |number| other.with_pages(|_, look_up| look_up(addr(number))).unwrap();
        assert_eq!(page(3), None, "not for leaves");
        assert!(page(30).is_some());
        assert_eq!(other.fault(addr(3), RW), FaultOutcome::Retry);
        let call = Call { enclave: &other, caller: &caller };
        assert_eq!(call.restrict(0x3000, 0x1000, 1).outcome, Err(Errno::EAGAIN));
        assert_eq!(call.remove_pages(0x3000, 0x1000).outcome, Err(Errno::EAGAIN));
        // A young page that the pass has looked at only is back on the list by now.
        assert_eq!(other.fault(addr(30), RW), FaultOutcome::Mapped);
    });
    assert_eq!(system.driver.ksgxd_pass(), 15, "one of 16 is the VA page, which was used");
    assert_eq!(system.driver.stats().kicks, 1, "one for all");
    assert_eq!(system.driver.stats().etracks, 1);
    check_data(&system, &enclave, BASE, 40);
    system.check_invariants();
}

#[test]
fn nobody_inside_means_no_kick() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 40));
    system.evict_all();
    let stats = system.driver.stats();
    assert_eq!((stats.kicks, stats.evictions), (0, 42));
    assert!(stats.etracks <= 3, "one for each batch, not for each page: {stats:?}");
    drop(enclave);
}

#[test]
fn tampering_costs_one_page_of_one_enclave() {
    let system = System::with_epc_pages(64);
    let victim = system.build(&Image::data(BASE, 20));
    let other = system.build(&Image::data(OTHER, 20));
    system.evict_all();
    assert!(system.store.tamper(victim.id(), 5, |page| page.contents.0[100] ^= 1));
    assert!(system.store.tamper(victim.id(), 6, |page| page.pcmd.mac[0] ^= 1));
    let replay = system.store.stored(victim.id(), 7).unwrap();
    assert_eq!(system.write(&victim, addr(7), 70), Touch::Done(7));
    system.evict_all();
    assert!(system.store.tamper(victim.id(), 7, |page| *page = replay));
    for page in [5, 6, 7, 5, 6, 7] {
        assert_eq!(system.read(&victim, addr(page)), Touch::Sigbus, "page {page}, for ever");
    }
    system.check_invariants();
    for page in [1, 2, 3, 4, 8, 20] {
        assert_eq!(system.read(&victim, addr(page)), Touch::Done(page));
    }
    check_data(&system, &other, OTHER, 20);
    let caller = SimCaller::new();
    let call = Call { enclave: &victim, caller: &caller };
    assert_eq!(call.restrict(0x5000, 0x1000, 1).outcome, Err(Errno::EFAULT));
    drop(victim);
    system.check_invariants();
    check_data(&system, &other, OTHER, 20);
}

#[test]
fn a_lost_secs_is_the_end_of_its_enclave_only() {
    let system = System::with_epc_pages(64);
    let victim = system.build(&Image::data(BASE, 20));
    let other = system.build(&Image::data(OTHER, 20));
    system.evict_all();
    let secs = victim.base_size().unwrap().1 / 4096;
    assert!(system.store.tamper(victim.id(), secs, |page| page.contents.0[0] ^= 1));
    for page in 0..20 {
        assert_eq!(system.read(&victim, addr(page)), Touch::Sigbus);
    }
    assert_eq!(victim.fault(addr(25), RW), FaultOutcome::Sigbus, "no page can be added either");
    check_data(&system, &other, OTHER, 20);
    system.check_invariants();
    drop(victim);
    system.check_invariants();
}

#[test]
fn a_full_store_ends_allocations_and_loses_nothing() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 40));
    system.store.set_capacity(5);
    let (second, caller, image) = (system.open(), SimCaller::new(), Image::data(OTHER, 40));
    image.create(&second, &caller).unwrap();
    assert_eq!(image.add_pages(&second, &caller), Err(Errno::ENOMEM), "and not for ever");
    system.check_invariants();
    assert_eq!(system.store.nr_stored(), 5);
    assert_eq!(system.driver.free_pages(), 0);
    drop(second);
    check_data(&system, &enclave, BASE, 40);
    system.check_invariants();
}

#[test]
fn faults_end_when_nothing_can_be_evicted() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 100));
    system.store.set_capacity(0);
    let mut outcomes = Vec::new();
    for page in 1..=100 {
        outcomes.push(system.read(&enclave, addr(page)));
    }
    assert!(outcomes.contains(&Touch::Sigbus) && !outcomes.contains(&Touch::Stuck), "{outcomes:?}");
    system.check_invariants();
    system.store.set_capacity(usize::MAX);
    system.driver.ksgxd_pass();
    system.driver.ksgxd_pass();
    while system.driver.ksgxd_should_run() {
        system.driver.ksgxd_pass();
    }
    check_data(&system, &enclave, BASE, 100);
}

#[test]
fn a_refused_write_brings_the_page_back() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 20));
    for nth in 1..=4 {
        system.store.fail(Operation::Put, nth * 2);
    }
    assert_eq!(system.driver.ksgxd_pass(), 11, "one of 16 is the VA page");
    system.check_invariants();
    assert_eq!(enclave.stats().resident, 21 - 11);
    check_data(&system, &enclave, BASE, 20);
    system.evict_all();
    check_data(&system, &enclave, BASE, 20);
}

#[test]
fn a_refused_write_of_the_secs_brings_it_back() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 3));
    system.store.fail(Operation::Put, 5);
    assert_eq!(system.driver.ksgxd_pass(), 4);
    assert!(enclave.with_pages(|_, _| ()).is_ok());
    system.check_invariants();
    system.store.fail(Operation::Reserve, 5);
    check_data(&system, &enclave, BASE, 3);
    assert_eq!(system.read(&enclave, addr(0)), Touch::Refused, "a TCS");
    system.evict_all();
    assert!(enclave.with_pages(|_, _| ()).is_err(), "it was tried again");
    system.check_invariants();
    check_data(&system, &enclave, BASE, 3);
}

#[test]
fn a_refused_read_is_tried_again() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 5));
    system.evict_all();
    system.store.fail(Operation::Get, 1);
    assert_eq!(system.read(&enclave, addr(1)), Touch::Sigbus, "the SECS");
    system.store.fail(Operation::Get, 2);
    assert_eq!(system.read(&enclave, addr(1)), Touch::Sigbus, "the page");
    system.check_invariants();
    check_data(&system, &enclave, BASE, 5);
}

#[test]
fn pages_that_stay_untracked_are_usable_again() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 20));
    system.threads.enter(eid(&system, &enclave), 1);
    system.threads.set_stubborn(usize::MAX);
    assert_eq!(system.driver.ksgxd_pass(), 0, "nobody leaves");
    system.check_invariants();
    assert_eq!(enclave.stats().resident, 21);
    assert_eq!(enclave.fault(addr(3), RW), FaultOutcome::Retry, "it is blocked");
    assert_eq!(system.read(&enclave, addr(18)), Touch::Done(18), "it is not");
    system.threads.set_stubborn(0);
    system.threads.leave_all();
    check_data(&system, &enclave, BASE, 20);
    system.evict_all();
    check_data(&system, &enclave, BASE, 20);
    system.check_invariants();
}

/// An enclave of 20 pages, of which those up to 14 are blocked after a write-back that failed.
fn with_blocked_pages() -> (System, Enclave<SimMachine>) {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 20));
    system.threads.enter(eid(&system, &enclave), 1);
    system.threads.set_stubborn(usize::MAX);
    assert_eq!(system.driver.ksgxd_pass(), 0, "nobody leaves");
    system.threads.set_stubborn(0);
    system.threads.leave_all();
    (system, enclave)
}

#[test]
fn a_blocked_page_that_a_pass_has_waits_for_it() {
    let (system, enclave) = with_blocked_pages();
    let (other, asked) = (enclave.clone(), Arc::new(AtomicBool::new(false)));
    let note = Arc::clone(&asked);
    system.spaces.on_next_look(move || {
        assert_eq!(other.fault(addr(3), RW), FaultOutcome::Retry, "it can not go out and come in now");
        note.store(true, SeqCst);
    });
    system.driver.ksgxd_pass();
    assert!(asked.load(SeqCst));
    check_data(&system, &enclave, BASE, 20);
    system.check_invariants();
}

#[test]
fn a_blocked_page_that_does_not_come_back_is_lost_alone() {
    let (system, enclave) = with_blocked_pages();
    let free = system.driver.free_pages();
    system.refusals.refuse(Refusable::Eldu, 1);
    assert_eq!(enclave.fault(addr(3), RW), FaultOutcome::Sigbus);
    assert_eq!((system.driver.free_pages(), system.driver.stats().pages_lost), (free + 1, 1));
    system.check_invariants();
    for page in (1..=20).filter(|page| *page != 3) {
        assert_eq!(system.read(&enclave, addr(page)), Touch::Done(page));
    }
    system.evict_all();
    system.check_invariants();
}

#[test]
fn add_pages_reclaims_from_others_and_from_itself() {
    let system = System::with_epc_pages(64);
    let first = system.build(&Image::data(BASE, 50));
    let second = system.build(&Image::data(OTHER, 100));
    assert!(system.driver.stats().direct_reclaims > 0);
    check_data(&system, &first, BASE, 50);
    check_data(&system, &second, OTHER, 100);
    system.check_invariants();
}

#[test]
fn add_pages_gives_up_at_a_signal_while_waiting_for_epc() {
    let system = System::with_epc_pages(64);
    let (enclave, caller, image) = (system.open(), SimCaller::new(), Image::data(BASE, 100));
    image.create(&enclave, &caller).unwrap();
    system.platform.set_signal(true);
    assert_eq!(image.add_pages(&enclave, &caller), Err(Errno::ERESTARTSYS));
    assert_eq!(system.driver.free_pages(), 0);
    system.check_invariants();
}

/// A system with an EPC that is full, an enclave, and a page of it that is evicted.
fn full_epc(behaviour: Behaviour) -> (System, usgx_driver::Enclave<usgx_testkit::SimMachine>, u64) {
    let system = System::with_behaviour(64, Profile::default(), behaviour);
    let enclave = system.build(&Image::data(BASE, 100));
    for page in 1..=100 {
        if system.driver.free_pages() > 0 {
            assert_eq!(system.read(&enclave, addr(page)), Touch::Done(page));
        }
    }
    assert_eq!(system.driver.free_pages(), 0);
    let is_missing = |page: &u64| enclave.with_pages(|_, look_up| look_up(addr(*page)).is_none()).unwrap();
    let missing = (1..=100).find(is_missing).unwrap();
    (system, enclave, missing)
}

#[test]
fn linux_faults_never_reclaim_but_wake_who_does() {
    let (system, enclave, missing) = full_epc(Behaviour::linux());
    let (scans, wakes) = (system.driver.stats().reclaim_scans, system.platform.wakes());
    assert_eq!(enclave.fault(addr(missing), RW), FaultOutcome::Retry);
    assert_eq!(system.driver.stats().reclaim_scans, scans);
    assert!(system.platform.wakes() > wakes);
    assert_eq!(system.driver.stats().retries, 1);
}

#[test]
fn a_fault_reclaims_what_it_needs() {
    let (system, enclave, missing) = full_epc(Behaviour::default());
    assert_eq!(enclave.fault(addr(missing), RW), FaultOutcome::Mapped);
    assert_eq!(system.driver.stats().retries, 0);
    check_data(&system, &enclave, BASE, 100);
    system.check_invariants();
}

#[test]
fn a_signal_ends_the_wait_of_a_fault() {
    let (system, enclave, missing) = full_epc(Behaviour::default());
    system.platform.set_signal(true);
    assert_eq!(enclave.fault(addr(missing), RW), FaultOutcome::Retry);
    assert_eq!(system.driver.free_pages(), 0, "the pages in its hand are not kept");
    system.check_invariants();
}
