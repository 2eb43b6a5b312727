//! The four ioctls that build an enclave: each check, in order, with its errno.

#![allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use usgx_driver::{Caller, Efault, Errno, Prot, SourceError, command};
use usgx_isa::Page;
use usgx_testkit::{Call, Image, Operation, Profile, SimCaller, System, Touch};

const BASE: u64 = 0x7000_0000_0000;
const REG_RW: u64 = 0x203;
const SRC: u64 = 0x20_0000;

struct Fixture {
    system: System,
    caller: SimCaller,
    image: Image,
}

impl Fixture {
    fn new() -> Self {
        Self { system: System::with_epc_pages(128), caller: SimCaller::new(), image: Image::data(BASE, 7) }
    }
}

#[test]
fn an_enclave_is_built_used_and_destroyed() {
    let f = Fixture::new();
    let enclave = f.system.build(&f.image);
    assert!(enclave.is_initialized());
    assert_eq!(enclave.base_size(), Some((BASE, 0x10000)));
    assert_eq!(enclave.attributes().map(|a| (a.flags, a.xfrm)), Some((6, 3)));
    assert_eq!(f.system.read(&enclave, BASE + 0x3000), Touch::Done(3));
    assert_eq!(f.system.write(&enclave, BASE + 0x3000, 77), Touch::Done(3));
    assert_eq!(f.system.read(&enclave, BASE + 0x3000), Touch::Done(77));
    assert_eq!(enclave.stats().pages, 9);
    f.system.check_invariants();
    let other = enclave.clone();
    drop(enclave);
    assert_eq!(f.system.driver.stats().enclaves, 1);
    drop(other);
    f.system.check_invariants();
    assert_eq!(f.system.driver.free_pages(), 128);
    assert_eq!((f.system.spaces.nr_spaces(), f.system.store.nr_enclaves()), (0, 0));
}

#[test]
fn the_measurement_is_that_of_the_architecture() {
    // The signer measures by itself; EINIT accepts only what the processor measured too.
    let f = Fixture::new();
    let enclave = f.system.open();
    f.image.create(&enclave, &f.caller).unwrap();
    f.image.add_pages(&enclave, &f.caller).unwrap();
    let call = Call { enclave: &enclave, caller: &f.caller };
    let mut other = f.image.clone();
    other.pages[3].contents.0[0] ^= 1;
    other.pages[3].measure = true;
    assert_eq!(call.init(&other.sigstruct()), Err(Errno::EPERM));
    assert_eq!(call.init(&f.image.sigstruct()), Ok(()));
}

#[test]
fn unknown_commands_are_enotty() {
    let f = Fixture::new();
    let enclave = f.system.open();
    let call = Call { enclave: &enclave, caller: &f.caller };
    for command in [0, 0xA404, 0x4008_A408, 0xC030_A402] {
        assert_eq!(call.raw(command, &[0]), Err(Errno::ENOTTY));
    }
}

#[test]
fn create_checks_in_order() {
    let f = Fixture::new();
    let enclave = f.system.open();
    let call = Call { enclave: &enclave, caller: &f.caller };
    assert_eq!(enclave.ioctl(command::CREATE, 0xdead_0000, &f.caller), Err(Errno::EFAULT));
    assert_eq!(call.raw(command::CREATE, &[0xdead_0000]), Err(Errno::EFAULT));
    for size in [0, 0x3000, 0x10001] {
        let mut image = f.image.clone();
        image.size = size;
        assert_eq!(image.create(&enclave, &f.caller), Err(Errno::EINVAL), "size {size:#x}");
    }
    assert_eq!(f.system.driver.free_pages(), 128, "nothing was taken so far");
    f.system.store.fail(Operation::Create, 1);
    assert_eq!(f.image.create(&enclave, &f.caller), Err(Errno::EIO));
    let mut image = f.image.clone();
    image.base += 0x1000;
    assert_eq!(image.create(&enclave, &f.caller), Err(Errno::EIO), "ECREATE refuses the base");
    f.system.check_invariants();
    assert_eq!(f.system.driver.free_pages(), 128, "all is undone");
    assert_eq!(enclave.base_size(), None);

    f.image.create(&enclave, &f.caller).unwrap();
    assert_eq!(f.system.driver.free_pages(), 126, "SECS and VA page");
    assert_eq!(enclave.ioctl(command::CREATE, 0xdead_0000, &f.caller), Err(Errno::EINVAL), "twice");
    f.system.check_invariants();
}

