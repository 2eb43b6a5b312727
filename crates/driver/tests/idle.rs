//! Enclaves that nobody uses: they leave the EPC altogether, their version arrays included, and wake by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use usgx_driver::{Behaviour, Enclave, Errno, Prot};
use usgx_testkit::{Image, Operation, Profile, Refusable, SimCaller, SimMachine, System, Touch};

const BASE: u64 = 0x7000_0000_0000;
const RW: Prot = Prot::R.union(Prot::W);

fn addr(page: u64) -> u64 {
    BASE + page * 4096
}

fn check_data(system: &System, enclave: &Enclave<SimMachine>, base: u64, pages: u64) {
    for page in 1..=pages {
        assert_eq!(system.read(enclave, base + page * 4096), Touch::Done(page));
    }
}

#[test]
fn an_idle_enclave_has_no_epc_page_at_all() {
    let system = System::with_epc_pages(2048);
    let enclave = system.build(&Image::data(BASE, 1200));
    let stats = enclave.stats();
    assert_eq!((stats.va_pages, stats.va_resident), (3, 3));
    assert_eq!(system.driver.shrink(), 2048 - 1 - (2048 - 1201 - 1 - 3));
    assert_eq!(system.driver.free_pages(), 2047, "one root VA page");
    let stats = enclave.stats();
    assert_eq!((stats.resident, stats.va_pages, stats.va_resident), (0, 3, 0));
    assert_eq!(system.driver.stats().va_pages, 1);
    system.check_invariants();
    // The page, its SECS, and the VA pages of the two, which may be one.
    assert_eq!(system.read(&enclave, addr(700)), Touch::Done(700));
    assert!(system.driver.free_pages() >= 2047 - 4);
    system.check_invariants();
    check_data(&system, &enclave, BASE, 1200);
    assert_eq!(enclave.stats().va_resident, 3);
    system.check_invariants();
    drop(enclave);
    system.check_invariants();
    assert_eq!(system.driver.free_pages(), 2048);
}

#[test]
fn a_version_array_goes_without_tracking_or_kicks() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 20));
    let eid = enclave.with_pages(|secs, _| system.hw.enclave(secs)).expect("resident").expect("created").eid;
    while enclave.stats().secs_resident {
        system.driver.ksgxd_pass();
    }
    assert_eq!(enclave.stats().va_resident, 1, "just used");
    system.threads.enter(eid, 1);
    let before = system.driver.stats();
    system.driver.shrink();
    let after = system.driver.stats();
    assert_eq!((after.va_evictions, enclave.stats().va_resident), (before.va_evictions + 1, 0));
    assert_eq!((after.etracks, after.kicks), (before.etracks, before.kicks), "nobody has it mapped");
    system.check_invariants();
}

/// Ages everything but the last pages of an enclave of 540 data pages, which are in use.
fn age_all_but_the_last(system: &System, enclave: &Enclave<SimMachine>) {
    for _ in 0..4 {
        for page in 520..=540 {
            assert_eq!(system.read(enclave, addr(page)), Touch::Done(page));
        }
        for _ in 0..4 {
            system.driver.ksgxd_pass();
        }
    }
}

#[test]
fn a_version_array_stays_while_versions_are_on_their_way_into_it() {
    let system = System::with_epc_pages(1024);
    let enclave = system.build(&Image::data(BASE, 540));
    while enclave.stats().resident > 60 {
        system.driver.ksgxd_pass();
    }
    let world = Arc::new((system, enclave));
    let (weak, has_run) = (Arc::downgrade(&world), AtomicBool::new(false));
    world.0.refusals.before_evicting(move |leaf| {
        if leaf == Refusable::Ewb && !has_run.swap(true, SeqCst) {
            let world = weak.upgrade().expect("the test holds it");
            age_all_but_the_last(&world.0, &world.1);
            assert_eq!(
                world.1.stats().va_resident,
                2,
                "pages of a pass have slots in one, the rest in the other"
            );
        }
    });
    let (system, enclave) = &*world;
    assert!(system.driver.ksgxd_pass() > 0);
    age_all_but_the_last(system, enclave);
    assert_eq!(enclave.stats().va_resident, 1, "nobody needs the one whose slots are taken");
    system.check_invariants();
    check_data(system, enclave, BASE, 540);
    system.check_invariants();
}

