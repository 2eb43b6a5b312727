//! Allocation, watermarks, second chance and sanitising, with an owner that only keeps notes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use usgx_cpu::{ArenaBytes, FuseKeys, LogicalProcessors, Processor, Profile};
use usgx_epc::{
    Age, AllocError, BATCH, Epc, HeldLocks, HeldOwner, InReclaim, NodeStats, NotEpc, PageOwner, PageState,
    Platform, Poisoned, Policy, Reclaim, SectionConfig, Used, Victim, Written,
};
use usgx_isa::layout::Secinfo;
use usgx_isa::{Encls, EpcPage, LinAddr, Page};

#[derive(Default)]
struct TestPlatform {
    signal: AtomicBool,
    wakes: AtomicUsize,
    node: AtomicUsize,
}

thread_local! {
    static HELD: RefCell<HeldLocks> = const { RefCell::new(HeldLocks::NONE) };
}

impl Platform for TestPlatform {
    type RawMutex = parking_lot::RawMutex;

    fn signal_pending(&self) -> bool {
        self.signal.load(SeqCst)
    }

    fn wake_ksgxd(&self) {
        self.wakes.fetch_add(1, SeqCst);
    }

    fn yield_now(&self) {}

    fn with_held(f: &mut dyn FnMut(&mut HeldLocks)) {
        HELD.with_borrow_mut(f);
    }

    fn current_node(&self) -> usize {
        self.node.load(SeqCst)
    }
}

/// What the owner answers for a page, and what it was asked to do.
#[derive(Default)]
struct Notes {
    ages: Mutex<BTreeMap<u64, Age>>,
    keeps: Mutex<Vec<u64>>,
    blocked: Mutex<Vec<u64>>,
    written: Mutex<Vec<u64>>,
}

struct Owner(Weak<Notes>);

struct Held(Arc<Notes>);

impl PageOwner for Owner {
    type Held = Held;

    fn get(&self) -> Option<Held> {
        self.0.upgrade().map(Held)
    }
}

impl HeldOwner for Held {
    fn age(&self, victims: &[Victim], used: Used, ages: &mut [Age]) {
        for (victim, age) in victims.iter().zip(ages) {
            *age = match (self.0.ages.lock().remove(&victim.index), used) {
                (None, _) | (Some(Age::Young), Used::Taken) => Age::Old,
                (Some(age), _) => age,
            };
        }
    }

    fn block(&self, victims: &[Victim]) {
        self.0.blocked.lock().extend(victims.iter().map(|victim| victim.index));
    }

    fn write(&self, victims: &[Victim], written: &mut [Written]) {
        for (victim, written) in victims.iter().zip(written) {
            assert!(self.0.blocked.lock().contains(&victim.index), "nothing is written that was not blocked");
            *written =
                if self.0.keeps.lock().contains(&victim.index) { Written::Kept } else { Written::Gone };
            self.0.written.lock().push(victim.index);
        }
    }
}

struct NoThreads;

impl LogicalProcessors for NoThreads {
    fn oldest_entry(&self, _eid: u64) -> Option<u64> {
        None
    }

    fn set_epoch(&self, _eid: u64, _epoch: u64) {}
}

type Hw = Processor<ArenaBytes, NoThreads>;
type TestEpc = Epc<TestPlatform, Owner>;

fn hw(pages: u32) -> Hw {
    let fuses = FuseKeys::generate(&mut |out| out.fill(1));
    Processor::new(Profile::default(), fuses, pages, ArenaBytes::new(pages), NoThreads, &mut |out| {
        out.fill(2)
    })
}

fn section(node: usize, first: u32, pages: u32) -> SectionConfig {
    SectionConfig { node, first: EpcPage(first), pages }
}