#[test]
fn create_without_epc_is_enomem_and_with_a_signal_restarts() {
    let system = System::with_epc_pages(1);
    let (enclave, caller, image) = (system.open(), SimCaller::new(), Image::data(BASE, 3));
    assert_eq!(image.create(&enclave, &caller), Err(Errno::ENOMEM), "a VA page, but no SECS");
    assert_eq!(system.driver.free_pages(), 1);

    let system = System::with_epc_pages(64);
    let first = system.build(&Image::data(BASE, 80));
    while system.driver.free_pages() > 0 {
        let addr = BASE + 0x1000 * (1 + u64::try_from(system.driver.free_pages()).unwrap());
        assert!(matches!(system.read(&first, addr), Touch::Done(_)));
    }
    system.platform.set_signal(true);
    let (second, image) = (system.open(), Image::data(BASE, 3));
    assert_eq!(image.create(&second, &caller), Err(Errno::ERESTARTSYS));
    system.check_invariants();
    system.platform.set_signal(false);
    assert_eq!(image.create(&second, &caller), Ok(()), "now it reclaims");
    assert!(system.driver.stats().direct_reclaims > 0);
    system.check_invariants();
}

#[test]
fn add_pages_checks_in_order() {
    let f = Fixture::new();
    let enclave = f.system.open();
    let call = Call { enclave: &enclave, caller: &f.caller };
    assert_eq!(
        enclave.ioctl(command::ADD_PAGES, 0xdead_0000, &f.caller),
        Err(Errno::EINVAL),
        "before CREATE"
    );
    f.image.create(&enclave, &f.caller).unwrap();
    assert_eq!(enclave.ioctl(command::ADD_PAGES, 0xdead_0000, &f.caller), Err(Errno::EFAULT));

    let add = |src, offset, length, secinfo: u64| call.add_pages(src, offset, length, secinfo, false).0;
    assert_eq!(add(SRC + 1, 0, 0x1000, REG_RW), Err(Errno::EINVAL), "source alignment");
    assert_eq!(add(SRC, 1, 0x1000, REG_RW), Err(Errno::EINVAL), "offset alignment");
    assert_eq!(add(SRC, 0, 0, REG_RW), Err(Errno::EINVAL), "no length");
    assert_eq!(add(SRC, 0, 0x1001, REG_RW), Err(Errno::EINVAL), "length alignment");
    assert_eq!(add(SRC, 0xf000, 0x2000, REG_RW), Err(Errno::EINVAL), "past the end");
    assert_eq!(call.raw(command::ADD_PAGES, &[SRC, 0, 0x1000, 0xdead_0000, 0, 0]), Err(Errno::EFAULT));
    assert_eq!(add(SRC, 0, 0x1000, 0x202), Err(Errno::EINVAL), "W without R");
    assert_eq!(add(SRC, 0, 0x1000, REG_RW), Err(Errno::EFAULT), "no source");
    f.system.check_invariants();
    assert_eq!(f.system.driver.free_pages(), 126);

    f.caller.set(SRC, &[1; 4096]);
    f.caller.set(SRC + 0x1000, &[2; 4096]);
    assert_eq!(
        call.add_pages(SRC, 0, 0x3000, REG_RW, true),
        (Err(Errno::EFAULT), 0x2000),
        "the third is missing"
    );
    assert_eq!(add(SRC, 0x1000, 0x1000, REG_RW), Err(Errno::EBUSY), "there is a page");
    f.caller.unmap(SRC);
    assert_eq!(add(SRC, 0x1000, 0x1000, REG_RW), Err(Errno::EBUSY), "that comes before the source");
    f.caller.set_never_executable(SRC + 0x1000);
    assert_eq!(add(SRC + 0x1000, 0x2000, 0x1000, REG_RW), Err(Errno::EACCES));
    f.caller.set(SRC + 0x3000, &[7; 4096]);
    assert_eq!(add(SRC + 0x3000, 0x2000, 0x1000, 0x100), Err(Errno::EIO), "EADD refuses that TCS");
    f.system.check_invariants();
    assert_eq!(enclave.stats().pages, 3, "SECS and two pages");
}

