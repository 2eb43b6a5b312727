//! Leaves on several threads at once.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use usgx_isa::{EvictedPage, VaSlot};

const ROUNDS: usize = 500;

/// Each thread evicts and loads a page of its own; SECS and VA page are shared, which must never conflict.
#[test]
fn evictions_of_different_pages_do_not_disturb_each_other() {
    let (cpu, _) = enclave();
    let pages: Vec<EpcPage> = (FREE.0..FREE.0 + 4).map(EpcPage).collect();
    for &page in &pages {
        cpu.eaug(page, SECS, at(page)).expect("EAUG");
        write(&cpu, page, 0, &[page.0 as u8; 4096]);
    }
    std::thread::scope(|scope| {
        for &page in &pages {
            let cpu = &cpu;
            scope.spawn(move || {
                let slot = VaSlot { page: VA, index: page.0 as u16 };
                let mut out = EvictedPage::default();
                for _ in 0..ROUNDS {
                    cpu.eblock(page).expect("EBLOCK");
                    // Another thread's ETRACK at the same moment is a conflict, and serves as well.
                    while cpu.ewb(page, slot, &mut out) == Err(code(SgxCode::NotTracked)) {
                        let _conflict = cpu.etrack(SECS);
                    }
                    assert_eq!(cpu.epcm(page), None);
                    cpu.eldu(page, slot, at(page), Some(SECS), &out).expect("ELDU");
                    assert_eq!(read::<4096>(cpu, page, 0), [page.0 as u8; 4096]);
                }
            });
        }
    });
    assert_eq!(cpu.enclave(SECS).expect("an SECS").nr_children, 8);
}

/// Two loads of one evicted page: exactly one may succeed.
#[test]
fn a_version_is_good_for_one_load() {
    let (cpu, _) = enclave();
    let slot = VaSlot { page: VA, index: 0 };
    let mut out = EvictedPage::default();
    let mut home = DATA;
    for _ in 0..ROUNDS {
        block_and_track(&cpu, home);
        cpu.ewb(home, slot, &mut out).expect("EWB");
        let targets = [DATA, FREE];
        let results = std::thread::scope(|scope| {
            let load = |target| cpu.eldu(target, slot, at(DATA), Some(SECS), &out);
            let [first, second] = targets.map(|target| scope.spawn(move || load(target)));
            [first, second].map(|loader| loader.join().expect("no panic"))
        });
        let loaded: Vec<_> = targets.iter().zip(results).filter(|(_, result)| result.is_ok()).collect();
        assert_eq!(loaded.len(), 1, "{results:?}");
        home = *loaded[0].0;
    }
}

/// A program that runs EGETKEY in a loop can not make EWB fail, and never writes into the next owner's page.
#[test]
fn user_leaves_do_not_get_in_the_way_of_eviction() {
    let (cpu, _) = enclave();
    let slot = VaSlot { page: VA, index: 0 };
    let stop = AtomicBool::new(false);
    // KEYNAME of a seal key.
    write(&cpu, SSA, 0, &[4]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let (rbx, rcx) = (at(SSA), at(DATA));
                    match cpu.egetkey(SECS, rbx, rcx, &map()) {
                        Ok(()) | Err(EncluError::PageFault { .. }) => {}
                        other => panic!("{other:?}"),
                    }
                    cpu.store_implicit(DATA, 64, &[1; 64]);
                }
            });
        }
        let evictor = scope.spawn(|| {
            let mut out = EvictedPage::default();
            for _ in 0..ROUNDS {
                block_and_track(&cpu, DATA);
                cpu.ewb(DATA, slot, &mut out).expect("EWB");
                // The page's next owner.
                cpu.epa(DATA).expect("EPA");
                assert_eq!(read::<64>(&cpu, DATA, 0), [0; 64]);
                cpu.eremove(DATA).expect("EREMOVE");
                cpu.eldu(DATA, slot, at(DATA), Some(SECS), &out).expect("ELDU");
            }
        });
        let evicted = evictor.join();
        // In any case: the scope waits for those who look at it.
        stop.store(true, Ordering::Relaxed);
        evicted.expect("evictions");
    });
}
