//! Virtual EPC: a guest builds enclaves in raw pages by itself, and all of them come back, whatever it left in them.

use std::cell::Cell;
use std::sync::Arc;

use shuttle::Runner;
use shuttle::scheduler::RandomScheduler;
use shuttle::thread;
use usgx_cpu::PageBytes;
use usgx_driver::{Errno, FaultOutcome, MapFailed, Platform, Poisoned, VirtualEpc, command};
use usgx_isa::layout::Secinfo;
use usgx_isa::{Encls, EpcPage, LinAddr, Page};
use usgx_testkit::{
    Image, Refusable, Rng, SchedulePlatform, SimMachine, SimMachineOn, System, SystemOn, Touch,
};

const BASE: u64 = 0x7000_0000_0000;
/// Where the guest's enclaves are.
const GUEST: u64 = 0x10_0000;
/// SECINFO.FLAGS of a REG page that is readable and writable.
const REG_RW: u64 = 0x203;
/// Schedules that one run tries.
const SCHEDULES: usize = 1000;

fn secinfo(flags: u64) -> Secinfo {
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&flags.to_le_bytes());
    Secinfo::try_copy_from(&bytes).expect("64 bytes")
}

/// Touches page `index`, as a guest does; the EPC page that it finds there.
fn page<P: Platform>(vepc: &VirtualEpc<SimMachineOn<P>>, index: u64) -> EpcPage {
    let found = Cell::new(None);
    let outcome = vepc.fault(index, |page| {
        found.set(Some(page));
        Ok(())
    });
    assert_eq!(outcome, FaultOutcome::Mapped, "page {index}");
    found.get().expect("what is mapped was told")
}

/// The guest runs ECREATE on page `index`.
fn create<P: Platform>(system: &SystemOn<P>, vepc: &VirtualEpc<SimMachineOn<P>>, index: u64) -> EpcPage {
    let secs = page(vepc, index);
    let image = Image::data(GUEST, 100);
    system.hw.ecreate(secs, &image.secs(), &secinfo(0)).expect("ECREATE on a page that nobody uses");
    secs
}

/// The guest runs EADD on page `index`, for the page of its enclave with that number, which is its contents too.
fn add<P: Platform>(
    system: &SystemOn<P>,
    vepc: &VirtualEpc<SimMachineOn<P>>,
    index: u64,
    secs: EpcPage,
) -> EpcPage {
    let child = page(vepc, index);
    let mut contents = Page::ZERO;
    contents.0[..8].copy_from_slice(&index.to_le_bytes());
    let linaddr = LinAddr(GUEST + index * 4096);
    system.hw.eadd(child, secs, linaddr, &contents, &secinfo(REG_RW)).expect("EADD");
    child
}

fn first_word(system: &System, page: EpcPage) -> u64 {
    let mut word = [0; 8];
    system.hw.bytes().read(page, 0, &mut word);
    u64::from_le_bytes(word)
}

fn remove_all(vepc: &VirtualEpc<SimMachine>) -> Result<u64, Errno> {
    vepc.ioctl(command::VEPC_REMOVE_ALL, 0)
}

/// How many pages are free, and how many raw; the books are checked first.
fn free_and_raw(system: &System) -> (u64, u64) {
    system.check_invariants();
    let stats = system.driver.stats();
    assert_eq!(stats.leaked_pages, 0);
    (stats.free_pages, stats.raw_pages)
}

#[test]
fn a_page_comes_with_its_first_fault_and_stays() {
    let system = System::with_epc_pages(64);
    let vepc = system.driver.open_virtual_epc();
    assert_eq!(free_and_raw(&system), (64, 0));
    let pages = [page(&vepc, 0), page(&vepc, 1 << 40)];
    assert_ne!(pages[0], pages[1]);
    assert!(pages.iter().all(|page| system.hw.epcm(*page).is_none()), "a raw page has no type");
    assert_eq!([page(&vepc, 0), page(&vepc, 1 << 40)], pages, "another mapping finds the same pages");
    assert_eq!((vepc.nr_pages(), free_and_raw(&system)), (2, (62, 2)));

    assert_eq!(vepc.fault(7, |_| Err(MapFailed)), FaultOutcome::Sigbus);
    assert_eq!((vepc.nr_pages(), free_and_raw(&system)), (2, (62, 2)), "what was not mapped is free");
    assert_eq!(vepc.fault(0, |_| Err(MapFailed)), FaultOutcome::Sigbus);
    assert_eq!(page(&vepc, 0), pages[0], "a page that was there is still there");

    let copy = vepc.clone();
    drop(vepc);
    assert_eq!((copy.nr_pages(), free_and_raw(&system)), (2, (62, 2)), "a mapping keeps it");
    drop(copy);
    assert_eq!(free_and_raw(&system), (64, 0));
}