fn epc(pages: u32) -> (TestEpc, Arc<TestPlatform>, Arc<Notes>) {
    let platform = Arc::new(TestPlatform::default());
    let epc = Epc::new(&[section(0, 0, pages)], Policy::linux(), Arc::clone(&platform));
    assert_eq!(epc.sanitize(&hw(pages)), 0);
    (epc, platform, Arc::default())
}

/// Allocates `pages` pages and makes them reclaimable, with their order as index.
fn fill(epc: &TestEpc, notes: &Arc<Notes>, pages: u64) -> Vec<EpcPage> {
    let owner = epc.add_owner(Owner(Arc::downgrade(notes)));
    (0..pages)
        .map(|index| {
            let page = epc.alloc(Reclaim::Forbidden).expect("there are enough");
            epc.mark_reclaimable(page, owner, index);
            page
        })
        .collect()
}

#[test]
fn nothing_is_free_before_sanitising() {
    let epc = TestEpc::new(&[section(0, 0, 8)], Policy::linux(), Arc::default());
    assert_eq!(epc.state(EpcPage(3)), PageState::Dirty);
    assert_eq!(epc.alloc(Reclaim::Allowed), Err(AllocError::Exhausted));
    epc.check_invariants();
}

#[test]
fn sanitising_removes_what_an_earlier_life_left() {
    let hw = hw(8);
    let mut secs = Page::ZERO;
    secs.0[0..8].copy_from_slice(&0x10000u64.to_le_bytes());
    secs.0[16..20].copy_from_slice(&1u32.to_le_bytes());
    secs.0[48] = 4;
    secs.0[56] = 3;
    // The SECS is met before its child, and so refuses in the first round.
    hw.ecreate(EpcPage(0), &secs, &Secinfo::default()).expect("a fine SECS");
    let secinfo = Secinfo { flags: usgx_isa::layout::PageType::Reg.into(), ..Secinfo::default() };
    hw.eadd(EpcPage(5), EpcPage(0), LinAddr(0x1000), &Page::ZERO, &secinfo).expect("a fine page");
    let epc = TestEpc::new(&[section(0, 0, 8)], Policy::linux(), Arc::default());
    assert_eq!(epc.sanitize(&hw), 0);
    assert_eq!(epc.free_pages(), 8);
    epc.check_invariants();
}

#[test]
fn pages_that_refuse_are_never_used() {
    // A processor that knows only four of the six pages.
    let epc = TestEpc::new(&[section(0, 0, 6)], Policy::linux(), Arc::default());
    assert_eq!(epc.sanitize(&hw(4)), 2);
    assert_eq!((epc.free_pages(), epc.stats().leaked), (4, 2));
    assert_eq!(epc.state(EpcPage(5)), PageState::Leaked);
    epc.check_invariants();
}

#[test]
fn freed_pages_rest_as_long_as_possible() {
    let (epc, ..) = epc(4);
    let first = epc.alloc(Reclaim::Forbidden).expect("free");
    epc.free(first);
    let others: Vec<_> = (0..3).map(|_| epc.alloc(Reclaim::Forbidden).expect("free")).collect();
    assert!(!others.contains(&first));
    assert_eq!(epc.alloc(Reclaim::Forbidden), Ok(first));
    assert_eq!(epc.stats().peak_used, 4);
}

#[test]
fn the_near_node_comes_first_then_the_others_in_turn() {
    let platform = Arc::new(TestPlatform::default());
    let epc = TestEpc::new(&[section(3, 0, 2), section(1, 4, 2)], Policy::linux(), Arc::clone(&platform));
    assert_eq!(epc.sanitize(&hw(8)), 0);
    assert_eq!((epc.total_pages(), epc.state(EpcPage(2))), (4, PageState::Outside));
    platform.node.store(2, SeqCst);
    let pages: Vec<_> = (0..4).map(|_| epc.alloc(Reclaim::Forbidden).expect("free").0).collect();
    assert_eq!(pages, [0, 1, 4, 5], "node 2 has none, 3 is the next, then round to 1");
    epc.free(EpcPage(4));
    epc.free(EpcPage(0));
    platform.node.store(0, SeqCst);
    assert_eq!(epc.alloc(Reclaim::Forbidden), Ok(EpcPage(4)));
    epc.check_invariants();
}

