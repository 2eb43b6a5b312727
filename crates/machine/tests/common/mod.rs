//! A small client of the machine for tests: the protocol as a runtime speaks it, from threads of the test process.
//!
//! Its "memory", which the machine reads by upcalls, is a table of byte strings. Enclave pages are touched by
//! system calls (`pread` into a page, `pwrite` from it), which fail with `EFAULT` where an instruction would
//! raise SIGBUS, so no signal handler is needed.
#![allow(dead_code, unreachable_pub, reason = "every test includes this file and uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(unsafe_code, reason = "maps views at fixed addresses and touches them")]
pub mod raw;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use usgx_machine::{Machine, MachineConfig, StatsSnapshot};
use usgx_sys::memfd::Memfd;
use usgx_sys::shared::SharedMemory;
use usgx_sys::uffd::Userfaultfd;
use usgx_sys::{futex, socket};
use usgx_testkit::Image;
use usgx_wire::channel::{HELLO_MAGIC, device, op};
use usgx_wire::process::{DATA_OFFSET, DATA_SIZE, REGION_SIZE, SLOT_STRIDE, SLOTS_OFFSET};
use usgx_wire::slot::{call, fault_kind, outcome, turn, upcall, waiter};
use usgx_wire::window::window_size;

pub const PAGE: u64 = 4096;
pub const CREATE: u64 = 0x4008_a400;
pub const ADD_PAGES: u64 = 0xc030_a401;
pub const INIT: u64 = 0x4008_a402;
pub const PROVISION: u64 = 0x4008_a403;
pub const RESTRICT_PERMISSIONS: u64 = 0xc028_a405;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Says so and returns true where there is no userfaultfd.
pub fn skip() -> bool {
    let missing = Userfaultfd::create().err();
    if let Some(error) = missing {
        eprintln!("SKIPPED: no userfaultfd with write protection here ({error})");
    }
    missing.is_some()
}

/// A machine with so many EPC pages.
pub fn machine(pages: u64) -> Machine {
    machine_of(&[pages])
}

/// A machine with EPC sections of so many pages.
pub fn machine_of(sections: &[u64]) -> Machine {
    if std::env::var_os("USGX_TEST_LOG").is_some() {
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .try_init();
    }
    let epc_bytes = sections.iter().map(|pages| pages * PAGE).collect();
    Machine::new(MachineConfig { epc_bytes, ..MachineConfig::default() }).unwrap()
}

/// A door to a machine: our end.
pub fn door(machine: &Machine) -> Arc<OwnedFd> {
    let (ours, theirs) = socket::pair().unwrap();
    machine.serve_door(theirs).unwrap();
    Arc::new(ours)
}

/// A range of addresses that no other test uses.
pub fn fresh_base() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    0x5000_0000_0000 + NEXT.fetch_add(1, Relaxed) * 0x1_0000_0000
}

/// Waits until the machine has nobody and nothing left.
pub fn assert_empty(machine: &Machine) {
    let stats = wait_for(machine, "nothing is left", |stats| {
        stats.enclaves == 0
            && stats.epc_free_pages == stats.epc_total_pages
            && stats.mapped_pages + stats.frames + stats.backing_bytes + stats.va_pages == 0
            && stats.clients.is_empty()
    });
    assert_eq!(stats.leaked_pages, 0, "{stats:#?}");
}

