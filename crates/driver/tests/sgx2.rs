//! The SGX2 ioctls: parameters, flows, and the errors on the way.

#![allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::time::Duration;

use usgx_driver::{Behaviour, Errno, FaultOutcome, PageKind, Prot, command};
use usgx_testkit::{Call, Image, Profile, Sgx2Result, SimCaller, SimMachine, System, Touch};

const BASE: u64 = 0x7000_0000_0000;
const TCS: u64 = 1;
const TRIM: u64 = 4;
const RW: Prot = Prot::R.union(Prot::W);

struct Fixture {
    system: System,
    caller: SimCaller,
    enclave: usgx_driver::Enclave<SimMachine>,
}

impl Fixture {
    fn new() -> Self {
        Self::with_behaviour(Behaviour::default())
    }

    fn with_behaviour(behaviour: Behaviour) -> Self {
        let system = System::with_behaviour(128, Profile::default(), behaviour);
        let enclave = system.build(&Image::data(BASE, 15));
        Self { system, caller: SimCaller::new(), enclave }
    }

    fn call(&self) -> Call<'_, SimMachine> {
        Call { enclave: &self.enclave, caller: &self.caller }
    }

    fn accept(&self, page: u64, flags: u64) {
        assert_eq!(self.system.accept(&self.enclave, BASE + 0x1000, BASE + page * 4096, flags), Ok(()));
    }

    /// The processor's number for the enclave.
    fn eid(&self) -> u64 {
        self.enclave.with_pages(|secs, _| self.system.hw.enclave(secs).unwrap().eid).unwrap()
    }
}

fn ok(count: u64) -> Sgx2Result {
    Sgx2Result { outcome: Ok(()), result: 0, count }
}

fn err(errno: Errno, result: u64, count: u64) -> Sgx2Result {
    Sgx2Result { outcome: Err(errno), result, count }
}

#[test]
fn they_need_sgx2_and_an_initialised_enclave() {
    let commands = [command::RESTRICT_PERMISSIONS, command::MODIFY_TYPES, command::REMOVE_PAGES];
    let system = System::with_profile(64, Profile::by_name("coffee-lake").unwrap());
    let (enclave, caller) = (system.build(&Image::data(BASE, 3)), SimCaller::new());
    for command in commands {
        assert_eq!(enclave.ioctl(command, 0xdead_0000, &caller), Err(Errno::ENODEV));
    }
    let system = System::with_epc_pages(64);
    let enclave = system.open();
    for command in commands {
        assert_eq!(enclave.ioctl(command, 0xdead_0000, &caller), Err(Errno::EINVAL));
    }
    let enclave = system.build(&Image::data(BASE, 3));
    for command in commands {
        assert_eq!(enclave.ioctl(command, 0xdead_0000, &caller), Err(Errno::EFAULT));
    }
}

#[test]
fn parameters_are_checked_and_nothing_is_copied_out() {
    let f = Fixture::new();
    let bad = |command, fields: &[u64]| {
        assert_eq!(f.call().raw(command, fields), Err(Errno::EINVAL), "{command:#x} {fields:x?}");
        for (i, field) in (0..).zip(fields) {
            assert_eq!(f.call().field(i), *field, "field {i} is as it was");
        }
    };
    for fields in [[0, 0, 1, 0, 0], [1, 0x1000, 1, 0, 0], [0, 0x100_0000, 1, 0, 0], [0, 0x1000, 8, 0, 0]] {
        bad(command::RESTRICT_PERMISSIONS, &fields);
    }
    for fields in [[0, 0x1000, 2, 0, 0], [0, 0x1000, 1, 1, 0], [0, 0x1000, 1, 0, 1]] {
        bad(command::RESTRICT_PERMISSIONS, &fields);
    }
    for fields in [[0, 0, 1, 0, 0], [0, 0x1000, 0x100, 0, 0], [0, 0x1000, 1, 1, 0], [0, 0x1000, 1, 0, 1]] {
        bad(command::MODIFY_TYPES, &fields);
    }
    for page_type in [0, 2, 3, 5, 6, 0xff] {
        bad(command::MODIFY_TYPES, &[0, 0x1000, page_type, 0, 0]);
    }
    bad(command::REMOVE_PAGES, &[0, 0, 0]);
    bad(command::REMOVE_PAGES, &[0, 0x1000, 1]);
}