#[test]
fn policies_of_allocation() {
    let (epc, platform, notes) = epc(40);
    let unlisted: Vec<_> = (0..40).map(|_| epc.alloc(Reclaim::Allowed).expect("free")).collect();
    assert_eq!(epc.alloc(Reclaim::Allowed), Err(AllocError::Exhausted));
    assert_eq!(platform.wakes.load(SeqCst), 0, "ksgxd could do nothing about it");
    let owner = epc.add_owner(Owner(Arc::downgrade(&notes)));
    for (index, page) in (0..).zip(&unlisted) {
        epc.mark_reclaimable(*page, owner, index);
    }
    assert_eq!(epc.alloc(Reclaim::Forbidden), Err(AllocError::Busy));
    assert_eq!(platform.wakes.load(SeqCst), 1);
    platform.signal.store(true, SeqCst);
    assert_eq!(epc.alloc(Reclaim::Allowed), Err(AllocError::Interrupted));
    assert_eq!(notes.written.lock().len(), 0);
    platform.signal.store(false, SeqCst);
    assert!(epc.alloc(Reclaim::Allowed).is_ok());
    assert_eq!(*notes.written.lock(), (0..BATCH as u64).collect::<Vec<_>>(), "the oldest");
    assert_eq!((epc.stats().direct, epc.free_pages()), (1, BATCH - 1));
    epc.check_invariants();
}

#[test]
fn ksgxd_works_from_below_the_low_mark_to_the_high_one() {
    let (epc, platform, notes) = epc(200);
    fill(&epc, &notes, 168);
    assert_eq!((epc.free_pages(), platform.wakes.load(SeqCst)), (32, 0));
    assert!(!epc.is_low());
    fill(&epc, &notes, 1);
    assert_eq!((epc.free_pages(), platform.wakes.load(SeqCst)), (31, 1));
    let mut passes = 0;
    while epc.should_reclaim() {
        assert_eq!(epc.reclaim_pass(), BATCH);
        passes += 1;
    }
    assert_eq!((passes, epc.free_pages()), (3, 79));
    fill(&epc, &notes, 47);
    assert_eq!(platform.wakes.load(SeqCst), 1, "32 are enough");
    epc.check_invariants();
}

#[test]
fn used_pages_get_a_second_chance_in_their_order() {
    let (epc, _, notes) = epc(40);
    fill(&epc, &notes, 20);
    notes.ages.lock().extend([(2, Age::Young), (5, Age::Young), (3, Age::Refused)]);
    assert_eq!(epc.reclaim_pass(), 13);
    assert_eq!(epc.reclaim_pass(), 7);
    let second = notes.written.lock().split_off(13);
    assert_eq!(second, [2, 3, 5, 16, 17, 18, 19]);
    assert_eq!((epc.stats().scanned, epc.stats().passes, epc.stats().reclaimed), (23, 2, 20));
    epc.check_invariants();
}

#[test]
fn a_round_takes_used_pages_too_and_looks_at_each_once() {
    let (epc, _, notes) = epc(60);
    fill(&epc, &notes, 3 * BATCH as u64);
    notes.ages.lock().extend([(2, Age::Young), (40, Age::Young), (3, Age::Refused)]);
    assert_eq!(epc.reclaim_round(), 47);
    assert_eq!(*notes.written.lock(), (0..48).filter(|index| *index != 3).collect::<Vec<_>>());
    assert_eq!((epc.reclaim_round(), epc.stats().scanned), (1, 49));
    assert_eq!(epc.reclaim_round(), 0);
    epc.check_invariants();
}

