//! What may be mapped, what a fault does, and a debugger's look inside.

#![allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use usgx_driver::{Behaviour, Errno, FaultOutcome, PageKind, Prot};
use usgx_isa::Page;
use usgx_testkit::{Image, Profile, SimCaller, System, Touch};

const BASE: u64 = 0x7000_0000_0000;
const RW: Prot = Prot::R.union(Prot::W);

/// Page 0 a TCS, 1 RW, 2 R, 3 RX, 4 with no permissions; 5 and on are missing.
fn image() -> Image {
    let mut image = Image::data(BASE, 1);
    image.size = 0x10000;
    image.push(2, 0x201, Page::ZERO, true);
    image.push(3, 0x205, Page::ZERO, true);
    image.push(4, 0x200, Page::ZERO, true);
    image
}

#[test]
fn mappings_may_allow_no_more_than_their_pages() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&image());
    let map = |page: u64, pages: u64, prot| enclave.mmap(BASE + page * 4096, pages * 4096, prot);
    for (page, allowed) in [(0, RW), (1, RW), (2, Prot::R), (3, Prot::R | Prot::X), (4, Prot::empty())] {
        for bits in 0..8 {
            let prot = Prot::from_bits_truncate(bits);
            let expected = if allowed.contains(prot) { Ok(()) } else { Err(Errno::EACCES) };
            assert_eq!(map(page, 1, prot), expected, "page {page}, {prot:?}");
            assert_eq!(enclave.mprotect(BASE + page * 4096, 4096, prot), expected);
        }
    }
    assert_eq!(map(1, 2, RW), Err(Errno::EACCES), "the second page is read-only");
    assert_eq!(map(0, 4, Prot::R), Ok(()));
    assert_eq!(map(0, 5, Prot::R), Err(Errno::EACCES));
    assert_eq!(map(0, 16, Prot::empty()), Ok(()));
    assert_eq!(map(5, 11, Prot::all()), Ok(()), "missing pages put no limit");
}

#[test]
fn the_range_counts_only_after_init() {
    let system = System::with_epc_pages(64);
    let (enclave, caller, image) = (system.open(), SimCaller::new(), image());
    assert_eq!(enclave.mmap(0x1000, 4096, Prot::all()), Ok(()), "not even created");
    image.create(&enclave, &caller).unwrap();
    image.add_pages(&enclave, &caller).unwrap();
    assert_eq!(enclave.mmap(0x1000, 4096, Prot::all()), Ok(()));
    assert_eq!(
        enclave.mmap(BASE - 4096, 0x20000, Prot::all()),
        Err(Errno::EACCES),
        "pages count before, too"
    );
    usgx_testkit::Call { enclave: &enclave, caller: &caller }.init(&image.sigstruct()).unwrap();
    for (start, len) in [(0x1000, 4096), (BASE - 4096, 8192), (BASE + 0xf000, 8192), (BASE + 0x10000, 4096)] {
        assert_eq!(enclave.mmap(start, len, Prot::empty()), Err(Errno::EACCES), "{start:#x}");
    }
    assert_eq!(enclave.mmap(BASE, 0x10000, Prot::empty()), Ok(()));
    for (start, len) in [(BASE, 0), (u64::MAX - 4095, 8192)] {
        assert_eq!(enclave.mmap(start, len, Prot::R), Err(Errno::EINVAL));
    }
}

#[test]
fn faults_map_what_the_page_allows() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&image());
    assert_eq!(enclave.fault(BASE + 0x1234, RW), FaultOutcome::Mapped);
    assert!(system.spaces.mapped(enclave.id(), BASE + 0x1000).is_some());
    assert_eq!(system.spaces.kind(enclave.id(), BASE + 0x1000), Some(PageKind::Reg));
    assert_eq!(enclave.fault(BASE, RW), FaultOutcome::Mapped);
    assert_eq!(system.spaces.kind(enclave.id(), BASE), Some(PageKind::Tcs));
    assert_eq!(enclave.fault(BASE + 0x2000, RW), FaultOutcome::Sigbus, "more than the page allows");
    assert_eq!(enclave.fault(BASE - 1, Prot::R), FaultOutcome::Sigbus);
    assert_eq!(enclave.fault(BASE + 0x10000, Prot::R), FaultOutcome::Sigbus);
    assert_eq!(system.open().fault(BASE, Prot::R), FaultOutcome::Sigbus, "nothing was created");
    system.spaces.fail_maps(1);
    assert_eq!(enclave.fault(BASE + 0x2000, Prot::R), FaultOutcome::Sigbus);
    assert_eq!(enclave.fault(BASE + 0x2000, Prot::R), FaultOutcome::Mapped);
    let stats = enclave.stats();
    assert_eq!((stats.epc_faults, stats.remaps, stats.fault_failures, stats.loads), (7, 3, 4, 0));
    system.check_invariants();
}

