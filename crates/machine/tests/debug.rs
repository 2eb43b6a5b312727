//! A debugger's look into another process: what of it is an enclave's, whose it may be, and what becomes of a TCS.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs::File;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use common::{PAGE, TestClient, TestEnclave, TestThread, assert_empty, door, fresh_base, machine, skip};
use usgx_sys::pidfd::ProcessHandle;
use usgx_testkit::Image;
use usgx_wire::channel::op;
use usgx_wire::slot::{DEBUG_MAX, call, debug, fault_kind, outcome};
use usgx_wire::window::{TCS_OFFSET, Tcs, entry, tcs_word};

const EIO: i64 = 5;
const EFAULT: i64 = 14;
const EINVAL: i64 = 22;
const ESRCH: i64 = 3;
const DEBUG: u64 = 2;

/// A pidfd.
fn pidfd(pid: u32) -> OwnedFd {
    ProcessHandle::open(pid).unwrap().as_fd().try_clone_to_owned().unwrap()
}

/// Two clients of this process, of which the second is the last one that has come: the debugger, then its prey.
struct Scene {
    debugger: TestThread,
    target: u64,
    thread: TestThread,
    enclave: TestEnclave,
    clients: [Arc<TestClient>; 2],
}

impl Scene {
    fn new(machine: &usgx_machine::Machine, image: &Image) -> Self {
        let door = door(machine);
        let clients = [TestClient::connect(&door, [0; 2]), TestClient::connect(&door, [0; 2])];
        let debugger = clients[0].thread();
        let mut thread = clients[1].thread();
        let enclave = thread.build(image, true);
        let answer = clients[0].request(op::DEBUGGEE, [0; 4], Some(pidfd(std::process::id())));
        assert_eq!(answer.status, 0);
        Self { debugger, target: answer.values[0], thread, enclave, clients }
    }

    fn read(&mut self, addr: u64, length: usize) -> (i64, u64, Vec<u8>) {
        let reply = self.debugger.call(&[call::DEBUG, self.target, addr, length as u64, debug::READ]);
        (reply[1] as i64, reply[2], self.debugger.read_data(length))
    }

    fn write(&mut self, addr: u64, bytes: &[u8]) -> i64 {
        self.debugger.write_data(bytes);
        self.debugger.call(&[call::DEBUG, self.target, addr, bytes.len() as u64, debug::WRITE])[1] as i64
    }
}

#[test]
fn pages_are_moved_wherever_they_are() {
    if skip() {
        return;
    }
    let machine = machine(64);
    // More pages than there is room for: some are evicted, some in a frame, and those just touched in the view.
    let mut scene = Scene::new(&machine, &Image::data(fresh_base(), 100));
    let (base, size) = (scene.enclave.base, scene.enclave.size);
    let mut page = [0; 4096];
    for index in [1, 50, 100] {
        scene.thread.read_page(&scene.enclave, index, &mut page);
    }
    for index in 1..=100 {
        let at = base + index * PAGE;
        let (moved, _, bytes) = scene.read(at, 8);
        assert_eq!((moved, bytes), (8, index.to_le_bytes().to_vec()), "page {index}");
        assert_eq!(scene.write(at + 13, &[index as u8; 3]), 3);
    }
    for index in [100, 1, 50] {
        scene.thread.read_page(&scene.enclave, index, &mut page);
        assert_eq!(page[12..17], [0, index as u8, index as u8, index as u8, 0]);
    }
    // Beside the mapping it says how far the next one is; what is in no enclave is not moved.
    assert_eq!(scene.read(base - 100, 8).0, 0);
    assert_eq!(scene.read(base - 100, 8).1, 100);
    assert_eq!(scene.read(base + size, 8).1, u64::MAX);
    // The range is mapped, but no page is there.
    assert_eq!(scene.read(base + 150 * PAGE, 8).0, -EFAULT);
    drop(scene);
    assert_empty(&machine);
}

#[test]
fn a_tcs_is_seen_as_it_is_now() {
    if skip() {
        return;
    }
    let machine = machine(128);
    let mut scene = Scene::new(&machine, &Image::data(fresh_base(), 8));
    let base = scene.enclave.base;
    let window = scene.enclave.window();
    let shown = |scene: &mut Scene| {
        let (result, shown) = scene.thread.fault(&scene.enclave, 0, 4, fault_kind::TCS);
        assert_eq!(result, outcome::MAPPED);
        TCS_OFFSET + (shown as u32 >> entry::TCS_SHIFT) as usize * size_of::<Tcs>()
    };
    // A thread was interrupted inside: CSSA is 1, and only the window knows it.
    let at = shown(&mut scene);
    window.word64(at + offset_of!(Tcs, word)).store(tcs_word::VALID | 1 << tcs_word::CSSA_SHIFT, SeqCst);
    assert_eq!(scene.read(base + 24, 4), (4, 0, vec![1, 0, 0, 0]));
    // DBGOPTIN is there at the next entry.
    let at = shown(&mut scene);
    assert_eq!(window.word64(at + offset_of!(Tcs, flags)).load(SeqCst), 0);
    assert_eq!(scene.write(base + 8, &1_u64.to_le_bytes()), 8);
    let at = shown(&mut scene);
    assert_eq!(window.word64(at + offset_of!(Tcs, flags)).load(SeqCst), 1);
    let word = window.word64(at + offset_of!(Tcs, word)).load(SeqCst);
    assert_eq!(word, tcs_word::VALID | 1 << tcs_word::CSSA_SHIFT);
    assert_eq!(scene.write(base + 16, &[0; 8]), -EIO);
    drop((scene, window));
    assert_empty(&machine);
}

#[test]
fn who_and_what_is_refused() {
    if skip() {
        return;
    }
    let machine = machine(128);
    let mut image = Image::data(fresh_base(), 8);
    image.attributes &= !DEBUG;
    let mut scene = Scene::new(&machine, &image);
    let base = scene.enclave.base;
    assert_eq!(scene.read(base + PAGE, 8).0, -EFAULT, "a production enclave");
    assert_eq!(scene.write(base + PAGE, &[1; 8]), -EFAULT);
    for (process, length, direction, errno) in [
        (99, 8, debug::READ, ESRCH),
        (scene.target, 0, debug::READ, EINVAL),
        (scene.target, DEBUG_MAX as u64 + 1, debug::READ, EINVAL),
        (scene.target, 8, 2, EINVAL),
    ] {
        let reply = scene.debugger.call(&[call::DEBUG, process, base, length, direction]);
        assert_eq!(reply[1] as i64, -errno);
    }
    // A process that the machine does not serve, and what is no process.
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let other = pidfd(child.id());
    for fd in [other, File::open("/dev/null").unwrap().into()] {
        assert_eq!(scene.clients[0].request(op::DEBUGGEE, [0; 4], Some(fd)).status, -ESRCH);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(scene);
    assert_empty(&machine);
}
