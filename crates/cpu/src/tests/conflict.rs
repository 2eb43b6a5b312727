//! What leaves report when another leaf has a page they need: the concurrency tables.

use super::*;
use usgx_isa::{EvictedPage, VaSlot};

use crate::lock::{Held, PageLock};

const CONFLICT: LeafError = code(SgxCode::EpcPageConflict);
const SLOT: VaSlot = VaSlot { page: VA, index: 0 };

/// A way to take a page.
type Take = for<'a> fn(&'a PageLock) -> Option<Held<'a>>;
/// A leaf, run on the pages of [`enclave`].
type Leaf = fn(&Cpu) -> Result<(), LeafError>;

fn eldu(cpu: &Cpu) -> Result<(), LeafError> {
    let mut evicted = EvictedPage::default();
    evicted.pcmd.secinfo = secinfo(PT_REG | R);
    cpu.eldu(FREE, SLOT, at(FREE), Some(SECS), &evicted)
}

fn ewb(cpu: &Cpu) -> Result<(), LeafError> {
    cpu.ewb(DATA, SLOT, &mut EvictedPage::default()).map(|_| ())
}

fn eadd(cpu: &Cpu) -> Result<(), LeafError> {
    Ok(cpu.eadd(FREE, SECS, at(FREE), &Page::ZERO, &secinfo(PT_REG | R))?)
}

/// Runs `leaf` while `page` is taken, and again when it is free.
fn outcomes(cpu: &Cpu, take: Take, page: EpcPage, leaf: Leaf) -> [Result<(), LeafError>; 2] {
    let entry = cpu.entry(page).expect("in the EPC");
    let held = take(&entry.lock).expect("nobody else has it");
    let during = leaf(cpu);
    drop(held);
    [during, leaf(cpu)]
}

#[test]
fn conflicts_are_reported_as_the_tables_say() {
    let exclusive: Take = PageLock::exclusive;
    let shared: Take = PageLock::shared;
    let build_group: Take = PageLock::build;
    let track: Take = PageLock::track;
    let accept: Take = PageLock::accept;
    let table: [(&str, Take, EpcPage, Leaf, LeafError); 27] = [
        ("ECREATE", shared, FREE, |cpu| Ok(cpu.ecreate(FREE, &secs_page(0), &secinfo(0))?), GP),
        ("EADD target", shared, FREE, eadd, GP),
        ("EADD SECS", exclusive, SECS, eadd, GP),
        ("EADD build", build_group, SECS, eadd, GP),
        ("EEXTEND target", exclusive, DATA, |cpu| Ok(cpu.eextend(SECS, DATA, 0)?), GP),
        ("EEXTEND build", build_group, SECS, |cpu| Ok(cpu.eextend(SECS, DATA, 0)?), GP),
        ("EREMOVE", shared, DATA, |cpu| cpu.eremove(DATA), GP),
        ("EDBGRD", exclusive, DATA, |cpu| cpu.edbgrd(DATA, 0).map(|_| ()), GP),
        ("EDBGWR", exclusive, DATA, |cpu| cpu.edbgwr(DATA, 0, 0), GP),
        ("EPA", shared, FREE, |cpu| Ok(cpu.epa(FREE)?), GP),
        ("EBLOCK", exclusive, DATA, |cpu| cpu.eblock(DATA), CONFLICT),
        ("ETRACK SECS", exclusive, SECS, |cpu| cpu.etrack(SECS), GP),
        ("ETRACK track", track, SECS, |cpu| cpu.etrack(SECS), GP),
        ("EWB source", shared, DATA, ewb, GP),
        ("EWB VA page", exclusive, VA, ewb, GP),
        ("ELDU target", shared, FREE, eldu, GP),
        ("ELDU VA page", exclusive, VA, eldu, GP),
        ("ELDU SECS", exclusive, SECS, eldu, GP),
        ("EINIT SECS", exclusive, SECS, |cpu| einit(cpu, &sign(2, |_| ())), GP),
        ("EINIT build", build_group, SECS, |cpu| einit(cpu, &sign(2, |_| ())), GP),
        ("EAUG target", shared, FREE, |cpu| Ok(cpu.eaug(FREE, SECS, at(FREE))?), GP),
        ("EAUG SECS", exclusive, SECS, |cpu| Ok(cpu.eaug(FREE, SECS, at(FREE))?), GP),
        ("EMODPR target", exclusive, DATA, |cpu| cpu.emodpr(DATA, &secinfo(R)), GP),
        ("EMODPR accept", accept, DATA, |cpu| cpu.emodpr(DATA, &secinfo(R)), CONFLICT),
        ("EMODT target", shared, DATA, |cpu| cpu.emodt(DATA, &secinfo(PT_TRIM)), CONFLICT),
        ("EMODT accept", accept, DATA, |cpu| cpu.emodt(DATA, &secinfo(PT_TRIM)), CONFLICT),
        ("EBLOCK, shared", shared, DATA, |cpu| cpu.eblock(DATA), code(SgxCode::Blkstate)),
    ];
    for (what, take, page, leaf, expected) in table {
        let cpu = self::cpu();
        build(&cpu, 2);
        let needs_init = what.starts_with("EAUG") || what.starts_with("EMOD");
        if needs_init {
            einit(&cpu, &sign(2, |_| ())).expect("EINIT");
        }
        let [during, after] = outcomes(&cpu, take, page, leaf);
        if what == "EBLOCK, shared" {
            assert_eq!((during, after), (Ok(()), Err(expected)), "shared and shared agree");
            continue;
        }
        assert_eq!(during, Err(expected), "{what}");
        assert_ne!(after, Err(expected), "{what}");
    }
}

#[test]
fn a_slot_is_used_by_one_leaf_at_a_time() {
    let (cpu, _) = enclave();
    let claim = cpu.paging().claim(SLOT).expect("nobody uses it");
    assert_eq!(ewb(&cpu), Err(GP));
    assert_eq!(eldu(&cpu), Err(GP));
    let other = VaSlot { page: VA, index: 1 };
    assert!(cpu.paging().claim(other).is_some());
    drop(claim);
    assert_eq!(ewb(&cpu), Err(code(SgxCode::PageNotBlocked)));
}

#[test]
fn user_leaves_meet_a_busy_page() {
    let (cpu, _) = enclave();
    write(&cpu, SSA, 0, secinfo(PT_REG | R | PR).as_ref());
    let busy = |page: EpcPage| cpu.entry(page).expect("in the EPC").lock.exclusive().expect("free");
    let target = busy(DATA);
    assert_eq!(cpu.eaccept(SECS, at(SSA), at(DATA), &map()), Err(EncluError::Gp));
    assert_eq!(
        cpu.egetkey(SECS, at(SSA), at(DATA), &map()),
        Err(fault(at(DATA), true, false)),
        "to be run again"
    );
    drop(target);
    let accept = cpu.entry(DATA).expect("in the EPC").lock.accept().expect("free");
    assert_eq!(cpu.eaccept(SECS, at(SSA), at(DATA), &map()), Err(EncluError::Gp));
    assert_eq!(cpu.emodpe(SECS, at(SSA), at(DATA), &map()), Err(EncluError::Gp));
    drop(accept);
    let tcs = busy(TCS);
    assert_eq!(cpu.tcs(TCS, at(TCS)), Err(Fault::Gp));
    drop(tcs);
}