#[test]
fn pages_of_many_owners_are_asked_about_by_owner() {
    let (epc, ..) = epc(40);
    let notes: [Arc<Notes>; 3] = Default::default();
    let owners = notes.each_ref().map(|notes| epc.add_owner(Owner(Arc::downgrade(notes))));
    // The owner of the second is on its way out.
    let dead = epc.add_owner(Owner(Weak::new()));
    for (index, owner) in [2, 3, 0, 1, 1, 2, 0, 2].into_iter().enumerate() {
        let page = epc.alloc(Reclaim::Forbidden).expect("free");
        epc.mark_reclaimable(page, owners.get(owner).copied().unwrap_or(dead), 10 - index as u64);
    }
    notes[0].ages.lock().insert(4, Age::Young);
    notes[1].ages.lock().extend([(6, Age::Young), (7, Age::Young)]);
    assert_eq!(epc.reclaim_pass(), 4);
    let written = notes.each_ref().map(|notes| notes.written.lock().clone());
    assert_eq!(written, [vec![8], vec![], vec![3, 5, 10]]);
    assert_eq!(notes.each_ref().map(Arc::strong_count), [1; 3], "the pass holds nobody any more");
    assert_eq!(epc.reclaim_pass(), 3);
    assert_eq!(*notes[1].written.lock(), [6, 7]);
    owners.into_iter().for_each(|owner| epc.remove_owner(owner));
    epc.remove_owner(dead);
    epc.check_invariants();
}

#[test]
fn kept_pages_stay_their_owners() {
    let (epc, _, notes) = epc(40);
    let pages = fill(&epc, &notes, 5);
    notes.keeps.lock().extend([1, 4]);
    assert_eq!(epc.reclaim_pass(), 3);
    assert_eq!((epc.state(pages[1]), epc.state(pages[2])), (PageState::Active, PageState::Free));
    assert_eq!(epc.owner(pages[4]).map(|(_, index)| index), Some(4));
    epc.check_invariants();
}

#[test]
fn allocations_end_when_every_page_is_refused() {
    let (epc, _, notes) = epc(20);
    fill(&epc, &notes, 20);
    let mut result = Ok(EpcPage(0));
    for _ in 0..10 {
        notes.ages.lock().extend((0..20).map(|index| (index, Age::Refused)));
        epc.reclaim_pass();
        result = epc.alloc(Reclaim::Forbidden);
    }
    assert_eq!(result, Err(AllocError::Exhausted));
    notes.ages.lock().clear();
    assert_eq!(epc.reclaim_pass(), BATCH);
    assert!(epc.alloc(Reclaim::Forbidden).is_ok());
}

#[test]
fn pages_can_be_taken_back_but_not_from_a_pass() {
    let (epc, _, notes) = epc(40);
    let pages = fill(&epc, &notes, 3);
    assert_eq!(epc.unmark_reclaimable(pages[1]), Ok(()));
    assert_eq!(epc.unmark_reclaimable(pages[1]), Ok(()), "again is no harm");
    epc.free(pages[1]);

    /// Tries to take its page back while it is aged.
    #[derive(Clone)]
    struct Meddler(Weak<Epc<TestPlatform, Self>>, EpcPage);
    impl PageOwner for Meddler {
        type Held = Self;
        fn get(&self) -> Option<Self> {
            Some(self.clone())
        }
    }
    impl HeldOwner for Meddler {
        fn age(&self, _: &[Victim], _: Used, ages: &mut [Age]) {
            let epc = self.0.upgrade().expect("the pass runs on it");
            assert_eq!(epc.unmark_reclaimable(self.1), Err(InReclaim));
            ages.fill(Age::Young);
        }
        fn block(&self, _: &[Victim]) {
            unreachable!("nothing is old")
        }
        fn write(&self, _: &[Victim], _: &mut [Written]) {
            unreachable!("nothing is old")
        }
    }
    let epc = Arc::new(Epc::new(&[section(0, 0, 2)], Policy::linux(), Arc::new(TestPlatform::default())));
    assert_eq!(epc.sanitize(&hw(2)), 0);
    let page = epc.alloc(Reclaim::Forbidden).expect("free");
    epc.mark_reclaimable(page, epc.add_owner(Meddler(Arc::downgrade(&epc), page)), 0);
    assert_eq!(epc.reclaim_pass(), 0);
    assert_eq!(epc.unmark_reclaimable(page), Ok(()));
    epc.check_invariants();
}