#[test]
fn missing_pages_are_added_after_init_on_sgx2() {
    let system = System::with_epc_pages(64);
    let (enclave, caller, image) = (system.open(), SimCaller::new(), image());
    image.create(&enclave, &caller).unwrap();
    image.add_pages(&enclave, &caller).unwrap();
    assert_eq!(enclave.fault(BASE + 0x5000, Prot::R), FaultOutcome::Sigbus, "not before INIT");
    usgx_testkit::Call { enclave: &enclave, caller: &caller }.init(&image.sigstruct()).unwrap();
    assert_eq!(system.read(&enclave, BASE + 0x5000), Touch::Refused, "there, but pending");
    assert_eq!(enclave.fault(BASE + 0x5000, Prot::all()), FaultOutcome::Mapped, "a second fault finds it");
    assert_eq!(system.accept(&enclave, BASE + 0x1000, BASE + 0x5000, 0x20b), Ok(()));
    assert_eq!(system.read(&enclave, BASE + 0x5000), Touch::Done(0));
    assert_eq!(system.accept(&enclave, BASE + 0x1000, BASE + 0x6000, 0x20b), Ok(()), "EACCEPT faults it in");
    assert_eq!(enclave.stats().pages_added, 7);
    system.check_invariants();
}

#[test]
fn missing_pages_are_sigbus_on_sgx1() {
    let system = System::with_profile(64, Profile::by_name("coffee-lake").unwrap());
    let enclave = system.build(&image());
    assert_eq!(enclave.fault(BASE + 0x5000, Prot::R), FaultOutcome::Sigbus);
    assert_eq!(system.read(&enclave, BASE + 0x1000), Touch::Done(1));
}

#[test]
fn an_added_page_that_can_not_be_mapped_stays() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&image());
    system.spaces.fail_maps(1);
    assert_eq!(enclave.fault(BASE + 0x5000, Prot::R), FaultOutcome::Sigbus);
    assert_eq!(enclave.stats().pages_added, 6);
    system.check_invariants();
    assert_eq!(enclave.fault(BASE + 0x5000, Prot::R), FaultOutcome::Mapped);
}

#[test]
fn a_debugger_reads_and_writes_any_bytes() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&image());
    let mut bytes = [0; 21];
    bytes.iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
    assert_eq!(enclave.access(BASE + 0x1ff3 - 20, RW, &mut bytes, true), Ok(21));
    system.evict_all();
    let mut all = [0; 40];
    assert_eq!(enclave.access(BASE + 0x1fd8, RW, &mut all, false), Ok(40));
    assert_eq!(all[7..28], bytes);
    assert_eq!((all[6], all[28]), (0, 0), "its neighbours are untouched");
    assert_eq!(
        enclave.access(BASE + 0x2000, RW, &mut all, false),
        Err(Errno::EFAULT),
        "the mapping allows more"
    );
    assert_eq!(
        enclave.access(BASE + 0x5000, RW, &mut all, false),
        Err(Errno::EFAULT),
        "no page, and none added"
    );
    assert_eq!(enclave.access(BASE, RW, &mut all, true), Err(Errno::EIO), "TCS but for its flags");
    system.check_invariants();
}

#[test]
fn a_debugger_sees_nothing_of_other_enclaves() {
    let system = System::with_epc_pages(64);
    let mut image = image();
    image.attributes = 4;
    let enclave = system.build(&image);
    assert!(!enclave.is_debug());
    assert_eq!(enclave.access(BASE + 0x1000, RW, &mut [0; 8], false), Err(Errno::EFAULT));
    assert_eq!(system.open().access(BASE, RW, &mut [0; 8], false), Err(Errno::EFAULT));
}

#[test]
fn a_fault_adds_pages_around_it_where_epc_is_plenty() {
    let behaviour = Behaviour { fault_around: 4, ..Behaviour::default() };
    let system = System::with_behaviour(128, Profile::default(), behaviour);
    // Pages 1 to 15 of 32 are there.
    let enclave = system.build(&Image::data(BASE, 15));
    let pages = || enclave.stats().pages;
    let before = pages();
    assert_eq!(system.read(&enclave, BASE + 18 * 4096), Touch::Refused);
    assert_eq!(pages(), before + 5, "it, and four after it");
    assert_eq!(system.read(&enclave, BASE + 16 * 4096), Touch::Refused);
    assert_eq!(pages(), before + 7, "up to the first that is there");
    assert_eq!(system.read(&enclave, BASE + 30 * 4096), Touch::Refused);
    assert_eq!(pages(), before + 9, "up to the end");
    for page in 16..23 {
        assert_eq!(system.accept(&enclave, BASE + 4096, BASE + page * 4096, 0x20b), Ok(()));
    }
    let other = system.build(&Image::data(BASE + (1 << 32), 80));
    let before = other.stats().pages;
    assert_eq!(system.read(&other, BASE + (1 << 32) + 100 * 4096), Touch::Refused);
    assert_eq!(other.stats().pages, before + 1, "EPC is short: {} pages free", system.driver.free_pages());
    system.check_invariants();
}
