//! Threads that fault, change, remove, reclaim and release the same few pages, in thousands of orders.
//!
//! The EPC has a few pages more than one page of each kind needs, so nearly every step must wait for another
//! thread's. `shuttle` runs one thread at a time and decides at every lock, wait and yield which goes on: at random,
//! or by priorities that change a few times (PCT), which finds what needs an unlikely order. A wait that nobody ends
//! is reported as a deadlock, with the schedule that leads there.
//!
//! `USGX_SCHEDULES` says how many schedules each test tries in place of [`USUAL`], for a more patient run by hand.

#![allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::sync::{Arc, Mutex, OnceLock};

use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::{AtomicBool, Ordering::SeqCst};
use shuttle::thread::ThreadId;
use shuttle::{Config, Runner, thread};
use usgx_driver::{Behaviour, Enclave, Errno, FaultOutcome, Platform, Prot};
use usgx_testkit::{
    Call, Image, Profile, SchedulePlatform, Sgx2Result, SimCaller, SimMachineOn, SystemOn, Touch,
};

type System = SystemOn<SchedulePlatform>;
type TestEnclave = Enclave<SimMachineOn<SchedulePlatform>>;

const BASE: u64 = 0x7000_0000_0000;
const OTHER: u64 = 0x7100_0000_0000;
const THIRD: u64 = 0x7200_0000_0000;
const RW: Prot = Prot::R.union(Prot::W);
const TCS: u64 = 1;
const TRIM: u64 = 4;
/// Data pages of an enclave.
const PAGES: u64 = 4;
/// What one enclave cannot do without: SECS, VA page, and the three pages that EACCEPT needs at once: none of them
/// may have to leave for another to come.
const NEEDED: u32 = 5;

/// Schedules that one run tries; there are sixteen runs.
const USUAL: usize = 1000;

