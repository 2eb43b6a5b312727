//! Clients that send nonsense, from a seed: nobody else notices, and nothing is left of them.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};

use common::{
    Random, TestClient, TestThread, assert_empty, door, fresh_base, hello_bytes, machine, request_bytes,
    skip, wait_for,
};
use usgx_sys::memfd::Memfd;
use usgx_sys::socket;
use usgx_testkit::Image;
use usgx_wire::process::{SLOT_STRIDE, SLOTS_OFFSET};

/// A number that a careless server trips over.
fn nasty(random: &mut Random) -> u64 {
    const VALUES: [u64; 14] = [
        0,
        1,
        2,
        4095,
        4096,
        4097,
        1 << 31,
        1 << 32,
        1 << 47,
        1 << 63,
        u64::MAX,
        u64::MAX - 4095,
        0x5000_0000_0000,
        7,
    ];
    match random.below(3) {
        0 => random.next(),
        1 => VALUES[random.below(VALUES.len() as u64) as usize].wrapping_add(random.below(3)),
        _ => random.below(64),
    }
}

/// A descriptor that is not what it should be.
fn wrong_fd(random: &mut Random) -> OwnedFd {
    match random.below(4) {
        0 => std::fs::File::open("/dev/null").unwrap().into(),
        1 => socket::pair().unwrap().0,
        2 => Memfd::create("wrong").unwrap().as_fd().try_clone_to_owned().unwrap(),
        _ => usgx_sys::uffd::Userfaultfd::create().unwrap().as_fd().try_clone_to_owned().unwrap(),
    }
}

/// Anything on a door: noise, or a Hello that is wrong somewhere.
fn abuse_door(door: &OwnedFd, random: &mut Random) {
    for _ in 0..20 {
        let mut bytes =
            if random.below(2) == 0 { hello_bytes([0; 2]) } else { vec![0; random.below(600) as usize] };
        if !bytes.is_empty() {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        } else {
            bytes.push(b'{');
        }
        let fds: Vec<_> = (0..random.below(4)).map(|_| wrong_fd(random)).collect();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        // A full door is the machine's way to say "later".
        let _ = socket::send(door, &bytes, &fds);
    }
}

/// Requests with wrong numbers and descriptors, until the machine has enough.
fn abuse_channel(client: &Arc<TestClient>, random: &mut Random) {
    for _ in 0..20 {
        let op = random.below(9) as u32;
        let args = std::array::from_fn(|_| nasty(random));
        match random.below(4) {
            0 => {
                let fds: Vec<_> = (0..random.below(4)).map(|_| wrong_fd(random)).collect();
                let mut bytes = request_bytes(op, args);
                bytes.truncate(1 + random.below(45) as usize);
                client.send_raw(&bytes, &fds);
                return;
            }
            1 => {
                let fd = wrong_fd(random);
                if client.try_request(op, args, Some(fd)).is_none() {
                    return;
                }
            }
            _ => {
                if client.try_request(op, args, None).is_none() {
                    return;
                }
            }
        }
    }
}

/// Tells the threads that look at it to end, also when the test has failed: a scope waits for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Calls with wrong numbers; and a thread that writes noise into its own slots meanwhile.
fn abuse_slots(thread: &mut TestThread, handle: u64, base: u64, random: &mut Random) {
    let client = Arc::clone(&thread.client);
    let stop = AtomicBool::new(false);
    let seed = random.next();
    let noisy = random.below(2) == 0;
    std::thread::scope(|scope| {
        if noisy {
            scope.spawn(|| {
                let mut random = Random(seed);
                while !stop.load(Relaxed) {
                    // Words and `inside`, not `turn`: that is the next test.
                    let at = SLOTS_OFFSET
                        + random.below(4) as usize * SLOT_STRIDE
                        + 8 * (1 + random.below(20)) as usize;
                    client.region().word64(at).store(nasty(&mut random), SeqCst);
                }
            });
        }
        let _stop = Stop(&stop);
        for _ in 0..40 {
            let enclave = if random.below(4) == 0 { nasty(random) } else { handle };
            let mut words: Vec<u64> = vec![random.below(12), enclave];
            words.extend((0..8).map(|_| match random.below(3) {
                0 => base + random.below(1 << 18),
                1 => random.below(8) * 4096,
                _ => nasty(random),
            }));
            if random.below(4) == 0 {
                const COMMANDS: [u64; 9] = [
                    0x4008_a400,
                    0xc030_a401,
                    0x4008_a402,
                    0x4008_a403,
                    0xc028_a405,
                    0xc028_a406,
                    0xc018_a407,
                    0xa404,
                    0,
                ];
                words[0] = 2;
                words[2] = COMMANDS[random.below(9) as usize];
                words[3] = 0x200;
                let argument: Vec<u8> = (0..6).flat_map(|_| nasty(random).to_le_bytes()).collect();
                thread.set(0x200, &argument);
            }
            if thread.try_call(&words).is_none() {
                break;
            }
        }
    });
}