#[test]
fn without_a_free_page_a_fault_waits_for_ksgxd_and_fails_if_nothing_can_go() {
    let system = System::with_epc_pages(64);
    let enclave = system.build(&Image::data(BASE, 20));
    let vepc = system.driver.open_virtual_epc();
    for index in 0..system.driver.free_pages() as u64 {
        page(&vepc, index);
    }
    let before = system.driver.stats();
    let outcome = vepc.fault(100, |_| panic!("there is no page"));
    let after = system.driver.stats();
    assert_eq!((outcome, after.free_pages), (FaultOutcome::Retry, 0));
    assert_eq!((before.reclaim_scans, before.direct_reclaims), (after.reclaim_scans, after.direct_reclaims));
    system.evict_all();
    page(&vepc, 100);
    let mut index = 101;
    while system.driver.free_pages() > 0 {
        page(&vepc, index);
        index += 1;
    }
    system.evict_all();
    drop(enclave);
    while system.driver.free_pages() > 0 {
        page(&vepc, index);
        index += 1;
    }
    assert_eq!(vepc.fault(index, |_| panic!("there is no page")), FaultOutcome::Sigbus);
    assert_eq!(free_and_raw(&system), (0, 64));
    drop(vepc);
    assert_eq!(free_and_raw(&system), (64, 0));
}

#[test]
fn a_guest_that_starts_anew_has_its_pages_emptied() {
    let system = System::with_epc_pages(64);
    let vepc = system.driver.open_virtual_epc();
    for _ in 0..2 {
        let secs = create(&system, &vepc, 0);
        let children: Vec<EpcPage> = (1..=9).map(|index| add(&system, &vepc, index, secs)).collect();
        assert_eq!(remove_all(&vepc), Ok(1), "the SECS was met before its children");
        assert!(system.hw.epcm(secs).is_some());
        assert!(children.iter().all(|page| system.hw.epcm(*page).is_none()));
        assert_eq!(remove_all(&vepc), Ok(0));
        assert!(system.hw.epcm(secs).is_none());
        assert_eq!((vepc.nr_pages(), free_and_raw(&system)), (10, (54, 10)), "the pages stay the guest's");
    }
    assert_eq!(vepc.ioctl(command::VEPC_REMOVE_ALL, 1), Err(Errno::EINVAL));
    assert_eq!(vepc.ioctl(command::CREATE, 0), Err(Errno::ENOTTY));
}

#[test]
fn a_page_that_the_guest_uses_cannot_be_emptied() {
    let system = System::with_epc_pages(64);
    let vepc = system.driver.open_virtual_epc();
    let secs = create(&system, &vepc, 0);
    let child = add(&system, &vepc, 1, secs);
    let eid = system.hw.enclave(secs).expect("an SECS").eid;
    system.threads.enter(eid, 1);
    assert_eq!(remove_all(&vepc), Err(Errno::EBUSY), "a thread is inside");
    assert_eq!((first_word(&system, child), system.hw.epcm(child).is_some()), (1, true));
    system.threads.leave(eid, 1);
    system.refusals.refuse(Refusable::Eremove, 2);
    assert_eq!(remove_all(&vepc), Err(Errno::EBUSY), "a leaf runs on the page");
    assert_eq!(remove_all(&vepc), Ok(1));
    assert_eq!(remove_all(&vepc), Ok(0));
}

#[test]
fn the_end_frees_children_and_secs_whichever_comes_first() {
    let system = System::with_epc_pages(64);
    for secs_at in [0, 5, 10] {
        let vepc = system.driver.open_virtual_epc();
        let secs = create(&system, &vepc, secs_at);
        for index in (0..=10).filter(|index| *index != secs_at) {
            add(&system, &vepc, index, secs);
        }
        assert_eq!(free_and_raw(&system), (53, 11));
        drop(vepc);
        assert_eq!(free_and_raw(&system), (64, 0), "SECS at {secs_at}");
    }
}