#[test]
fn an_idle_enclave_that_ends_gives_its_root_slots_back() {
    let system = System::with_epc_pages(128);
    let [first, second] = [BASE, BASE + (1 << 32)].map(|base| system.build(&Image::data(base, 20)));
    system.driver.shrink();
    assert_eq!(system.driver.free_pages(), 127);
    drop(first);
    system.check_invariants();
    assert_eq!(system.driver.free_pages(), 127);
    drop(second);
    system.check_invariants();
    assert_eq!(system.driver.free_pages(), 128);
}

#[test]
fn linux_keeps_version_arrays() {
    let system = System::with_behaviour(128, Profile::default(), Behaviour::linux());
    let enclaves: Vec<_> = (0..3).map(|i| system.build(&Image::data(BASE + (i << 32), 20))).collect();
    system.driver.shrink();
    assert_eq!(system.driver.free_pages(), 125);
    drop(enclaves);
    system.check_invariants();
}

#[test]
fn full_version_arrays_of_a_large_enclave_go_while_it_works() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 4000));
    assert_eq!(enclave.stats().va_pages, 8);
    for round in 0..20 {
        for page in (1..=300).step_by(3) {
            assert_eq!(system.read(&enclave, addr(page)), Touch::Done(page), "round {round}");
        }
        system.check_invariants();
    }
    let used = enclave.stats().va_resident;
    assert!(used <= 4, "Linux has 8 of 64 EPC pages in use for versions, here it is {used}");
    check_data(&system, &enclave, BASE, 4000);
    assert!(system.driver.stats().va_evictions > 8 && system.driver.stats().va_loads > 8);
    system.check_invariants();
}

#[test]
fn a_version_array_that_was_changed_costs_its_own_enclave_only() {
    let system = System::with_epc_pages(256);
    let victim = system.build(&Image::data(BASE, 20));
    let other_base = BASE + (1 << 32);
    let other = system.build(&Image::data(other_base, 20));
    system.driver.shrink();
    let va = victim.base_size().map_or(0, |(_, size)| size / 4096 + 1);
    assert!(system.store.tamper(victim.id(), va, |page| page.contents.0[0] ^= 1));
    for page in [0, 1, 20, 1] {
        assert_eq!(system.read(&victim, addr(page)), Touch::Sigbus);
    }
    system.check_invariants();
    check_data(&system, &other, other_base, 20);
    drop(victim);
    system.check_invariants();
    check_data(&system, &other, other_base, 20);
}

#[test]
fn an_old_version_array_brings_no_old_page_back() {
    let system = System::with_epc_pages(256);
    let enclave = system.build(&Image::data(BASE, 20));
    let va = enclave.base_size().map_or(0, |(_, size)| size / 4096 + 1);
    system.driver.shrink();
    let old = [7, va].map(|index| system.store.stored(enclave.id(), index).expect("it is out"));
    assert_eq!(system.write(&enclave, addr(7), 70), Touch::Done(7));
    system.driver.shrink();
    for (index, page) in [7, va].into_iter().zip(old) {
        assert!(system.store.tamper(enclave.id(), index, |stored| *stored = page));
    }
    assert_eq!(system.read(&enclave, addr(7)), Touch::Sigbus);
    system.check_invariants();
}

#[test]
fn every_refusal_of_the_store_has_its_way_back() {
    for operation in [Operation::Reserve, Operation::Put, Operation::Get] {
        for nth in 1..=60 {
            let system = System::with_epc_pages(128);
            let enclave = system.build(&Image::data(BASE, 20));
            system.store.fail(operation, nth);
            for _ in 0..2 {
                system.driver.shrink();
                system.check_invariants();
                for page in 1..=20 {
                    let mut touch = system.read(&enclave, addr(page));
                    if touch == Touch::Sigbus && operation == Operation::Get {
                        touch = system.read(&enclave, addr(page));
                    }
                    assert_eq!(touch, Touch::Done(page), "{operation:?} {nth}");
                }
                system.check_invariants();
            }
        }
    }
}