fn schedules() -> usize {
    std::env::var("USGX_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(USUAL)
}

fn addr(base: u64, page: u64) -> u64 {
    base + page * 4096
}

fn image(base: u64) -> Image {
    Image::data(base, PAGES)
}

/// Builds an enclave. Signing takes longer than a whole schedule, and the signature does not depend on the base.
fn complete(enclave: &TestEnclave, caller: &SimCaller, base: u64) -> Result<(), Errno> {
    static SIGSTRUCT: OnceLock<Vec<u8>> = OnceLock::new();
    let image = image(base);
    image.create(enclave, caller)?;
    image.add_pages(enclave, caller)?;
    Call { enclave, caller }.init(SIGSTRUCT.get_or_init(|| image.sigstruct()))
}

fn build(system: &System, base: u64) -> TestEnclave {
    let enclave = system.open();
    complete(&enclave, &SimCaller::new(), base).unwrap();
    enclave
}

/// Repeats an ioctl from where it stopped, as programs for Linux do.
fn finish(mut call: impl FnMut(u64) -> Sgx2Result, pages: u64) -> Result<(), Errno> {
    let mut done = 0;
    loop {
        let result = call(done);
        done += result.count / 4096;
        match result.outcome {
            Ok(()) => {
                assert_eq!(done, pages);
                return Ok(());
            }
            Err(Errno::EAGAIN | Errno::EBUSY) => thread::yield_now(),
            Err(errno) => return Err(errno),
        }
    }
}

/// What a thread does to pages 3 and 4, and what is in them then.
type Change = fn(&System, &TestEnclave) -> [u64; 2];

/// Removes two pages and gets new ones in their place, with data of its own in between.
fn changer(system: &System, enclave: &TestEnclave) -> [u64; 2] {
    let caller = SimCaller::new();
    let call = Call { enclave, caller: &caller };
    let at = |page| addr(BASE, page);
    let (first, count) = (3, 2);
    let range = |done: u64| ((first + done) * 4096, (count - done) * 4096);
    assert_eq!(finish(|done| call.modify_types(range(done).0, range(done).1, TRIM), count), Ok(()));
    for page in first..first + count {
        assert_eq!(system.accept(enclave, at(1), at(page), 0x410), Ok(()));
    }
    assert_eq!(finish(|done| call.remove_pages(range(done).0, range(done).1), count), Ok(()));
    for page in first..first + count {
        assert_eq!(system.accept(enclave, at(1), at(page), 0x20b), Ok(()));
        assert_eq!(system.write(enclave, at(page), page * 100), Touch::Done(0));
    }
    for page in first..first + count {
        assert_eq!(system.read(enclave, at(page)), Touch::Done(page * 100));
    }
    assert_eq!(finish(|_| call.restrict(4 * 4096, 4096, 1), 1), Ok(()));
    assert_eq!(system.accept(enclave, at(1), at(4), 0x221), Ok(()));
    assert_eq!(system.write(enclave, at(4), 1), Touch::Refused);
    [300, 400]
}

/// Makes a page a TCS, which nobody may reclaim or use on the way, and then an ordinary page again.
fn promoter(system: &System, enclave: &TestEnclave) -> [u64; 2] {
    let caller = SimCaller::new();
    let call = Call { enclave, caller: &caller };
    let (offset, page) = (3 * 4096, addr(BASE, 3));
    let becomes = |kind| finish(|_| call.modify_types(offset, 4096, kind), 1);
    let accept = |flags| assert_eq!(system.accept(enclave, addr(BASE, 1), page, flags), Ok(()));
    // STATE, OSSA, NSSA, limits.
    for (at, old, value) in [(0, 3, 0), (16, 0, 0x1000), (24, 0, 1 << 32), (64, 0, u64::MAX)] {
        assert_eq!(system.write(enclave, page + at, value), Touch::Done(old));
    }
    assert_eq!(becomes(TCS), Ok(()));
    accept(0x110);
    assert_eq!(system.read(enclave, page), Touch::Refused);
    assert_eq!(becomes(TRIM), Ok(()));
    accept(0x410);
    assert_eq!(finish(|_| call.remove_pages(offset, 4096), 1), Ok(()));
    accept(0x20b);
    assert_eq!(system.write(enclave, page, 300), Touch::Done(0));
    [300, 4]
}

/// Counts up in a page that nobody else changes.
fn counter(system: &System, enclave: &TestEnclave, base: u64) {
    for value in 0..3 {
        let old = if value == 0 { 2 } else { 10 + value - 1 };
        assert_eq!(system.write(enclave, addr(base, 2), 10 + value), Touch::Done(old));
    }
}

/// Touches the pages that `changer` is about: whatever it sees was there at some moment.
fn intruder(system: &System, enclave: &TestEnclave) {
    for page in [3, 4, 3] {
        match system.read(enclave, addr(BASE, page)) {
            Touch::Done(value) => assert!([page, 0, page * 100].contains(&value), "{value} in page {page}"),
            Touch::Refused => {}
            other => panic!("page {page}: {other:?}"),
        }
        assert_ne!(enclave.fault(addr(BASE, page), RW), FaultOutcome::Sigbus);
    }
}

/// A process that builds an enclave of its own, shares another's pages, and is killed at any moment.
fn doomed(system: &System, shared: &TestEnclave, caller: &SimCaller) {
    let own = system.open();
    let built = complete(&own, caller, THIRD);
    assert!(matches!(built, Ok(()) | Err(Errno::ERESTARTSYS)), "{built:?}");
    for round in 0..4 {
        // Its last fault may find the signal; none finds the page gone.
        assert_ne!(shared.fault(addr(BASE, 1 + round), RW), FaultOutcome::Sigbus);
        if system.platform.signal_pending() {
            break;
        }
    }
}

/// Kills a thread, sooner or later.
fn killer(system: &System, thread: ThreadId, caller: &SimCaller) {
    for _ in 0..shuttle::rand::thread_rng().gen_range(0..60) {
        thread::yield_now();
    }
    system.platform.kill(thread);
    caller.set_signal_after(Some(0));
}

/// `ksgxd`, though not for ever: an EPC this small is always short.
fn reclaimer(system: &System, passes: usize) {
    for _ in 0..passes {
        if system.platform.wait_for_work() {
            system.driver.ksgxd_pass();
        }
    }
    while system.platform.wait_for_work() {
        system.driver.ksgxd_pass();
    }
}

/// A point at which another thread may go on.
fn step() {
    AtomicBool::new(false).load(SeqCst);
}

/// All of it on one enclave, beside a second one that lives and dies meanwhile.
fn everything(spare: u32, behaviour: Behaviour, change: Change) {
    let mut system = System::with_behaviour(NEEDED + spare + 2, Profile::default(), behaviour);
    system.plays_ksgxd = false;
    let system = Arc::new(system);
    let enclave = build(&system, BASE);
    let eid = enclave.with_pages(|secs, _| system.hw.enclave(secs).unwrap().eid);
    if let Ok(eid) = eid {
        system.threads.enter(eid, 1);
    }
    let other = build(&system, OTHER);
    system.refusals.before_evicting(|_| step());

    let left = Arc::new(Mutex::new([3, 4]));
    let result = Arc::clone(&left);
    let spawn = |work: Box<dyn FnOnce(&System) + Send>| {
        let system = Arc::clone(&system);
        thread::spawn(move || work(&system))
    };
    let ksgxd = spawn(Box::new(|system| reclaimer(system, 4)));
    let [one, two, three] = [(); 3].map(|()| enclave.clone());
    let threads = [
        spawn(Box::new(move |system| *result.lock().unwrap() = change(system, &one))),
        spawn(Box::new(move |system| counter(system, &two, BASE))),
        spawn(Box::new(move |system| intruder(system, &three))),
        spawn(Box::new(move |system| {
            counter(system, &other, OTHER);
            drop(other);
        })),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    system.platform.stop();
    ksgxd.join().unwrap();

    system.check_invariants();
    assert_eq!(system.read(&enclave, addr(BASE, 2)), Touch::Done(12));
    for (page, value) in (3..).zip(*left.lock().unwrap()) {
        assert_eq!(system.read(&enclave, addr(BASE, page)), Touch::Done(value));
    }
    system.check_invariants();
    drop(enclave);
    assert_eq!(system.driver.free_pages(), system.driver.epc_pages(), "everything is given back");
    assert_eq!(system.spaces.nr_mapped(), 0);
    system.check_invariants();
}

/// An operator who shrinks the EPC while one enclave works, another ends, and a process that shares pages is killed.
fn with_a_kill(spare: u32, behaviour: Behaviour) {
    // What the third enclave needs while the others need theirs: its SECS, VA page, and a page to add.
    let mut system = System::with_behaviour(NEEDED + spare + 2 + 3, Profile::default(), behaviour);
    system.plays_ksgxd = false;
    let system = Arc::new(system);
    let enclave = build(&system, BASE);
    let eid = enclave.with_pages(|secs, _| system.hw.enclave(secs).unwrap().eid);
    if let Ok(eid) = eid {
        system.threads.enter(eid, 1);
    }
    let other = build(&system, OTHER);
    system.refusals.before_evicting(|_| step());

    let spawn = |work: Box<dyn FnOnce(&System) + Send>| {
        let system = Arc::clone(&system);
        thread::spawn(move || work(&system))
    };
    let ksgxd = spawn(Box::new(|system| reclaimer(system, 4)));
    let [one, two] = [(); 2].map(|()| enclave.clone());
    let caller = Arc::new(SimCaller::new());
    let victims = Arc::clone(&caller);
    let victim = spawn(Box::new(move |system| doomed(system, &two, &victims)));
    let id = victim.thread().id();
    let threads = [
        victim,
        spawn(Box::new(move |system| killer(system, id, &caller))),
        spawn(Box::new(move |system| counter(system, &one, BASE))),
        spawn(Box::new(move |system| {
            counter(system, &other, OTHER);
            drop(other);
        })),
        spawn(Box::new(|system| {
            system.driver.shrink();
        })),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    system.platform.stop();
    ksgxd.join().unwrap();

    system.check_invariants();
    for page in 1..=PAGES {
        let value = if page == 2 { 12 } else { page };
        assert_eq!(system.read(&enclave, addr(BASE, page)), Touch::Done(value));
    }
    drop(enclave);
    system.check_invariants();
    assert_eq!(system.driver.free_pages(), system.driver.epc_pages(), "everything is given back");
}

fn run(scheduler: impl Scheduler + 'static, test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    // The processor model's cryptography wants more than the default.
    config.stack_size = 512 * 1024;
    Runner::new(scheduler, config).run(test);
}

#[test]
fn in_any_order() {
    for spare in 2..=4 {
        run(RandomScheduler::new(schedules()), move || everything(spare, Behaviour::default(), changer));
    }
}

#[test]
fn in_any_unlikely_order() {
    for spare in 2..=4 {
        run(PctScheduler::new(3, schedules()), move || everything(spare, Behaviour::default(), changer));
    }
}

#[test]
fn in_any_order_as_linux() {
    run(RandomScheduler::new(schedules()), || everything(3, Behaviour::linux(), changer));
}

#[test]
fn a_tcs_in_any_order() {
    for spare in 2..=3 {
        run(RandomScheduler::new(schedules()), move || everything(spare, Behaviour::default(), promoter));
        run(PctScheduler::new(3, schedules()), move || everything(spare, Behaviour::default(), promoter));
    }
    run(RandomScheduler::new(schedules()), || everything(3, Behaviour::linux(), promoter));
}

#[test]
fn in_any_order_with_a_kill() {
    for spare in [0, 2] {
        run(RandomScheduler::new(schedules()), move || with_a_kill(spare, Behaviour::default()));
    }
}

#[test]
fn in_any_unlikely_order_with_a_kill() {
    run(PctScheduler::new(3, schedules()), || with_a_kill(1, Behaviour::default()));
}

#[test]
fn in_any_order_with_a_kill_as_linux() {
    run(RandomScheduler::new(schedules()), || with_a_kill(2, Behaviour::linux()));
}