#[test]
fn an_secs_waits_for_its_children_elsewhere() {
    let system = System::with_epc_pages(64);
    let [one, two, three] = [(); 3].map(|()| system.driver.open_virtual_epc());
    let first = create(&system, &one, 0);
    let second = create(&system, &one, 1);
    add(&system, &one, 2, first);
    add(&system, &two, 0, first);
    add(&system, &two, 1, first);
    add(&system, &three, 0, second);
    assert_eq!(free_and_raw(&system), (58, 6));
    drop(one);
    assert_eq!(free_and_raw(&system), (59, 5), "both SECS stay, and are nobody's but the driver's");
    drop(system.driver.open_virtual_epc());
    assert_eq!(free_and_raw(&system), (59, 5), "their children are still there");
    drop(two);
    assert_eq!(free_and_raw(&system), (62, 2), "the first one went with its last child");
    drop(three);
    assert_eq!(free_and_raw(&system), (64, 0));
}

#[test]
fn what_the_processor_refuses_is_tried_again_at_the_next_end() {
    let system = System::with_epc_pages(64);
    let vepc = system.driver.open_virtual_epc();
    let secs = create(&system, &vepc, 0);
    add(&system, &vepc, 1, secs);
    // The child in both rounds there are: of the end, and of the zombies. Its SECS is refused beside it.
    for nth in [2, 4] {
        system.refusals.refuse(Refusable::Eremove, nth);
    }
    drop(vepc);
    assert_eq!(free_and_raw(&system), (62, 2));
    drop(system.driver.open_virtual_epc());
    assert_eq!(free_and_raw(&system), (64, 0), "the SECS, which is before its child, in the same go");
}

#[test]
fn raw_pages_stay_while_an_enclave_is_short_of_pages() {
    let system = System::with_epc_pages(64);
    let vepc = system.driver.open_virtual_epc();
    let secs = create(&system, &vepc, 0);
    let children: Vec<EpcPage> = (1..=15).map(|index| add(&system, &vepc, index, secs)).collect();
    let broken = children[4];
    assert_eq!(system.driver.memory_failure(broken), Ok(Poisoned::InUse));
    let enclave = system.build(&Image::data(BASE, 200));
    let mut rng = Rng::new(1);
    for _ in 0..2000 {
        let index = 1 + rng.below(200);
        assert_eq!(system.read(&enclave, BASE + index * 4096), Touch::Done(index));
    }
    system.driver.shrink();
    let (free, raw) = free_and_raw(&system);
    assert_eq!((free, raw), (47, 16), "of the enclave only a root VA page is left");
    for (index, child) in (1..).zip(&children) {
        assert_eq!(first_word(&system, *child), index);
        let entry = system.hw.epcm(*child).expect("valid");
        assert_eq!((entry.secs, entry.linaddr), (Some(secs), LinAddr(GUEST + index * 4096)));
        assert_eq!(page(&vepc, index), *child);
    }
    drop(enclave);
    drop(vepc);
    assert_eq!(free_and_raw(&system), (63, 0));
    assert_eq!(system.driver.stats().poisoned_pages, 1, "a broken page is retired when it comes back");
}

#[test]
fn ends_at_the_same_time_leave_nothing() {
    let test = || {
        let system = Arc::new(SystemOn::<SchedulePlatform>::with_epc_pages(16));
        let [one, two] = [(); 2].map(|()| system.driver.open_virtual_epc());
        let secs = [create(&system, &one, 0), create(&system, &two, 0)];
        for index in 1..=2 {
            add(&system, &one, index, secs[1]);
            add(&system, &two, index, secs[0]);
        }
        let ends = [one, two].map(|vepc| thread::spawn(move || drop(vepc)));
        for end in ends {
            end.join().expect("an end does not fail");
        }
        system.check_invariants();
        assert_eq!(system.driver.free_pages(), 16, "nobody is left to free a zombie");
    };
    let mut config = shuttle::Config::new();
    // The processor model's cryptography wants more than the default.
    config.stack_size = 512 * 1024;
    Runner::new(RandomScheduler::new(SCHEDULES), config).run(test);
}
