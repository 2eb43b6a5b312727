//! What a call costs. Not a check: `cargo test --release --test cost -- --ignored --nocapture` prints it.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::{Duration, Instant};

use common::{TestClient, door, fresh_base, machine, skip};
use usgx_testkit::Image;

#[test]
#[ignore = "a measurement"]
fn round_trips_and_faults() {
    if skip() {
        return;
    }
    let machine = machine(4096);
    let door = door(&machine);
    let client = TestClient::connect(&door, [0; 2]);
    let mut thread = client.thread();
    for pause in [0_u32, 5, 50, 500] {
        let mut busy = Duration::ZERO;
        let rounds = 20_000 / (1 + pause / 10);
        for _ in 0..rounds {
            // What a program does between two calls.
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(u64::from(pause)) {}
            let start = Instant::now();
            thread.call(&[99]);
            busy += start.elapsed();
        }
        println!("empty call, {pause} us apart: {:.2} us", busy.as_secs_f64() * 1e6 / f64::from(rounds));
    }
    let enclave = thread.build(&Image::data(fresh_base(), 3000), false);
    let mut page = [0; 4096];
    let start = Instant::now();
    (1..=3000).for_each(|index| thread.read_page(&enclave, index, &mut page));
    println!("first touch of a resident page: {:.2} us", start.elapsed().as_secs_f64() * 1e6 / 3000.0);
    drop(enclave);

    let start = Instant::now();
    let enclave = thread.build(&Image::data(fresh_base(), 8000), false);
    println!("build with paging: {:.2} us a page", start.elapsed().as_secs_f64() * 1e6 / 8000.0);
    let start = Instant::now();
    (1..=8000).for_each(|index| thread.read_page(&enclave, index, &mut page));
    println!("touch of an evicted page, EPC full: {:.2} us", start.elapsed().as_secs_f64() * 1e6 / 8000.0);
    println!("{:#?}", machine.stats());
}