#[test]
fn add_pages_stops_at_a_signal() {
    let f = Fixture::new();
    let enclave = f.system.open();
    let call = Call { enclave: &enclave, caller: &f.caller };
    f.image.create(&enclave, &f.caller).unwrap();
    f.caller.set(SRC, &[0; 4 * 4096]);
    f.caller.set_signal_after(Some(0));
    assert_eq!(call.add_pages(SRC, 0, 0x4000, REG_RW, false), (Err(Errno::ERESTARTSYS), 0));
    f.caller.set_signal_after(Some(3));
    assert_eq!(call.add_pages(SRC, 0, 0x4000, REG_RW, false), (Ok(()), 0x3000), "a short count is a success");
    f.caller.set_signal_after(None);
    assert_eq!(call.add_pages(SRC + 0x3000, 0x3000, 0x1000, REG_RW, false), (Ok(()), 0x1000));
}

#[test]
fn add_pages_fails_when_the_count_can_not_be_told() {
    let f = Fixture::new();
    let enclave = f.system.open();
    f.image.create(&enclave, &f.caller).unwrap();
    f.caller.set(SRC, &[0; 4096]);
    let call = Call { enclave: &enclave, caller: &f.caller };
    assert_eq!(call.add_pages(SRC, 0, 0x1000, REG_RW, false), (Ok(()), 0x1000));
    f.caller.set_read_only(0x1_0000);
    let result = call.raw(command::ADD_PAGES, &[SRC, 0x1000, 0x1000, 0x1_1000, 0, 0]);
    assert_eq!(result, Err(Errno::EFAULT));
    assert_eq!(enclave.stats().pages, 3, "the page was added all the same");
}

#[test]
fn init_checks_in_order() {
    let f = Fixture::new();
    let enclave = f.system.open();
    let call = Call { enclave: &enclave, caller: &f.caller };
    let good = f.image.sigstruct();
    assert_eq!(enclave.ioctl(command::INIT, 0xdead_0000, &f.caller), Err(Errno::EINVAL), "before CREATE");
    f.image.create(&enclave, &f.caller).unwrap();
    assert_eq!(enclave.ioctl(command::INIT, 0xdead_0000, &f.caller), Err(Errno::EFAULT));
    assert_eq!(call.raw(command::INIT, &[0xdead_0000]), Err(Errno::EFAULT));

    let patched = |at: usize, value: u64, len: usize| {
        let mut bytes = good.clone();
        bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        call.init(&bytes)
    };
    assert_eq!(patched(16, 1, 4), Err(Errno::EINVAL), "vendor");
    assert_eq!(patched(928, 1 << 62, 8), Err(Errno::EINVAL), "an attribute that nobody has");
    assert_eq!(patched(936, 1 << 62, 8), Err(Errno::EINVAL), "XFRM");
    assert_eq!(patched(900, u64::from(u32::MAX) << 32 | 2, 8), Err(Errno::EINVAL), "MISCSELECT");
    assert_eq!(patched(520, 1, 8), Err(Errno::EPERM), "a bad signature is EINIT's to refuse");
    assert!(!enclave.is_initialized());
    f.image.add_pages(&enclave, &f.caller).unwrap();
    assert_eq!(call.init(&good), Ok(()));
    assert_eq!(call.init(&good), Err(Errno::EINVAL), "twice");
    f.caller.set(SRC, &[0; 4096]);
    assert_eq!(call.add_pages(SRC, 0x8000, 0x1000, REG_RW, false).0, Err(Errno::EINVAL), "after INIT");
}