/// Waits until a machine's numbers are as a test wants them, and returns them.
pub fn wait_for(machine: &Machine, what: &str, is_so: impl Fn(&StatsSnapshot) -> bool) -> StatsSnapshot {
    let start = Instant::now();
    loop {
        let stats = machine.stats();
        if is_so(&stats) {
            return stats;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: never so, but {stats:#?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The numbers when `ksgxd` has nothing left to do.
pub fn settled(machine: &Machine) -> StatsSnapshot {
    wait_for(machine, "ksgxd rests", |stats| !stats.ksgxd_busy)
}

/// A request as bytes.
pub fn request_bytes(op: u32, args: [u64; 4]) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes[..4].copy_from_slice(&op.to_le_bytes());
    bytes.extend(args.iter().flat_map(|arg| arg.to_le_bytes()));
    bytes
}

/// A Hello as bytes.
pub fn hello_bytes(ticket: [u64; 2]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [HELLO_MAGIC, usgx_wire::VERSION, std::process::id(), 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(ticket.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// The answer to a request.
pub struct Answer {
    pub status: i64,
    pub values: [u64; 4],
    pub fds: Vec<OwnedFd>,
}

/// A process image, as the machine sees it.
pub struct TestClient {
    channel: std::sync::Mutex<OwnedFd>,
    region: Arc<SharedMemory>,
    pub uffd: Userfaultfd,
}

impl TestClient {
    /// Says hello and hands over a userfaultfd.
    pub fn connect(door: &OwnedFd, ticket: [u64; 2]) -> Arc<Self> {
        let (ours, theirs) = socket::pair().unwrap();
        socket::send(door, &hello_bytes(ticket), &[theirs.as_fd()]).unwrap();
        drop(theirs);
        let mut bytes = [0; 8];
        let mut welcome = socket::receive_waiting(&ours, &mut bytes).unwrap();
        assert_eq!((welcome.length, bytes[..4].to_vec()), (8, vec![0; 4]), "welcome");
        let region = SharedMemory::map(&welcome.fds[0], REGION_SIZE).unwrap();
        welcome.fds.clear();
        let uffd = Userfaultfd::create().unwrap();
        let this = Self { channel: ours.into(), region: Arc::new(region), uffd };
        let answer =
            this.request(op::USERFAULTFD, [0; 4], Some(this.uffd.as_fd().try_clone_to_owned().unwrap()));
        assert_eq!(answer.status, 0, "userfaultfd");
        Arc::new(this)
    }

    /// Sends a request and waits for its answer.
    pub fn request(&self, op: u32, args: [u64; 4], fd: Option<OwnedFd>) -> Answer {
        self.try_request(op, args, fd).expect("the machine keeps the channel open")
    }

    /// The same; `None` if the machine hangs up.
    pub fn try_request(&self, op: u32, args: [u64; 4], fd: Option<OwnedFd>) -> Option<Answer> {
        let channel = self.channel.lock().unwrap();
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        socket::send(&*channel, &request_bytes(op, args), &fds).ok()?;
        let mut bytes = [0; 64];
        let received = socket::receive_waiting(&*channel, &mut bytes).ok().filter(|r| r.length == 40)?;
        let word = |i: usize| u64::from_le_bytes(bytes[i * 8..][..8].try_into().unwrap());
        Some(Answer {
            status: word(0) as i64,
            values: std::array::from_fn(|i| word(i + 1)),
            fds: received.fds,
        })
    }

    /// Sends anything on the channel.
    pub fn send_raw(&self, bytes: &[u8], fds: &[OwnedFd]) -> bool {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        socket::send(&*self.channel.lock().unwrap(), bytes, &fds).is_ok()
    }

    pub fn region(&self) -> &SharedMemory {
        &self.region
    }

    /// A slot for a thread of this client.
    pub fn thread(self: &Arc<Self>) -> TestThread {
        let mut answer = self.request(op::THREAD, [1, 0, 0, 0], None);
        assert_eq!(answer.status, 0, "a slot");
        TestThread {
            client: Arc::clone(self),
            index: answer.values[0] as usize,
            kick: answer.fds.remove(0),
            memory: Vec::new(),
            signal: false,
            scratch: scratch(),
        }
    }

    /// Opens `/dev/sgx_enclave`.
    pub fn open(&self) -> OwnedFd {
        let mut answer = self.request(op::OPEN, [device::ENCLAVE, 2, 0, 0], None);
        assert_eq!(answer.status, 0, "an enclave");
        answer.fds.remove(0)
    }

    /// Opens `/dev/sgx_provision`.
    pub fn open_provision(&self) -> OwnedFd {
        let mut answer = self.request(op::OPEN, [device::PROVISION, 2, 0, 0], None);
        assert_eq!(answer.status, 0, "the provisioning device");
        answer.fds.remove(0)
    }

    /// The handle, view and window behind a device descriptor.
    pub fn attach(&self, device: &OwnedFd) -> (u64, OwnedFd, OwnedFd) {
        let mut answer = self.request(op::ATTACH, [0; 4], Some(device.try_clone().unwrap()));
        assert_eq!((answer.status, answer.fds.len()), (0, 2), "attach");
        let window = answer.fds.remove(1);
        (answer.values[0], answer.fds.remove(0), window)
    }
}

fn scratch() -> File {
    let file = Memfd::create("scratch").unwrap().as_fd().try_clone_to_owned().unwrap();
    let file = File::from(file);
    file.set_len(PAGE).unwrap();
    file
}

/// A thread of a client.
pub struct TestThread {
    pub client: Arc<TestClient>,
    pub index: usize,
    pub kick: OwnedFd,
    /// What upcalls find in the program's memory.
    memory: Vec<(u64, Vec<u8>)>,
    /// What upcalls say of signals.
    pub signal: bool,
    scratch: File,
}

impl TestThread {
    fn at(&self) -> usize {
        SLOTS_OFFSET + self.index * SLOT_STRIDE
    }

    /// Puts bytes into the program's memory.
    pub fn set(&mut self, addr: u64, bytes: &[u8]) {
        self.memory.retain(|(start, _)| *start != addr);
        self.memory.push((addr, bytes.to_vec()));
    }

    /// Bytes of the program's memory.
    pub fn get(&self, addr: u64, length: usize) -> Option<Vec<u8>> {
        let (start, bytes) =
            self.memory.iter().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&addr))?;
        let offset = (addr - start) as usize;
        Some(bytes[offset..bytes.len().min(offset + length)].to_vec())
    }

    /// Says that the thread is inside an enclave, or outside.
    pub fn set_inside(&self, handle: u64, epoch: u64) {
        let region = self.client.region();
        region.word64(self.at() + 128 + 8).store(epoch, SeqCst);
        region.word64(self.at() + 128).store(handle, SeqCst);
    }

    /// Makes a call and waits for the reply, serving upcalls.
    pub fn call(&mut self, words: &[u64]) -> [u64; 10] {
        self.try_call(words).expect("the machine keeps the slot open")
    }

    /// The same; `None` if the machine closes the slot.
    pub fn try_call(&mut self, words: &[u64]) -> Option<[u64; 10]> {
        self.start_call(words);
        self.finish_call()
    }

    /// The first half of a call.
    pub fn start_call(&self, words: &[u64]) {
        let region = self.client.region();
        for (index, word) in words.iter().enumerate() {
            region.word64(self.at() + 8 + index * 8).store(*word, Relaxed);
        }
        self.pass(turn::CALL);
    }

    /// The second half.
    pub fn finish_call(&mut self) -> Option<[u64; 10]> {
        let start = Instant::now();
        loop {
            let region = Arc::clone(&self.client.region);
            let word = region.word32(self.at());
            match word.load(SeqCst) {
                turn::REPLY => {
                    word.store(turn::IDLE, SeqCst);
                    return Some(std::array::from_fn(|i| region.word64(self.at() + 8 + i * 8).load(Relaxed)));
                }
                turn::UPCALL => {
                    let [what, addr, length, offset] =
                        [0, 1, 2, 3].map(|i| region.word64(self.at() + 8 + i * 8).load(Relaxed));
                    let answer = self.serve(what, addr, length as usize, offset as usize);
                    region.word64(self.at() + 16).store(answer, Relaxed);
                    self.pass(turn::ANSWER);
                }
                turn::CLOSED => return None,
                seen => {
                    assert!(start.elapsed() < PATIENCE, "the machine does not answer");
                    let waiting = region.word32(self.at() + 4);
                    waiting.fetch_or(waiter::RUNTIME, SeqCst);
                    futex::wait(word, seen, Some(Duration::from_millis(500)));
                    waiting.fetch_and(!waiter::RUNTIME, SeqCst);
                }
            }
        }
    }

    fn pass(&self, to: u32) {
        let region = self.client.region();
        region.word32(self.at()).store(to, SeqCst);
        if region.word32(self.at() + 4).load(SeqCst) & waiter::MACHINE != 0 {
            futex::wake_all(region.word32(self.at()));
        }
    }

    fn serve(&mut self, what: u64, addr: u64, length: usize, offset: usize) -> u64 {
        let data = DATA_OFFSET + self.index * DATA_SIZE;
        let offset = offset.min(DATA_SIZE);
        let length = length.min(DATA_SIZE - offset);
        match what {
            upcall::READ | upcall::SOURCE => {
                let bytes = self.get(addr, length).unwrap_or_default();
                self.client.region().write(data + offset, &bytes);
                bytes.len() as u64
            }
            upcall::WRITE => {
                let mut bytes = vec![0; length];
                self.client.region().read(data, &mut bytes);
                // A hostile test overwrites its own words, these too: any address may come.
                let there = self.memory.iter_mut().find_map(|(start, old)| {
                    old.get_mut(usize::try_from(addr.checked_sub(*start)?).ok()?..)?.get_mut(..length)
                });
                let Some(there) = there else { return 0 };
                there.copy_from_slice(&bytes);
                length as u64
            }
            upcall::SIGNAL_PENDING => u64::from(self.signal),
            upcall::SOCKET_INODE => raw::socket_inode(addr as i32),
            _ => 0,
        }
    }

    pub fn write_data(&self, bytes: &[u8]) {
        self.client.region().write(DATA_OFFSET + self.index * DATA_SIZE, bytes);
    }

    pub fn read_data(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.client.region().read(DATA_OFFSET + self.index * DATA_SIZE, &mut bytes);
        bytes
    }

    /// An ioctl: 0 or more, or a negative errno.
    pub fn ioctl(&mut self, handle: u64, command: u64, argument: u64) -> i64 {
        self.call(&[call::IOCTL, handle, command, argument])[1] as i64
    }

    /// Builds an enclave from an image, up to INIT if `init`, and maps it all.
    pub fn build(&mut self, image: &Image, init: bool) -> TestEnclave {
        let device = self.client.open();
        let (handle, view, window) = self.client.attach(&device);
        let mut enclave =
            TestEnclave { device: Some(device), handle, base: image.base, size: image.size, view, window };
        self.set(0x1000, &image.secs().0);
        self.set(0x100, &0x1000_u64.to_le_bytes());
        assert_eq!(self.ioctl(handle, CREATE, 0x100), 0, "CREATE");
        // Runs of pages alike go into one ioctl, as loaders do it.
        let mut pages = &image.pages[..];
        while let Some(first) = pages.first() {
            let alike = |(at, page): (usize, &usgx_testkit::ImagePage)| {
                page.index == first.index + at as u64
                    && (page.secinfo, page.measure) == (first.secinfo, first.measure)
            };
            let run = pages.iter().enumerate().take_while(|(at, page)| alike((*at, page))).count();
            let source: Vec<u8> = pages[..run].iter().flat_map(|page| page.contents.0).collect();
            self.set(0x1000_0000, &source);
            let result = self.add_pages(&enclave, first.index, run as u64, first.secinfo, first.measure);
            assert_eq!(result, (0, run as u64 * PAGE), "ADD_PAGES");
            pages = &pages[run..];
        }
        if init {
            self.set(0x2000, &image.sigstruct());
            self.set(0x100, &0x2000_u64.to_le_bytes());
            assert_eq!(self.ioctl(handle, INIT, 0x100), 0, "INIT");
        }
        self.map(&mut enclave);
        enclave
    }

    /// ADD_PAGES from 0x1000_0000; the result and the count.
    pub fn add_pages(
        &mut self,
        enclave: &TestEnclave,
        index: u64,
        pages: u64,
        secinfo: u64,
        measure: bool,
    ) -> (i64, u64) {
        let mut info = [0; 64];
        info[..8].copy_from_slice(&secinfo.to_le_bytes());
        self.set(0x300, &info);
        let argument = [0x1000_0000, index * PAGE, pages * PAGE, 0x300, u64::from(measure), 0];
        self.set(0x200, &argument.map(u64::to_le_bytes).concat());
        let result = self.ioctl(enclave.handle, ADD_PAGES, 0x200);
        let count = self.get(0x200 + 40, 8).unwrap();
        (result, u64::from_le_bytes(count.try_into().unwrap()))
    }

    /// Maps an enclave at its place and registers the mapping.
    pub fn map(&mut self, enclave: &mut TestEnclave) {
        let TestEnclave { base, size, handle, .. } = *enclave;
        let checked = self.call(&[call::MMAP, handle, base, size, 0]);
        assert_eq!(checked[1..4], [0, base, size], "MMAP");
        raw::map_view(base, size, &enclave.view);
        self.client.uffd.register(base, size).unwrap();
        assert_eq!(self.call(&[call::REGISTER, handle, base, size])[1], 0, "REGISTER");
    }

    /// FAULT: the outcome and the entry.
    pub fn fault(&mut self, enclave: &TestEnclave, index: u64, code: u64, kind: u64) -> (u64, u64) {
        let words = [call::FAULT, enclave.handle, enclave.base + index * PAGE, code, 3, kind];
        let reply = self.call(&words);
        (reply[1], reply[2])
    }

    /// Reads a page of an enclave as an instruction would: again and again until it is there.
    pub fn read_page(&mut self, enclave: &TestEnclave, index: u64, out: &mut [u8; 4096]) {
        use std::os::unix::fs::FileExt;
        self.touch(enclave, index, false);
        self.scratch.read_exact_at(out, 0).unwrap();
    }

    /// Writes a page of an enclave.
    pub fn write_page(&mut self, enclave: &TestEnclave, index: u64, bytes: &[u8; 4096]) {
        use std::os::unix::fs::FileExt;
        self.scratch.write_all_at(bytes, 0).unwrap();
        self.touch(enclave, index, true);
    }

    /// Moves a page between the scratch file and an enclave.
    fn touch(&mut self, enclave: &TestEnclave, index: u64, write: bool) {
        let start = Instant::now();
        let addr = enclave.base + index * PAGE;
        loop {
            if raw::move_page(&self.scratch, addr, write) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "page {index} does not come");
            let (outcome, _) = self.fault(enclave, index, if write { 6 } else { 4 }, fault_kind::ACCESS);
            assert!(matches!(outcome, outcome::MAPPED | outcome::RETRY), "page {index}: outcome {outcome}");
        }
    }
}

/// An enclave of a client.
pub struct TestEnclave {
    pub device: Option<OwnedFd>,
    pub handle: u64,
    pub base: u64,
    pub size: u64,
    pub view: OwnedFd,
    pub window: OwnedFd,
}

impl TestEnclave {
    /// The window, mapped.
    pub fn window(&self) -> SharedMemory {
        SharedMemory::map(&self.window, window_size(self.size) as usize).unwrap()
    }

    /// Unmaps it, as a process does that ends.
    pub fn unmap(&self) {
        raw::unmap_view(self.base, self.size);
    }
}

impl Drop for TestEnclave {
    fn drop(&mut self) {
        self.unmap();
    }
}

/// Numbers from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 ^ self.0 >> 29) >> 16
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