#[test]
fn a_page_that_its_owner_takes_from_a_pass_may_be_freed_before_the_pass_ends() {
    /// Takes the pages that it has written, and frees the first one before the pass is through.
    #[derive(Clone)]
    struct Hasty(Weak<Epc<TestPlatform, Self>>);
    impl PageOwner for Hasty {
        type Held = Self;
        fn get(&self) -> Option<Self> {
            Some(self.clone())
        }
    }
    impl HeldOwner for Hasty {
        fn age(&self, _: &[Victim], _: Used, ages: &mut [Age]) {
            ages.fill(Age::Old);
        }
        fn block(&self, _: &[Victim]) {}
        fn write(&self, victims: &[Victim], written: &mut [Written]) {
            let epc = self.0.upgrade().expect("the pass runs on it");
            victims.iter().for_each(|victim| epc.take_written(victim.page));
            epc.free(victims[0].page);
            assert_eq!(epc.alloc(Reclaim::Forbidden), Ok(victims[0].page), "others may have it");
            written.fill(Written::Taken);
        }
    }
    let epc = Arc::new(Epc::new(&[section(0, 0, 2)], Policy::linux(), Arc::new(TestPlatform::default())));
    assert_eq!(epc.sanitize(&hw(2)), 0);
    let owner = epc.add_owner(Hasty(Arc::downgrade(&epc)));
    let pages = [0, 1].map(|index| {
        let page = epc.alloc(Reclaim::Forbidden).expect("free");
        epc.mark_reclaimable(page, owner, index);
        page
    });
    assert_eq!(epc.reclaim_pass(), 0, "they are in use");
    assert_eq!(pages.map(|page| epc.state(page)), [PageState::Owned; 2]);
    assert_eq!((epc.can_reclaim(), epc.free_pages()), (false, 0));
    epc.check_invariants();
}

#[test]
fn pages_of_an_owner_that_is_going_are_forgotten() {
    let (epc, _, notes) = epc(40);
    let pages = fill(&epc, &notes, 3);
    drop(notes);
    assert_eq!(epc.reclaim_pass(), 0);
    for page in pages {
        assert_eq!(epc.state(page), PageState::Owned);
        assert_eq!(epc.unmark_reclaimable(page), Ok(()), "its destruction takes it");
        epc.free(page);
    }
    epc.check_invariants();
}

#[test]
#[should_panic(expected = "overlap")]
fn sections_that_overlap_are_refused() {
    let _ = TestEpc::new(&[section(0, 0, 4), section(0, 3, 4)], Policy::linux(), Arc::default());
}

#[test]
#[should_panic(expected = "an EPC page that becomes Free")]
fn a_page_is_not_freed_twice() {
    let (epc, ..) = epc(4);
    let page = epc.alloc(Reclaim::Forbidden).expect("free");
    epc.free(page);
    epc.free(page);
}

#[test]
fn raw_pages_are_counted_and_met_by_no_pass() {
    let (epc, _, notes) = epc(8);
    let pages = fill(&epc, &notes, 2);
    let raw = epc.alloc(Reclaim::Forbidden).expect("free");
    epc.mark_raw(raw);
    assert_eq!((epc.stats().used, epc.stats().raw), (3, 1));
    assert_eq!(epc.memory_failure(raw), Ok(Poisoned::InUse));
    epc.check_invariants();
    assert_eq!(epc.reclaim_pass(), pages.len());
    assert_eq!((epc.state(raw), epc.can_reclaim()), (PageState::Raw, false));
    epc.free_raw(raw);
    assert_eq!((epc.state(raw), epc.stats().used, epc.stats().raw), (PageState::Poisoned, 0, 0));
    epc.check_invariants();
}

