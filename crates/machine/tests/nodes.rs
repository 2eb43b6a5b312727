//! An EPC on several NUMA nodes: pages come from the nearest one first, and from the others when it has none.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{TestClient, assert_empty, door, fresh_base, machine_of, skip};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use usgx_machine::NodeInfo;
use usgx_testkit::Image;

/// Makes this thread, and those that it starts, stay on one processor, and so near one node.
fn stay() {
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    sched_setaffinity(None, &here).unwrap();
}

/// The first has handed out pages to threads near it; in which order they are there.
fn home_first(nodes: &[NodeInfo]) -> [&NodeInfo; 2] {
    let [zero, one] = nodes else { panic!("two nodes: {nodes:?}") };
    assert_eq!([zero.node, one.node], [0, 1]);
    if zero.hits > 0 { [zero, one] } else { [one, zero] }
}

#[test]
fn the_near_node_comes_first_and_then_the_next() {
    if skip() {
        return;
    }
    stay();
    let machine = machine_of(&[64, 64]);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    // With its SECS, TCS and VA page.
    let first = thread.build(&Image::data(fresh_base(), 40), true);
    let stats = machine.stats();
    let [home, away] = home_first(&stats.nodes);
    assert_eq!((home.sgx_total_bytes, away.sgx_total_bytes), (64 * 4096, 64 * 4096), "{:#?}", stats.nodes);
    assert_eq!((home.hits, home.foreign, home.usgx_free_bytes), (43, 0, 21 * 4096), "{:#?}", stats.nodes);
    assert_eq!((away.hits, away.misses, away.usgx_free_bytes), (0, 0, 64 * 4096), "{:#?}", stats.nodes);
    let second = thread.build(&Image::data(fresh_base(), 40), true);
    let stats = machine.stats();
    let [home, away] = home_first(&stats.nodes);
    assert_eq!((home.hits, home.foreign, home.usgx_free_bytes), (64, 22, 0), "{:#?}", stats.nodes);
    assert_eq!((away.hits, away.misses, away.usgx_free_bytes), (0, 22, 42 * 4096), "{:#?}", stats.nodes);
    // More than both have: pages are evicted from both, and come back to either. What is read is right, wherever it is.
    let third = thread.build(&Image::data(fresh_base(), 80), true);
    let mut page = [0; 4096];
    for (enclave, pages) in [(&first, 40), (&second, 40), (&third, 80_u64)] {
        for index in 1..=pages {
            thread.read_page(enclave, index, &mut page);
            assert_eq!(page[..8], index.to_le_bytes());
        }
    }
    let stats = machine.stats();
    assert!(stats.evictions > 30 && stats.nodes.iter().all(|node| node.freed > 64), "{:?}", stats.nodes);
    drop((thread, client, first, second, third));
    assert_empty(&machine);
    let stats = machine.stats();
    assert!(stats.nodes.iter().all(|node| node.usgx_free_bytes == 64 * 4096), "{:?}", stats.nodes);
}