#[test]
fn aex_notify_is_free_where_the_processor_has_it() {
    const AEXNOTIFY: u64 = 1 << 10;
    for (cpu, created, signed) in
        [("ice-lake-sp", Err(Errno::EIO), Errno::EINVAL), ("sapphire-rapids", Ok(()), Errno::EPERM)]
    {
        let system = System::with_profile(64, Profile::by_name(cpu).unwrap());
        let (mut image, caller) = (Image::data(BASE, 7), SimCaller::new());
        let enclave = system.open();
        image.create(&enclave, &caller).unwrap();
        let mut sigstruct = image.sigstruct();
        sigstruct[928..936].copy_from_slice(&(image.attributes | AEXNOTIFY).to_le_bytes());
        // The driver lets it pass, and the processor finds that the signature does not fit any more.
        assert_eq!(Call { enclave: &enclave, caller: &caller }.init(&sigstruct), Err(signed), "{cpu}");
        image.attributes |= AEXNOTIFY;
        assert_eq!(image.create(&system.open(), &caller), created, "{cpu}");
    }
}

#[test]
fn provisioning_needs_the_other_device() {
    let f = Fixture::new();
    let mut image = f.image.clone();
    image.attributes |= 1 << 4;
    let enclave = f.system.open();
    let call = Call { enclave: &enclave, caller: &f.caller };
    f.caller.add_provision_fd(5);
    assert_eq!(call.raw(command::PROVISION, &[5]), Ok(()), "in any state, but lost before CREATE");
    image.create(&enclave, &f.caller).unwrap();
    image.add_pages(&enclave, &f.caller).unwrap();
    assert_eq!(call.init(&image.sigstruct()), Err(Errno::EACCES));
    assert_eq!(enclave.ioctl(command::PROVISION, 0xdead_0000, &f.caller), Err(Errno::EFAULT));
    assert_eq!(call.raw(command::PROVISION, &[6]), Err(Errno::EINVAL));
    assert_eq!(call.raw(command::PROVISION, &[u64::MAX]), Err(Errno::EINVAL));
    assert_eq!(call.raw(command::PROVISION, &[7 << 32 | 5]), Ok(()), "the low half counts");
    assert_eq!(call.init(&image.sigstruct()), Ok(()));
    assert_eq!(call.raw(command::PROVISION, &[5]), Ok(()));
}

#[test]
fn einittoken_key_is_never_granted() {
    let f = Fixture::new();
    let mut image = f.image.clone();
    image.attributes |= 1 << 5;
    let enclave = f.system.open();
    assert_eq!(image.build(&enclave, &f.caller), Err(Errno::EACCES));
}

/// A caller that makes another ioctl on the same enclave while it is asked for memory.
struct Reentrant<'a> {
    inner: &'a SimCaller,
    enclave: usgx_driver::Enclave<usgx_testkit::SimMachine>,
}

impl Caller for Reentrant<'_> {
    fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), Efault> {
        for command in [command::CREATE, command::PROVISION, 0] {
            assert_eq!(self.enclave.ioctl(command, 0, self.inner), Err(Errno::EBUSY));
        }
        self.inner.read(addr, out)
    }

    fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), Efault> {
        self.inner.write(addr, bytes)
    }

    fn source_page(&self, addr: u64, remaining: u64, out: &mut Page) -> Result<(), SourceError> {
        // No lock is held across a message to a client: these take the enclave's.
        let _ = (self.enclave.stats(), self.enclave.fault(BASE, Prot::R));
        self.inner.source_page(addr, remaining, out)
    }

    fn signal_pending(&self) -> bool {
        let _ = self.enclave.stats();
        false
    }

    fn is_provision_fd(&self, _fd: i32) -> bool {
        false
    }
}

#[test]
fn one_ioctl_at_a_time_and_no_lock_held_in_upcalls() {
    let f = Fixture::new();
    let enclave = f.system.open();
    f.image.create(&enclave, &f.caller).unwrap();
    f.caller.set(SRC, &[0; 4096]);
    let call = Call { enclave: &enclave, caller: &f.caller };
    assert_eq!(call.add_pages(SRC, 0, 0x1000, REG_RW, false), (Ok(()), 0x1000));
    let reentrant = Reentrant { inner: &f.caller, enclave: enclave.clone() };
    f.caller.set(0x1_0000 + 8, &0x1000u64.to_le_bytes());
    assert_eq!(enclave.ioctl(command::ADD_PAGES, 0x1_0000, &reentrant), Ok(0));
    assert_eq!(enclave.ioctl(command::PROVISION, 0x1_0000, &reentrant), Err(Errno::EINVAL));
    assert_eq!(enclave.stats().pages, 3);
}