#[test]
fn results_that_can_not_be_told_are_efault() {
    let f = Fixture::new();
    assert_eq!(f.call().restrict(0x2000, 0x1000, 1), ok(0x1000));
    f.caller.set_read_only(0x1_0000);
    assert_eq!(f.call().raw(command::RESTRICT_PERMISSIONS, &[0x3000, 0x1000, 1, 0, 0]), Err(Errno::EFAULT));
}

#[test]
fn permissions_are_restricted_when_the_enclave_accepts() {
    let f = Fixture::new();
    assert_eq!(f.system.write(&f.enclave, BASE + 0x5000, 7), Touch::Done(5));
    assert_eq!(f.call().restrict(0x5000, 0x2000, 1), ok(0x2000));
    f.accept(5, 0x221);
    assert_eq!(f.system.write(&f.enclave, BASE + 0x5000, 8), Touch::Refused);
    assert_eq!(f.system.read(&f.enclave, BASE + 0x5000), Touch::Done(7));
    assert_eq!(f.enclave.mmap(BASE + 0x5000, 4096, RW), Ok(()), "the maximum stays");
    assert_eq!(f.call().restrict(0, 0x1000, 1), err(Errno::EINVAL, 0, 0), "a TCS");
    assert_eq!(f.call().restrict(0xf000, 0x2000, 1), err(Errno::EFAULT, 0, 0x1000), "a missing page");
    f.system.check_invariants();
}

#[test]
fn a_code_of_the_processor_is_passed_on() {
    let f = Fixture::new();
    assert_eq!(f.enclave.fault(BASE + 0x10000, RW), FaultOutcome::Mapped);
    assert_eq!(f.call().restrict(0xf000, 0x2000, 1), err(Errno::EFAULT, 20, 0x1000), "it is pending");
    assert_eq!(f.call().modify_types(0x10000, 0x1000, TRIM), err(Errno::EFAULT, 20, 0));
}

#[test]
fn a_page_becomes_a_tcs() {
    let f = Fixture::new();
    assert_eq!(f.system.write(&f.enclave, BASE + 0x5000, 0), Touch::Done(5));
    assert!(f.system.spaces.mapped(f.enclave.id(), BASE + 0x5000).is_some());
    // A TCS image: OSSA, NSSA, limits.
    for (offset, value) in [(16, 0x1000), (24, 1 << 32), (64, u64::MAX)] {
        f.system.write(&f.enclave, BASE + 0x5000 + offset, value);
    }
    assert_eq!(f.call().modify_types(0x5000, 0x1000, TCS), ok(0x1000));
    assert_eq!(f.system.spaces.mapped(f.enclave.id(), BASE + 0x5000), None, "taken out of page tables");
    assert_eq!(f.enclave.fault(BASE + 0x5000, Prot::all()), FaultOutcome::Sigbus, "its maximum is RW now");
    assert_eq!(f.enclave.fault(BASE + 0x5000, RW), FaultOutcome::Mapped);
    assert_eq!(f.system.spaces.kind(f.enclave.id(), BASE + 0x5000), Some(PageKind::Tcs));
    f.accept(5, 0x110);
    assert_eq!(f.call().modify_types(0x5000, 0x1000, TCS), err(Errno::EINVAL, 0, 0), "it is one already");
    assert_eq!(f.call().modify_types(0x5000, 0x1000, TRIM), ok(0x1000));
    f.system.check_invariants();
}

#[test]
fn a_tcs_must_be_readable_and_writable() {
    let system = System::with_epc_pages(64);
    let mut image = Image::data(BASE, 3);
    image.push(4, 0x201, usgx_isa::Page::ZERO, false);
    let (enclave, caller) = (system.build(&image), SimCaller::new());
    let call = Call { enclave: &enclave, caller: &caller };
    assert_eq!(call.modify_types(0x4000, 0x1000, TCS), err(Errno::EPERM, 0, 0));
}

