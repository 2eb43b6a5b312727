//! Broken EPC pages in an enclave: it keeps them to its end, and nobody gets them after.

use usgx_driver::{Errno, Poisoned};
use usgx_isa::EpcPage;
use usgx_testkit::{Image, System, Touch};

const BASE: u64 = 0x7000_0000_0000;

#[test]
fn broken_pages_are_neither_evicted_nor_used_again() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 20));
    let at = |page: u64| {
        let look = enclave.with_pages(|secs, look_up| (secs, look_up(BASE + page * 4096)));
        look.ok().and_then(|(secs, page)| Some((secs, page?)))
    };
    let (secs, page) = at(7).expect("it is in the EPC");
    for broken in [secs, page] {
        assert_eq!(system.driver.memory_failure(broken), Ok(Poisoned::InUse));
    }
    assert_eq!(system.driver.memory_failure(EpcPage(60)), Ok(Poisoned::Retired));
    assert_eq!(system.driver.memory_failure(EpcPage(64)), Err(Errno::ENXIO));
    system.driver.shrink();
    system.check_invariants();
    assert_eq!(enclave.stats().resident, 1);
    assert_eq!(at(7), Some((secs, page)), "they are where they were");
    for page in 1..=20 {
        assert_eq!(system.read(&enclave, BASE + page * 4096), Touch::Done(page));
    }
    drop(enclave);
    system.check_invariants();
    assert_eq!((system.driver.free_pages(), system.driver.stats().poisoned_pages), (61, 3));
    let next = system.build(&Image::data(BASE, 50));
    assert_eq!(next.stats().pages, 52);
    system.check_invariants();
}

#[test]
fn a_broken_secs_stays_where_it_is() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 20));
    let secs = || enclave.with_pages(|secs, _| secs).ok();
    let broken = secs().expect("it is in the EPC");
    assert_eq!(system.driver.memory_failure(broken), Ok(Poisoned::InUse));
    system.driver.shrink();
    system.check_invariants();
    assert_eq!((enclave.stats().resident, secs()), (0, Some(broken)), "nothing reads it");
    for page in 1..=20 {
        assert_eq!(system.read(&enclave, BASE + page * 4096), Touch::Done(page));
    }
    drop(enclave);
    system.check_invariants();
    assert_eq!((system.driver.free_pages(), system.driver.stats().poisoned_pages), (63, 1));
}