#[test]
fn an_enclave_that_is_still_built_leaves_between_its_pages() {
    let system = System::with_epc_pages(64);
    let (enclave, caller, image) = (system.open(), SimCaller::new(), Image::data(BASE, 600));
    image.create(&enclave, &caller).expect("it can be created");
    let call = usgx_testkit::Call { enclave: &enclave, caller: &caller };
    let away = |pages: u64| {
        system.driver.shrink();
        system.check_invariants();
        let stats = enclave.stats();
        assert_eq!(
            (stats.pages, stats.resident, stats.secs_resident, stats.va_resident),
            (pages, 0, false, 0)
        );
        assert_eq!(system.driver.free_pages(), 63, "a root page for its version array");
    };
    away(1);
    // One by one, and out before each of the first, and where the second VA page comes.
    for (done, page) in (1..).zip(&image.pages) {
        let part = Image { pages: vec![page.clone()], ..image.clone() };
        part.add_pages(&enclave, &caller).expect("there is room");
        if done < 30 || (500..530).contains(&done) {
            away(1 + done);
        }
    }
    assert_eq!(enclave.fault(addr(3), RW), usgx_driver::FaultOutcome::Mapped);
    away(1 + image.pages.len() as u64);
    // Its measurement has come along.
    call.init(&image.sigstruct()).expect("it is what was signed");
    check_data(&system, &enclave, BASE, 600);
    system.check_invariants();
}

#[test]
fn an_enclave_whose_secs_is_lost_cannot_be_completed() {
    let system = System::with_epc_pages(64);
    let (enclave, caller, image) = (system.open(), SimCaller::new(), Image::data(BASE, 3));
    image.create(&enclave, &caller).expect("it can be created");
    system.driver.shrink();
    let secs = enclave.base_size().map_or(0, |(_, size)| size / 4096);
    assert!(system.store.tamper(enclave.id(), secs, |page| page.contents.0[0] ^= 1));
    for _ in 0..2 {
        assert_eq!(image.add_pages(&enclave, &caller), Err(Errno::EIO));
        let call = usgx_testkit::Call { enclave: &enclave, caller: &caller };
        assert_eq!(call.init(&image.sigstruct()), Err(Errno::EIO));
        system.check_invariants();
    }
    drop(enclave);
    system.check_invariants();
    assert_eq!(system.driver.free_pages(), 64);
}

#[test]
fn on_linux_the_secs_and_version_arrays_stay_before_init() {
    for (behaviour, va_resident) in [
        (Behaviour::linux(), 3),
        // Full ones go: nobody needs them before a page comes back.
        (Behaviour { evict_unfinished: false, ..Behaviour::default() }, 1),
    ] {
        let system = System::with_behaviour(64, Profile::default(), behaviour);
        let (enclave, caller, image) = (system.open(), SimCaller::new(), Image::data(BASE, 1500));
        image.create(&enclave, &caller).expect("it can be created");
        image.add_pages(&enclave, &caller).expect("there is room");
        system.driver.shrink();
        system.check_invariants();
        let stats = enclave.stats();
        assert_eq!((stats.resident, stats.va_pages, stats.va_resident), (0, 3, va_resident));
        assert!(stats.secs_resident);
        let call = usgx_testkit::Call { enclave: &enclave, caller: &caller };
        call.init(&image.sigstruct()).expect("it is what was signed");
        check_data(&system, &enclave, BASE, 1500);
        system.check_invariants();
    }
}

#[test]
fn idle_version_arrays_find_a_root_slot_at_every_moment() {
    // More than a root page has slots for. None of them leaves before all have been built.
    const ENCLAVES: u64 = 520;
    let system = System::with_epc_pages(ENCLAVES as u32 * 4 + 200);
    let image = Image::data(BASE, 1);
    let sigstruct = image.sigstruct();
    let enclaves: Vec<_> = (0..ENCLAVES)
        .map(|_| {
            let (enclave, caller) = (system.open(), SimCaller::new());
            image.create(&enclave, &caller).expect("there is room");
            image.add_pages(&enclave, &caller).expect("there is room");
            usgx_testkit::Call { enclave: &enclave, caller: &caller }.init(&sigstruct).expect("as signed");
            enclave
        })
        .collect();
    while system.driver.stats().va_evictions < ENCLAVES {
        system.driver.ksgxd_pass();
        system.check_invariants();
    }
    assert_eq!(system.driver.stats().va_pages, 2, "root pages");
    for enclave in &enclaves {
        assert_eq!(system.read(enclave, addr(1)), Touch::Done(1));
    }
    system.check_invariants();
    drop(enclaves);
    system.check_invariants();
    assert_eq!(system.driver.stats().va_pages, 0);
}