#[test]
fn a_page_that_cannot_become_a_tcs_stays_what_it_was() {
    let f = Fixture::new();
    // Pending, which the processor refuses; its maximum is still everything.
    assert_eq!(f.enclave.fault(BASE + 0x10000, RW), FaultOutcome::Mapped);
    assert_eq!(f.call().modify_types(0x10000, 0x1000, TCS), err(Errno::EFAULT, 20, 0));
    assert_eq!(f.enclave.mmap(BASE + 0x10000, 4096, Prot::all()), Ok(()), "protection is restored");
    f.accept(0x10, 0x20b);
    assert_eq!(f.system.write(&f.enclave, BASE + 0x10000, 7), Touch::Done(0));
    f.system.evict_all();
    assert_eq!(f.enclave.stats().resident, 0, "it can be reclaimed as before");
    assert_eq!(f.system.read(&f.enclave, BASE + 0x10000), Touch::Done(7));
    f.system.check_invariants();
}

#[test]
fn pages_are_trimmed_accepted_and_removed() {
    let f = Fixture::new();
    let free = f.system.driver.free_pages();
    assert_eq!(f.call().remove_pages(0x5000, 0x1000), err(Errno::EPERM, 0, 0), "not trimmed");
    assert_eq!(f.call().modify_types(0x5000, 0x2000, TRIM), ok(0x2000));
    assert_eq!(f.system.read(&f.enclave, BASE + 0x5000), Touch::Refused);
    assert_eq!(f.call().remove_pages(0x5000, 0x2000), err(Errno::EPERM, 0, 0), "not accepted");
    f.accept(5, 0x410);
    assert_eq!(f.system.read(&f.enclave, BASE + 0x5000), Touch::Refused);
    assert_eq!(f.call().remove_pages(0x5000, 0x2000), err(Errno::EPERM, 0, 0x1000), "the second is not");
    assert_eq!(
        f.call().modify_types(0x6000, 0x1000, TRIM),
        err(Errno::EINVAL, 0, 0),
        "it is trimmed already"
    );
    assert_eq!(f.call().modify_types(0x6000, 0x1000, TCS), err(Errno::EINVAL, 0, 0), "and stays so");
    f.accept(6, 0x410);
    assert_eq!(f.call().remove_pages(0x6000, 0x1000), ok(0x1000));
    assert_eq!(f.system.driver.free_pages(), free + 2);
    assert_eq!(f.call().remove_pages(0x6000, 0x1000), err(Errno::EFAULT, 0, 0), "it is gone");
    assert_eq!(f.system.spaces.mapped(f.enclave.id(), BASE + 0x5000), None);
    f.system.check_invariants();
    f.accept(5, 0x20b);
    assert_eq!(f.system.read(&f.enclave, BASE + 0x5000), Touch::Done(0), "a new page");
    f.system.check_invariants();
}

#[test]
fn changed_pages_survive_eviction() {
    let f = Fixture::new();
    assert_eq!(f.call().modify_types(0x5000, 0x1000, TRIM), ok(0x1000));
    assert_eq!(f.call().restrict(0x6000, 0x1000, 1), ok(0x1000));
    f.system.evict_all();
    assert_eq!(f.enclave.stats().resident, 0);
    f.accept(5, 0x410);
    f.accept(6, 0x221);
    f.system.evict_all();
    assert_eq!(f.system.write(&f.enclave, BASE + 0x6000, 8), Touch::Refused);
    f.system.evict_all();
    assert_eq!(f.call().remove_pages(0x5000, 0x1000), ok(0x1000), "it is loaded for that");
    f.system.check_invariants();
}

#[test]
fn threads_inside_are_tracked_before_the_ioctl_returns() {
    let f = Fixture::new();
    f.system.threads.enter(f.eid(), 1);
    assert_eq!(f.call().modify_types(0x5000, 0x1000, TRIM), ok(0x1000));
    // EACCEPT would say "not tracked" if anybody could still be inside since before.
    f.accept(5, 0x410);
    assert_eq!(f.system.driver.stats().kicks, 1);
}

