//! Clients that are processes: killed, forked, and of a machine that several share.
//!
//! A child is this test program again, told by its environment to play [`child`].
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{PATIENCE, TestClient, TestEnclave, assert_empty, door, fresh_base, machine, raw, skip};
use usgx_machine::client::{Request, Response, control, open_door};
use usgx_sys::process::effective_uid;
use usgx_testkit::Image;
use usgx_wire::channel::op;

/// One test at a time: a child inherits what another test means for its own child.
static ALONE: Mutex<()> = Mutex::new(());

/// Starts this program as a child that inherits descriptors, and waits until it says that it is ready.
fn spawn(role: &str, fds: &[&OwnedFd], extra: &[u64]) -> Child {
    let numbers: Vec<String> =
        fds.iter().map(|fd| fd.as_raw_fd().to_string()).chain(extra.iter().map(u64::to_string)).collect();
    fds.iter().for_each(|fd| raw::inherit(fd));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--ignored"])
        .env("USGX_TEST_ROLE", format!("{role} {}", numbers.join(" ")))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("ready")), "the child fails");
    // The child's harness has more to say, and fails if nobody listens.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

#[test]
#[ignore = "played by children of the other tests"]
fn child() {
    let Ok(role) = std::env::var("USGX_TEST_ROLE") else { return };
    let mut words = role.split(' ');
    let role = words.next().unwrap();
    let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
    let fd = |at: usize| raw::take_inherited(numbers[at] as i32);
    match role {
        // Builds an enclave larger than the EPC, and waits to be killed.
        "victim" => {
            let client = TestClient::connect(&fd(0), [0; 2]);
            let mut thread = client.thread();
            let _enclave = thread.build(&Image::data(fresh_base(), 150), false);
            println!("\nready");
            std::thread::sleep(Duration::from_secs(60));
        }
        // Shares its parent's enclave, as a fork's child does: adds 1 to each page's first byte.
        "forked" => {
            let (door, device) = (fd(0), fd(1));
            let [low, high, base, size, pages] = numbers[2..7] else { panic!("five numbers") };
            let client = TestClient::connect(&door, [low, high]);
            let mut thread = client.thread();
            let (handle, view, window) = client.attach(&device);
            let mut enclave = TestEnclave { device: Some(device), handle, base, size, view, window };
            thread.map(&mut enclave);
            let mut page = [0; 4096];
            for index in 1..=pages {
                thread.read_page(&enclave, index, &mut page);
                assert_eq!(page[0], index as u8);
                page[0] = page[0].wrapping_add(1);
                thread.write_page(&enclave, index, &page);
            }
            println!("\nready");
        }
        other => panic!("no such role: {other}"),
    }
}

#[test]
fn a_killed_client_gives_everything_back() {
    if skip() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let machine = machine(100);
    let door = door(&machine);
    let mut victims: Vec<Child> = (0..2).map(|_| spawn("victim", &[&door], &[])).collect();
    let stats = machine.stats();
    assert_eq!((stats.enclaves, stats.clients.len()), (2, 2), "{stats:#?}");
    assert_eq!(stats.clients[0].pid, victims[0].id(), "{stats:#?}");
    assert!(stats.clients.iter().any(|client| client.evicted_pages > 0), "{stats:#?}");
    for victim in &mut victims {
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
    assert_empty(&machine);
}

#[test]
fn a_stopped_client_holds_up_nobody() {
    if skip() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let machine = machine(100);
    let door = door(&machine);
    let mut victim = spawn("victim", &[&door], &[]);
    raw::signal(&victim, libc::SIGSTOP);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let start = Instant::now();
    let enclave = thread.build(&Image::data(fresh_base(), 150), false);
    let mut page = [0; 4096];
    for index in 1..=150 {
        thread.read_page(&enclave, index, &mut page);
        assert_eq!(page[0], index as u8);
    }
    assert!(start.elapsed() < PATIENCE, "{:#?}", machine.stats());
    victim.kill().unwrap();
    victim.wait().unwrap();
    drop((thread, client, enclave));
    assert_empty(&machine);
}

#[test]
fn a_forked_child_shares_the_enclave() {
    if skip() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let machine = machine(100);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let mut enclave = thread.build(&Image::data(fresh_base(), 150), false);
    let mut page = [0; 4096];
    for index in 1..=150 {
        thread.read_page(&enclave, index, &mut page);
    }
    let ticket = client.request(op::FORK, [0; 4], None).values;
    let device = enclave.device.take().unwrap();
    let extra = [ticket[0], ticket[1], enclave.base, enclave.size, 150];
    let mut child = spawn("forked", &[&door, &device], &extra);
    assert!(child.wait().unwrap().success());
    for index in 1..=150 {
        thread.read_page(&enclave, index, &mut page);
        assert_eq!(page[0], (index as u8).wrapping_add(1), "what the child has written");
        page[0] = 99;
        thread.write_page(&enclave, index, &page);
    }
    // Used once, a ticket is worth nothing.
    let again = TestClient::connect(&door, [ticket[0], ticket[1]]);
    let mut stranger = again.thread();
    assert_eq!(stranger.ioctl(enclave.handle, common::CREATE, 0), -9);
    // And a fresh one is worth the handles.
    let ticket = client.request(op::FORK, [0; 4], None).values;
    let heir = TestClient::connect(&door, [ticket[0], ticket[1]]);
    let mut other = heir.thread();
    assert_eq!(other.ioctl(enclave.handle, common::CREATE, 0), -22, "created already");
    drop((thread, stranger, other, client, again, heir, enclave, device));
    assert_empty(&machine);
}

#[test]
fn a_shared_machine_listens_reports_and_stops() {
    if skip() {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = std::env::temp_dir().join(format!("usgx-test-{}.sock", std::process::id()));
    let machine = machine(100);
    machine.listen(&path, 0o666).unwrap();
    assert!(machine.listen(&path, 0o666).is_err(), "somebody listens there already");
    let door = open_door(&path).unwrap();
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let enclave = thread.build(&Image::data(fresh_base(), 30), true);
    let Response::Status { stats } = control(&path, Request::Status).unwrap() else { panic!("a status") };
    assert_eq!((stats.enclaves, stats.epc_total_pages, stats.clients.len()), (1, 100, 1), "{stats:#?}");
    assert_eq!(stats.clients[0].pid, std::process::id(), "{stats:#?}");
    assert_eq!(stats.clients[0].uid, effective_uid(), "{stats:#?}");
    assert_eq!(stats.clients[0].resident_pages, 31, "{stats:#?}");
    // The pages, the SECS and the VA page; for the last there is a root page now.
    assert_eq!(control(&path, Request::Shrink).unwrap(), Response::Shrunk { pages: 32 });
    let Response::Status { stats } = control(&path, Request::Status).unwrap() else { panic!("a status") };
    assert_eq!((stats.epc_free_pages, stats.clients[0].resident_pages), (99, 0), "{stats:#?}");
    assert_eq!(control(&path, Request::Stop).unwrap(), Response::Stopping);
    machine.run_until_stopped();
    machine.run_until_idle();
    drop(machine);
    assert!(!path.exists());
    assert!(control(&path, Request::Status).is_err());
    // The client finds out.
    assert!(client.try_request(op::FORK, [0; 4], None).is_none());
    assert!(thread.finish_call().is_none(), "the slot is closed");
    drop(enclave);
}
