//! The lock order is checked: whoever takes a lock where he must not panics, on every such way, without a second thread.
#![cfg(debug_assertions)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use usgx_testkit::{Image, System};

const BASE: u64 = 0x7000_0000_0000;

/// What `f` panics with.
fn panics(f: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("it panics");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_wrong_order_panics() {
    let system = System::with_epc_pages(64);
    let [one, other] = [BASE, BASE + (1 << 32)].map(|base| system.build(&Image::data(base, 20)));
    for enclave in [&one, &other] {
        // The lock of an enclave, while one is held.
        let message = panics(|| one.with_pages(|_, _| enclave.stats().pages).map_or((), |_| ()));
        assert_eq!(message, "lock order: enclave.state must not be taken with these held: enclave.state");
    }
    let message = panics(|| drop(one.with_pages(|_, _| system.driver.enclave_stats())));
    assert_eq!(message, "lock order: registry must not be taken with these held: enclave.state");
    let message = panics(|| one.with_pages(|_, _| system.driver.ksgxd_pass()).map_or((), |_| ()));
    assert_eq!(message, "lock order: a reclaim pass with these held: enclave.state");
    // The right order, by the same thread: nothing of what went wrong is left.
    assert!(one.with_pages(|_, _| system.driver.node_stats()).is_ok());
    system.evict_all();
    system.check_invariants();
}