#[test]
fn a_thread_that_can_not_be_kicked_makes_it_fail() {
    let f = Fixture::new();
    f.system.threads.enter(f.eid(), 1);
    f.system.threads.set_stubborn(100);
    assert_eq!(f.call().restrict(0x5000, 0x1000, 1), ok(0x1000), "the first cycle starts");
    assert_eq!(f.call().restrict(0x6000, 0x1000, 1), err(Errno::EFAULT, 0, 0x1000), "the next can not");
    f.system.threads.set_stubborn(0);
    assert_eq!(f.call().restrict(0x6000, 0x1000, 1), ok(0x1000));
}

/// However slow the computer: what is to be done during a pass is done by then.
const UNTIL_IT_IS_DONE: Duration = Duration::from_secs(60);

/// Runs a pass that has all pages of the fixture's enclave, in a thread of its own, and `during` while it has them: for
/// `bound` at most, which is for what waits for the pass itself.
fn during_a_pass(f: &Fixture, bound: Duration, during: impl FnOnce()) {
    // Nobody has used them, and somebody inside makes the pass kick in the middle.
    f.system.evict_all();
    for page in 1..=8 {
        assert_eq!(f.system.read(&f.enclave, BASE + page * 4096), Touch::Done(page));
    }
    f.system.driver.ksgxd_pass();
    f.system.threads.enter(f.eid(), 1);
    let (in_kick, kicked) = std::sync::mpsc::channel();
    let (go_on, resumed) = std::sync::mpsc::channel::<()>();
    f.system.spaces.on_next_kick(move || {
        in_kick.send(()).unwrap();
        // Nobody sends: the sender is dropped.
        let _ = resumed.recv_timeout(bound);
    });
    std::thread::scope(|scope| {
        scope.spawn(|| f.system.driver.ksgxd_pass());
        kicked.recv().unwrap();
        during();
        drop(go_on);
    });
}

#[test]
fn an_ioctl_waits_for_the_pass_that_has_its_page() {
    let f = Fixture::new();
    let loads = || f.system.driver.stats().loads;
    let mut before = 0;
    during_a_pass(&f, Duration::from_millis(200), || {
        before = loads();
        assert_eq!(f.call().modify_types(0x2000, 0x4000, TRIM), ok(0x4000));
    });
    assert!(loads() >= before + 4, "the pass had the pages");
    f.accept(2, 0x410);
    assert_eq!(f.call().remove_pages(0x2000, 0x1000), ok(0x1000));
    f.system.check_invariants();
}

#[test]
fn linux_leaves_the_waiting_to_the_program() {
    let f = Fixture::with_behaviour(Behaviour::linux());
    during_a_pass(&f, UNTIL_IT_IS_DONE, || {
        assert_eq!(f.call().modify_types(0x2000, 0x4000, TRIM), err(Errno::EAGAIN, 0, 0));
        assert_eq!(f.call().modify_types(0x2000, 0x1000, TCS), err(Errno::EAGAIN, 0, 0), "not EBUSY");
    });
    f.system.threads.leave_all();
    let etracks = f.system.driver.stats().etracks;
    assert_eq!(f.call().modify_types(0x2000, 0x4000, TRIM), ok(0x4000));
    assert_eq!(f.system.driver.stats().etracks, etracks + 4, "one for each page");
}

#[test]
fn a_signal_ends_the_wait_of_an_ioctl() {
    let f = Fixture::new();
    during_a_pass(&f, UNTIL_IT_IS_DONE, || {
        f.caller.set_signal_after(Some(0));
        assert_eq!(f.call().modify_types(0x2000, 0x4000, TRIM), err(Errno::EAGAIN, 0, 0));
        f.caller.set_signal_after(None);
    });
    f.system.check_invariants();
}

#[test]
fn an_ioctl_reclaims_what_it_needs() {
    let system = System::with_epc_pages(64);
    let (enclave, caller) = (system.build(&Image::data(BASE, 200)), SimCaller::new());
    let call = Call { enclave: &enclave, caller: &caller };
    assert_eq!(call.modify_types(0x2000, 190 * 4096, TRIM), ok(190 * 4096));
    for page in 2..192 {
        assert_eq!(system.accept(&enclave, BASE + 0x1000, BASE + page * 4096, 0x410), Ok(()));
    }
    assert_eq!(call.remove_pages(0x2000, 190 * 4096), ok(190 * 4096));
    system.check_invariants();
}