#[test]
fn nonsense_harms_only_its_sender() {
    if skip() {
        return;
    }
    let machine = machine(128);
    let honest_door = door(&machine);
    let honest = TestClient::connect(&honest_door, [0; 2]);
    let mut thread = honest.thread();
    let enclave = thread.build(&Image::data(fresh_base(), 60), true);
    let mut page = [0; 4096];

    let rounds = std::env::var("USGX_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    for seed in 0..rounds {
        let mut random = Random(seed * 7919 + 1);
        let door = door(&machine);
        if random.below(3) == 0 {
            abuse_door(&door, &mut random);
        }
        // Ends at any step.
        let steps = random.below(6);
        if steps == 0 {
            continue;
        }
        let client = TestClient::connect(&door, [random.next(), random.next()]);
        if steps > 1 {
            let mut thread = client.thread();
            if steps > 2 {
                let image = Image::data(fresh_base(), 1 + random.below(100));
                let enclave = thread.build(&image, random.below(2) == 0);
                if steps > 3 {
                    abuse_slots(&mut thread, enclave.handle, enclave.base, &mut random);
                }
                if random.below(2) == 0 {
                    thread.start_call(&[random.below(12), enclave.handle, enclave.base]);
                }
            }
        }
        if steps > 4 {
            abuse_channel(&client, &mut random);
        }
        drop(client);
        let index = 1 + seed % 60;
        thread.read_page(&enclave, index, &mut page);
        assert_eq!(page[0], index as u8, "the honest client's page after seed {seed}");
    }
    wait_for(&machine, "the honest one is left", |stats| stats.enclaves == 1 && stats.clients.len() == 1);
    drop((thread, honest, enclave));
    assert_empty(&machine);
}

/// The word that workers sleep on, written at random, and the channel closed while that goes on.
#[test]
fn a_client_that_plays_with_turns_ends_all_the_same() {
    if skip() {
        return;
    }
    let machine = machine(128);
    for seed in 0..10 {
        let door = door(&machine);
        let client = TestClient::connect(&door, [0; 2]);
        let mut thread = client.thread();
        let enclave = thread.build(&Image::data(fresh_base(), 10), true);
        let others: Vec<_> = (0..4).map(|_| client.thread()).collect();
        let mut random = Random(seed);
        for _ in 0..20_000 {
            let at = SLOTS_OFFSET + random.below(5) as usize * SLOT_STRIDE;
            let word = client.region().word32(at);
            word.store(random.below(7) as u32, SeqCst);
            if random.below(8) == 0 {
                client.region().word64(at + 8).store(random.below(12), SeqCst);
                client.region().word64(at + 16).store(enclave.handle, SeqCst);
                usgx_sys::futex::wake_all(word);
            }
        }
        drop((thread, others, client, enclave));
    }
    assert_empty(&machine);
}

/// Before CREATE the view and the window have no seals, so a client can spoil them: for itself.
#[test]
fn a_spoilt_window_harms_only_its_owner() {
    if skip() {
        return;
    }
    let machine = machine(128);
    let door = door(&machine);
    for spoil_view in [false, true] {
        let client = TestClient::connect(&door, [0; 2]);
        let mut thread = client.thread();
        let device = client.open();
        let (handle, view, window) = client.attach(&device);
        Memfd::from(if spoil_view { view } else { window }).seal_size(12288).unwrap();
        let image = Image::data(fresh_base(), 4);
        thread.set(0x1000, &image.secs().0);
        thread.set(0x100, &0x1000_u64.to_le_bytes());
        assert_eq!(thread.ioctl(handle, common::CREATE, 0x100), 0);
        let words = [usgx_wire::slot::call::FAULT, handle, image.base, 4, 3, 0];
        assert_eq!(thread.call(&words)[1], usgx_wire::slot::outcome::SIGBUS);
    }
    assert_empty(&machine);
}