#[test]
#[should_panic(expected = "an EPC page that becomes Active")]
fn a_raw_page_does_not_become_reclaimable() {
    let (epc, _, notes) = epc(4);
    let page = epc.alloc(Reclaim::Forbidden).expect("free");
    epc.mark_raw(page);
    epc.mark_reclaimable(page, epc.add_owner(Owner(Arc::downgrade(&notes))), 0);
}

#[test]
#[should_panic(expected = "an EPC page that becomes Free")]
fn a_raw_page_is_not_freed_as_an_enclaves() {
    let (epc, ..) = epc(4);
    let page = epc.alloc(Reclaim::Forbidden).expect("free");
    epc.mark_raw(page);
    epc.free(page);
}

#[test]
fn a_free_page_that_breaks_is_never_handed_out() {
    let (epc, ..) = epc(4);
    assert_eq!(epc.memory_failure(EpcPage(2)), Ok(Poisoned::Retired));
    assert_eq!(epc.memory_failure(EpcPage(2)), Ok(Poisoned::Known));
    assert_eq!(epc.memory_failure(EpcPage(4)), Err(NotEpc));
    assert_eq!((epc.free_pages(), epc.stats().poisoned), (3, 1), "it does not count as free");
    let pages: Vec<_> = (0..3).map(|_| epc.alloc(Reclaim::Forbidden).expect("free").0).collect();
    assert_eq!(pages, [0, 1, 3]);
    assert_eq!(epc.alloc(Reclaim::Allowed), Err(AllocError::Exhausted));
    epc.check_invariants();
}

#[test]
fn a_page_in_use_that_breaks_stays_with_its_owner_and_is_retired_after() {
    let (epc, _, notes) = epc(8);
    let pages = fill(&epc, &notes, 2);
    let owned = epc.alloc(Reclaim::Forbidden).expect("free");
    assert_eq!(epc.memory_failure(pages[0]), Ok(Poisoned::InUse));
    assert_eq!(epc.memory_failure(owned), Ok(Poisoned::InUse));
    epc.mark_reclaimable(owned, epc.add_owner(Owner(Arc::downgrade(&notes))), 9);
    assert_eq!(epc.reclaim_pass(), 1, "nobody reads the broken ones");
    assert_eq!(*notes.written.lock(), [1]);
    epc.check_invariants();
    for page in [pages[0], owned] {
        assert_eq!((epc.state(page), epc.unmark_reclaimable(page)), (PageState::Owned, Ok(())));
        epc.free(page);
        assert_eq!(epc.state(page), PageState::Poisoned);
    }
    assert_eq!((epc.free_pages(), epc.stats().used, epc.stats().poisoned), (6, 0, 2));
    epc.check_invariants();
}

