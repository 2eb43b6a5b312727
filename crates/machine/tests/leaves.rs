//! What threads of an initialised enclave ask for: entry through a TCS, user leaves, stores of exits, kicks.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::{
    PAGE, PATIENCE, RESTRICT_PERMISSIONS, TestClient, TestEnclave, TestThread, assert_empty, door, fresh_base,
};
use common::{machine, skip};
use usgx_machine::Machine;
use usgx_testkit::Image;
use usgx_wire::slot::{call, enclu_outcome, fault_kind, outcome};
use usgx_wire::window::{Header, PAGES_OFFSET, TCS_OFFSET, Tcs, entry, tcs_word};

const READ: u64 = 4;
const WRITE: u64 = 6;
const EREPORT: u64 = 0;
const EGETKEY: u64 = 1;
const EACCEPT: u64 = 5;

/// An initialised enclave with a TCS in page 0 and 20 data pages, half of its range free.
fn enclave(machine: &Machine) -> (Arc<TestClient>, TestThread, TestEnclave) {
    let door = door(machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let enclave = thread.build(&Image::data(fresh_base(), 20), true);
    (client, thread, enclave)
}

/// Runs a leaf; resolves ordinary page faults as the runtime does.
fn enclu(thread: &mut TestThread, enclave: &TestEnclave, leaf: u64, operands: [u64; 3]) -> [u64; 4] {
    for _ in 0..100 {
        let [rbx, rcx, rdx] = operands;
        let reply = thread.call(&[call::ENCLU, enclave.handle, leaf, rbx, rcx, rdx]);
        if reply[1] != enclu_outcome::NOT_PRESENT {
            return [reply[1], reply[2], reply[3], reply[4]];
        }
        let index = (reply[4] - enclave.base) / PAGE;
        let (outcome, _) = thread.fault(enclave, index, reply[3], fault_kind::ACCESS);
        assert!(matches!(outcome, outcome::MAPPED | outcome::RETRY), "outcome {outcome}");
    }
    panic!("the leaf makes no progress");
}

/// Puts bytes at the start of a page.
fn put(thread: &mut TestThread, enclave: &TestEnclave, index: u64, bytes: &[u8]) {
    let mut page = [0; 4096];
    page[..bytes.len()].copy_from_slice(bytes);
    thread.write_page(enclave, index, &page);
}

#[test]
fn the_window_describes_the_enclave() {
    if skip() {
        return;
    }
    let machine = machine(128);
    let (client, mut thread, enclave) = enclave(&machine);
    let window = enclave.window();
    assert_eq!(window.word32(offset_of!(Header, created)).load(SeqCst), 1);
    assert_eq!(window.word64(offset_of!(Header, base)).load(SeqCst), enclave.base);
    assert_eq!(window.word64(offset_of!(Header, size)).load(SeqCst), enclave.size);
    assert_eq!(window.word64(offset_of!(Header, attributes)).load(SeqCst) & 3, 3, "INIT and DEBUG");
    assert_eq!(window.word32(offset_of!(Header, ssa_frame_pages)).load(SeqCst), 1);
    assert!(window.word64(offset_of!(Header, epoch)).load(SeqCst) >= 1);
    assert!(window.word32(offset_of!(Header, xsave_size)).load(SeqCst) >= 576);
    let (outcome, shown) = thread.fault(&enclave, 3, READ, fault_kind::ACCESS);
    assert_eq!(outcome, outcome::MAPPED);
    assert_eq!(shown as u32, entry::MAPPED | entry::PRESENT | entry::R | entry::W);
    assert_eq!(window.word32(PAGES_OFFSET + 3 * 4).load(SeqCst), shown as u32);
    drop((thread, client, enclave));
    assert_empty(&machine);
}

#[test]
fn a_tcs_is_shown_and_never_mapped() {
    if skip() {
        return;
    }
    let machine = machine(128);
    let (client, mut thread, enclave) = enclave(&machine);
    let window = enclave.window();
    let (outcome, shown) = thread.fault(&enclave, 0, READ, fault_kind::TCS);
    assert_eq!(outcome, outcome::MAPPED);
    let shown = shown as u32;
    assert_eq!(shown & (entry::TCS | entry::MAPPED), entry::TCS);
    let at = TCS_OFFSET + (shown >> entry::TCS_SHIFT) as usize * size_of::<Tcs>();
    let word = window.word64(at + offset_of!(Tcs, word));
    assert_eq!(word.load(SeqCst), tcs_word::VALID);
    assert_eq!(window.word32(at + offset_of!(Tcs, refuses)).load(SeqCst), 0);
    assert_eq!(window.word64(at + offset_of!(Tcs, address)).load(SeqCst), enclave.base);
    assert_eq!(window.word64(at + offset_of!(Tcs, ssa)).load(SeqCst), enclave.base + PAGE);
    // Enclave code must not touch it.
    assert_eq!(thread.fault(&enclave, 0, READ, fault_kind::ACCESS).0, outcome::SGX_FAULT);
    // And an ordinary page is no TCS.
    assert_eq!(thread.fault(&enclave, 1, READ, fault_kind::TCS).0, outcome::SGX_FAULT);

    // A thread enters, and an exit finds the TCS gone from the window.
    word.store(tcs_word::VALID | tcs_word::ACTIVE, SeqCst);
    let stored = thread.call(&[call::STORE_TCS, enclave.handle, enclave.base, 1, 0x1234]);
    assert_eq!(stored[1], 0);
    assert_eq!(word.load(SeqCst), 0);
    let (_, shown) = thread.fault(&enclave, 0, READ, fault_kind::TCS);
    let at = TCS_OFFSET + (shown as u32 >> entry::TCS_SHIFT) as usize * size_of::<Tcs>();
    let word = window.word64(at + offset_of!(Tcs, word)).load(SeqCst);
    assert_eq!(word, tcs_word::VALID | 1 << tcs_word::CSSA_SHIFT);
    assert_eq!(window.word64(at + offset_of!(Tcs, aep)).load(SeqCst), 0x1234);
    drop((thread, client, enclave));
    assert_empty(&machine);
}

#[test]
fn an_exit_stores_into_pages_wherever_they_are() {
    if skip() {
        return;
    }
    let machine = machine(80);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let enclave = thread.build(&Image::data(fresh_base(), 200), true);
    let mut page = [0; 4096];
    for round in 0..3_u8 {
        for index in 2..200 {
            thread.read_page(&enclave, index, &mut page);
        }
        thread.write_data(&[round + 1; 8]);
        let addr = enclave.base + PAGE + 100;
        assert_eq!(thread.call(&[call::STORE_SSA, enclave.handle, addr, 8])[1], 0);
        assert_eq!(thread.call(&[call::STORE_TCS, enclave.handle, enclave.base, u64::from(round), 7])[1], 0);
        thread.read_page(&enclave, 1, &mut page);
        assert_eq!(page[99..109], [0, 1, 1, 1, 1, 1, 1, 1, 1, 0].map(|bit| bit * (round + 1)));
    }
    // Beyond the page's end, and where there is nothing.
    let addr = enclave.base + PAGE + 4090;
    assert_eq!(thread.call(&[call::STORE_SSA, enclave.handle, addr, 8])[1] as i64, -22);
    let addr = enclave.base + enclave.size;
    assert_eq!(thread.call(&[call::STORE_SSA, enclave.handle, addr, 8])[1] as i64, -14);
    drop((thread, client, enclave));
    assert_empty(&machine);
}

#[test]
fn reports_and_keys() {
    if skip() {
        return;
    }
    let machine = machine(128);
    let (client, mut thread, enclave) = enclave(&machine);
    let at = |index: u64| enclave.base + index * PAGE;
    for index in [5, 6, 7] {
        put(&mut thread, &enclave, index, &[]);
    }
    let report = enclu(&mut thread, &enclave, EREPORT, [at(5), at(6), at(7)]);
    assert_eq!(report[0], enclu_outcome::DONE_NO_CODE);
    let mut page = [0; 4096];
    thread.read_page(&enclave, 7, &mut page);
    assert_ne!(page[64..96], [0; 32], "MRENCLAVE is in the report");
    // KEYNAME 4 is the seal key; policy MRENCLAVE.
    put(&mut thread, &enclave, 8, &[4, 0, 1, 0]);
    let key = enclu(&mut thread, &enclave, EGETKEY, [at(8), at(9), 0]);
    assert_eq!(key[0], enclu_outcome::DONE);
    assert_eq!(
        enclu(&mut thread, &enclave, EREPORT, [at(5) + 1, at(6), at(7)])[..2],
        [enclu_outcome::EXCEPTION, 13]
    );
    assert_eq!(enclu(&mut thread, &enclave, 77, [0; 3])[..2], [enclu_outcome::EXCEPTION, 13]);
    drop((thread, client, enclave));
    assert_empty(&machine);
}

#[test]
fn pages_are_added_accepted_and_restricted() {
    if skip() {
        return;
    }
    let machine = machine(128);
    let (client, mut thread, enclave) = enclave(&machine);
    let at = |index: u64| enclave.base + index * PAGE;
    // SECINFO: REG, R and W, PENDING.
    put(&mut thread, &enclave, 5, &(0x203_u64 | 8).to_le_bytes());
    // The leaf first: its operand is added by the fault that it takes.
    assert_eq!(enclu(&mut thread, &enclave, EACCEPT, [at(5), at(30), 0])[..2], [enclu_outcome::DONE, 0]);
    let shown = enclave.window().word32(PAGES_OFFSET + 30 * 4).load(SeqCst);
    assert_eq!(shown, entry::MAPPED | entry::PRESENT | entry::R | entry::W, "it needs no second fault");
    let mut page = [0; 4096];
    thread.read_page(&enclave, 30, &mut page);
    assert_eq!(page, [0; 4096]);
    // An access first: it is refused until the page is accepted.
    assert_eq!(thread.fault(&enclave, 31, WRITE, fault_kind::ACCESS).0, outcome::SGX_FAULT);
    assert_eq!(enclu(&mut thread, &enclave, EACCEPT, [at(5), at(31), 0])[..2], [enclu_outcome::DONE, 0]);
    put(&mut thread, &enclave, 31, b"hello");

    // Restricted to R: the mapping goes, and comes back narrower.
    let argument = [31 * PAGE, PAGE, 1, 0, 0];
    thread.set(0x400, &argument.map(u64::to_le_bytes).concat());
    thread.set_inside(enclave.handle, 1);
    let start = Instant::now();
    assert_eq!(thread.ioctl(enclave.handle, RESTRICT_PERMISSIONS, 0x400), 0);
    assert!(start.elapsed() < PATIENCE, "{:#?}", machine.stats());
    thread.set_inside(0, 0);
    assert_eq!(thread.fault(&enclave, 31, WRITE, fault_kind::ACCESS).0, outcome::SGX_FAULT);
    let (outcome, shown) = thread.fault(&enclave, 31, READ, fault_kind::ACCESS);
    assert_eq!((outcome, shown as u32), (outcome::MAPPED, entry::MAPPED | entry::PRESENT | entry::R));
    // SECINFO: REG, R, PR.
    put(&mut thread, &enclave, 5, &(0x201_u64 | 32).to_le_bytes());
    assert_eq!(enclu(&mut thread, &enclave, EACCEPT, [at(5), at(31), 0])[..2], [enclu_outcome::DONE, 0]);
    thread.read_page(&enclave, 31, &mut page);
    assert_eq!(&page[..5], b"hello");
    drop((thread, client, enclave));
    assert_empty(&machine);
}

#[test]
fn a_thread_that_does_not_answer_kicks_holds_up_nobody() {
    if skip() {
        return;
    }
    let machine = machine(80);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let sleeper = client.thread();
    let enclave = thread.build(&Image::data(fresh_base(), 150), true);
    sleeper.set_inside(enclave.handle, 1);
    let mut page = [0; 4096];
    let start = Instant::now();
    for index in 1..=150 {
        thread.read_page(&enclave, index, &mut page);
        assert_eq!(page[0], index as u8);
    }
    let stats = machine.stats();
    assert!(stats.kicks > 0 && stats.evictions > 0, "{stats:#?}");
    assert!(start.elapsed() < PATIENCE, "{stats:#?}");
    // Only the first one waits to the end of the bound of 10 ms, and perhaps another one at the same time.
    let kicks = &stats.latencies.kick;
    let median = kicks.quantile(0.5).expect("there were kicks");
    assert!(kicks.count() > 4 && median < Duration::from_millis(10), "{kicks:?} of {stats:#?}");
    // The kicks arrived.
    let mut byte = [0];
    assert!(usgx_sys::socket::receive(&sleeper.kick, &mut byte).is_ok_and(|received| received.length == 1));
    drop((thread, sleeper, client, enclave));
    assert_empty(&machine);
}

#[test]
fn the_provisioning_device_is_known_by_its_socket() {
    use std::os::fd::AsRawFd;
    if skip() {
        return;
    }
    let machine = machine(80);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let enclave = thread.build(&Image::data(fresh_base(), 1), false);
    let provision = client.open_provision();
    let other = client.open();
    thread.set(0x100, &(provision.as_raw_fd() as u64).to_le_bytes());
    assert_eq!(thread.ioctl(enclave.handle, common::PROVISION, 0x100), 0);
    thread.set(0x100, &(other.as_raw_fd() as u64).to_le_bytes());
    assert_eq!(thread.ioctl(enclave.handle, common::PROVISION, 0x100), -22);
    thread.set(0x100, &u64::MAX.to_le_bytes());
    assert_eq!(thread.ioctl(enclave.handle, common::PROVISION, 0x100), -22);
    drop((thread, client, enclave, provision, other));
    assert_empty(&machine);
}
