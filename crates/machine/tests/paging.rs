//! Enclaves larger than the EPC: every byte comes back.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;

use common::{
    Random, TestClient, TestEnclave, TestThread, assert_empty, door, fresh_base, machine, settled, skip,
    wait_for,
};
use usgx_testkit::Image;

/// What page `index` holds after its `version`-th write.
fn pattern(index: u64, version: u64) -> [u8; 4096] {
    let mut page = [0; 4096];
    for (at, chunk) in (0_u64..).zip(page.chunks_exact_mut(8)) {
        chunk.copy_from_slice(&(index << 40 | version << 16 | at).to_le_bytes());
    }
    page
}

/// Writes and checks the pages of an enclave at random; returns it, for who wants it to live on.
fn churn(client: &Arc<TestClient>, image: &Image, seed: u64, rounds: u64) -> (TestThread, TestEnclave) {
    let mut thread = client.thread();
    let enclave = thread.build(image, false);
    churn_pages(&mut thread, &enclave, 1..image.pages.len() as u64, seed, rounds);
    (thread, enclave)
}

/// Writes and checks pages of an enclave, which are this thread's alone, at random.
fn churn_pages(
    thread: &mut TestThread,
    enclave: &TestEnclave,
    pages: std::ops::Range<u64>,
    seed: u64,
    rounds: u64,
) {
    let count = pages.end - pages.start;
    let mut versions = vec![0; count as usize];
    let (mut random, mut page) = (Random(seed), [0; 4096]);
    for index in pages.clone() {
        thread.read_page(enclave, index, &mut page);
        assert_eq!(page[..8], index.to_le_bytes(), "page {index} as it was added");
        thread.write_page(enclave, index, &pattern(index, 0));
    }
    for _ in 0..rounds {
        // Runs, as programs have them, and single pages.
        let (start, run) = (random.below(count), 1 + random.below(8));
        for (index, version) in pages.clone().zip(&mut versions).skip(start as usize).take(run as usize) {
            thread.read_page(enclave, index, &mut page);
            assert!(page == pattern(index, *version), "page {index}");
            if random.below(2) == 0 {
                *version += 1;
                thread.write_page(enclave, index, &pattern(index, *version));
            }
        }
    }
}

#[test]
fn every_byte_survives_oversubscription() {
    if skip() {
        return;
    }
    let machine = machine(160);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    churn(&client, &Image::data(fresh_base(), 400), 1, 400);
    let stats = machine.stats();
    assert!(stats.evictions > 400 && stats.loads > 400 && stats.remaps > 0, "it was paged: {stats:#?}");
    drop(client);
    assert_empty(&machine);
    drop(door);
    machine.run_until_idle();
}

#[test]
fn pages_that_were_just_faulted_in_are_spared() {
    if skip() {
        return;
    }
    let machine = machine(160);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let enclave = thread.build(&Image::data(fresh_base(), 120), false);
    let mut page = [0; 4096];
    for index in 1..=40 {
        thread.read_page(&enclave, index, &mut page);
    }
    let stats = settled(&machine);
    assert_eq!((stats.mapped_pages, stats.evictions), (40, 0), "{stats:#?}");
    // Free pages fall below the low mark, and ksgxd goes over all that are mapped, which are the oldest.
    let other = thread.build(&Image::data(fresh_base(), 20), false);
    let stats = settled(&machine);
    assert_eq!(stats.mapped_pages, 16, "the last ones of the thread: {stats:#?}");
    for index in 25..=40 {
        thread.read_page(&enclave, index, &mut page);
        assert_eq!(page[0], index as u8);
    }
    let after = machine.stats();
    assert_eq!(after.remaps, stats.remaps, "and no others: {after:#?}");
    drop((thread, client, enclave, other));
    assert_empty(&machine);
}

/// Between the marks nothing is reclaimed, however long that lasts.
#[test]
fn a_machine_with_enough_free_pages_leaves_the_others_alone() {
    if skip() {
        return;
    }
    let machine = machine(160);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let enclave = thread.build(&Image::data(fresh_base(), 120), false);
    // ksgxd looks around every second, for memory to give back.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let stats = settled(&machine);
    assert!((20..40).contains(&stats.epc_free_pages), "between the marks: {stats:#?}");
    assert_eq!((stats.reclaim_scans, stats.evictions), (0, 0), "{stats:#?}");
    drop((thread, client, enclave));
    assert_empty(&machine);
}

#[test]
fn threads_of_one_enclave_reclaim_beside_each_other() {
    if skip() {
        return;
    }
    let machine = machine(160);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let enclave = client.thread().build(&Image::data(fresh_base(), 400), false);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (client, enclave) = (&client, &enclave);
            // Ranges that meet in the middle of what a pass takes at once.
            let pages = 1 + seed * 100..1 + (seed + 1) * 100;
            scope.spawn(move || churn_pages(&mut client.thread(), enclave, pages, seed, 150));
        }
    });
    let stats = machine.stats();
    assert!(stats.evictions > 400 && stats.loads > 400, "it was paged: {stats:#?}");
    drop(enclave);
    drop(client);
    assert_empty(&machine);
}

#[test]
fn several_clients_share_a_small_epc() {
    if skip() {
        return;
    }
    let machine = machine(256);
    let door = door(&machine);
    let enclaves: Vec<_> = std::thread::scope(|scope| {
        let work = |seed| {
            let door = &door;
            move || {
                let client = TestClient::connect(door, [0; 2]);
                churn(&client, &Image::data(fresh_base(), 150), seed, 100)
            }
        };
        let clients = [0, 1, 2, 3].map(|seed| scope.spawn(work(seed)));
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    // Each lives until the last one is through: one after the other they would all fit.
    let stats = machine.stats();
    assert!(stats.evictions > 100, "it was paged: {stats:#?}");
    drop(enclaves);
    assert_empty(&machine);
}

#[test]
fn a_closed_device_lives_on_in_its_mapping() {
    if skip() {
        return;
    }
    let machine = machine(128);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    let mut enclave = thread.build(&Image::data(fresh_base(), 20), false);
    enclave.device = None;
    std::thread::sleep(std::time::Duration::from_millis(100));
    let mut page = [0; 4096];
    thread.read_page(&enclave, 7, &mut page);
    assert_eq!(page[0], 7);
    assert_eq!(machine.stats().enclaves, 1);
    let words = [usgx_wire::slot::call::UNREGISTER, enclave.handle, enclave.base, enclave.size];
    assert_eq!(thread.call(&words)[1], 0);
    wait_for(&machine, "the enclave ends with its last mapping", |stats| stats.enclaves == 0);
    // Its handle names nothing now.
    assert_eq!(thread.ioctl(enclave.handle, common::CREATE, 0), -9);
}

#[test]
fn a_swap_file_serves_as_well() {
    if skip() {
        return;
    }
    let config = usgx_machine::MachineConfig {
        epc_bytes: vec![128 * 4096],
        swap: Some(std::env::temp_dir()),
        ..usgx_machine::MachineConfig::default()
    };
    let machine = usgx_machine::Machine::new(config).unwrap();
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    churn(&client, &Image::data(fresh_base(), 200), 5, 50);
    drop(client);
    assert_empty(&machine);
}