/// How many enclaves can be built before one is refused, and what refuses it. The others are alive all the same. Every
/// second is initialised only later, where an EPC that is full of such has room for more.
fn enclaves_that_fit(epc_pages: u32, behaviour: Behaviour, most: usize) -> (usize, Option<Errno>) {
    let system = System::with_behaviour(epc_pages, Profile::default(), behaviour);
    let image = Image::data(BASE, 1);
    let sigstruct = image.sigstruct();
    let (mut enclaves, mut refusal) = (Vec::new(), None);
    while enclaves.len() < most && refusal.is_none() {
        let (enclave, caller) = (system.open(), SimCaller::new());
        let call = usgx_testkit::Call { enclave: &enclave, caller: &caller };
        let finish = enclaves.len() % 2 == 0 || !behaviour.evict_unfinished;
        let built = image
            .create(&enclave, &caller)
            .and_then(|()| image.add_pages(&enclave, &caller))
            .and_then(|()| if finish { call.init(&sigstruct) } else { Ok(()) });
        match built {
            Ok(()) => enclaves.push(enclave),
            Err(errno) => refusal = Some(errno),
        }
    }
    system.check_invariants();
    for enclave in &enclaves {
        let call = usgx_testkit::Call { enclave, caller: &SimCaller::new() };
        if !enclave.is_initialized() {
            call.init(&sigstruct).expect("it is what was signed");
        }
        assert_eq!(system.read(enclave, addr(1)), Touch::Done(1));
    }
    system.check_invariants();
    (enclaves.len(), refusal)
}

#[test]
fn many_times_more_idle_enclaves_fit_than_on_linux() {
    const PAGES: u32 = 16;
    let (on_linux, refusal) = enclaves_that_fit(PAGES, Behaviour::linux(), usize::MAX);
    assert!(on_linux < PAGES as usize && refusal == Some(Errno::ENOMEM), "{on_linux} {refusal:?}");
    // A root page for 512, and some pages to work with.
    let (here, refusal) = enclaves_that_fit(PAGES, Behaviour::default(), 100 * on_linux);
    assert_eq!((here, refusal), (100 * on_linux, None));
}

#[test]
fn idle_enclaves_of_eight_times_the_epc() {
    idle_enclaves(32, 1 << 10, 1);
}

#[test]
#[ignore = "a gigabyte, and minutes without optimisation: run with --release --ignored"]
fn a_thousand_idle_enclaves_of_one_mebibyte_in_64() {
    idle_enclaves(1000, 16 << 10, 2);
}

/// Builds enclaves of 1 MiB each in an EPC of `epc_pages`, shrinks it until only `roots` pages are in use, and compares
/// every page of all with what was put into it.
fn idle_enclaves(nr_enclaves: u64, epc_pages: usize, roots: usize) {
    let system = System::with_epc_pages(epc_pages as u32);
    let mut image = Image::data(BASE, 255);
    image.size = 1 << 20;
    // What is in the pages is not measured, so one signature is good for all.
    let sigstruct = image.sigstruct();
    let contents = |number: u64, page: u64| number << 32 | page;
    let enclaves: Vec<_> = (0..nr_enclaves)
        .map(|number| {
            for page in &mut image.pages[1..] {
                page.contents.0[..8].copy_from_slice(&contents(number, page.index).to_le_bytes());
            }
            let (enclave, caller) = (system.open(), SimCaller::new());
            image.create(&enclave, &caller).expect("one more fits");
            image.add_pages(&enclave, &caller).expect("one more fits");
            let call = usgx_testkit::Call { enclave: &enclave, caller: &caller };
            call.init(&sigstruct).expect("one more fits");
            enclave
        })
        .collect();
    system.driver.shrink();
    // 512 VA pages to a root page.
    assert_eq!(system.driver.free_pages(), epc_pages - roots);
    for enclave in &enclaves {
        let stats = enclave.stats();
        assert_eq!((stats.pages, stats.resident, stats.va_resident), (257, 0, 0));
    }
    for (number, enclave) in (0..).zip(&enclaves) {
        for page in 1..=255 {
            assert_eq!(
                system.read(enclave, addr(page)),
                Touch::Done(contents(number, page)),
                "enclave {number}"
            );
        }
    }
    system.check_invariants();
    drop(enclaves);
    system.check_invariants();
    assert_eq!(system.driver.free_pages(), epc_pages);
}