#[test]
fn a_page_that_breaks_in_reclaim_is_left_to_the_pass() {
    /// Hears of broken pages while it ages them; gives the second and keeps the first.
    #[derive(Clone)]
    struct Unlucky(Weak<Epc<TestPlatform, Self>>);
    impl PageOwner for Unlucky {
        type Held = Self;
        fn get(&self) -> Option<Self> {
            Some(self.clone())
        }
    }
    impl HeldOwner for Unlucky {
        fn age(&self, victims: &[Victim], _: Used, ages: &mut [Age]) {
            let epc = self.0.upgrade().expect("the pass runs on it");
            for victim in victims {
                assert_eq!(epc.memory_failure(victim.page), Ok(Poisoned::InUse));
            }
            ages.fill(Age::Old);
            ages[0] = Age::Young;
        }
        fn block(&self, _: &[Victim]) {}
        fn write(&self, _: &[Victim], written: &mut [Written]) {
            written.fill(Written::Gone);
        }
    }
    let epc = Arc::new(Epc::new(&[section(0, 0, 2)], Policy::linux(), Arc::new(TestPlatform::default())));
    assert_eq!(epc.sanitize(&hw(2)), 0);
    let owner = epc.add_owner(Unlucky(Arc::downgrade(&epc)));
    let pages = [0, 1].map(|index| {
        let page = epc.alloc(Reclaim::Forbidden).expect("free");
        epc.mark_reclaimable(page, owner, index);
        page
    });
    assert_eq!(epc.reclaim_pass(), 1);
    assert_eq!(pages.map(|page| epc.state(page)), [PageState::Owned, PageState::Poisoned]);
    assert_eq!((epc.can_reclaim(), epc.free_pages()), (false, 0));
    epc.free(pages[0]);
    assert_eq!(epc.state(pages[0]), PageState::Poisoned);
    epc.check_invariants();
}

#[test]
fn a_page_that_breaks_before_sanitising_is_not_touched() {
    let epc = TestEpc::new(&[section(0, 0, 6)], Policy::linux(), Arc::default());
    assert_eq!(epc.memory_failure(EpcPage(5)), Ok(Poisoned::InUse));
    // This processor would refuse it.
    assert_eq!(epc.sanitize(&hw(5)), 0);
    assert_eq!((epc.free_pages(), epc.state(EpcPage(5))), (5, PageState::Poisoned));
    epc.check_invariants();
}

#[test]
fn who_comes_early_waits_for_a_clean_page() {
    let epc = TestEpc::new(&[section(0, 0, 4)], Policy::default(), Arc::default());
    assert_eq!(epc.alloc(Reclaim::Forbidden), Err(AllocError::Busy));
    std::thread::scope(|scope| {
        let early = scope.spawn(|| epc.alloc(Reclaim::Allowed));
        assert_eq!(epc.sanitize(&hw(4)), 0);
        assert!(early.join().expect("it does not panic").is_ok());
    });
    epc.check_invariants();
}

#[test]
fn nodes_have_sizes() {
    let sections = [section(3, 0, 2), section(1, 4, 2), section(3, 8, 5)];
    let epc = TestEpc::new(&sections, Policy::linux(), Arc::default());
    assert_eq!(epc.sanitize(&hw(16)), 0);
    assert_eq!(epc.alloc(Reclaim::Forbidden), Ok(EpcPage(4)));
    let clean = NodeStats { node: 3, total: 7, free: 7, freed: 7, ..NodeStats::default() };
    let used = NodeStats { node: 1, total: 2, free: 1, hits: 1, freed: 2, ..NodeStats::default() };
    assert_eq!(epc.node_stats(), [used, clean]);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "lock order: lru must not be taken with these held: lru")]
fn an_owner_must_not_ask_the_manager_while_the_list_is_locked() {
    #[derive(Clone)]
    struct Curious(Weak<Epc<TestPlatform, Self>>);
    impl PageOwner for Curious {
        type Held = Self;
        fn get(&self) -> Option<Self> {
            self.0.upgrade().filter(|epc| epc.can_reclaim()).map(|_| self.clone())
        }
    }
    impl HeldOwner for Curious {
        fn age(&self, _: &[Victim], _: Used, _: &mut [Age]) {}
        fn block(&self, _: &[Victim]) {}
        fn write(&self, _: &[Victim], _: &mut [Written]) {}
    }
    let epc = Arc::new(Epc::new(&[section(0, 0, 2)], Policy::linux(), Arc::new(TestPlatform::default())));
    assert_eq!(epc.sanitize(&hw(2)), 0);
    let page = epc.alloc(Reclaim::Forbidden).expect("free");
    epc.mark_reclaimable(page, epc.add_owner(Curious(Arc::downgrade(&epc))), 0);
    epc.reclaim_pass();
}
