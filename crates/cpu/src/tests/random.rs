//! Any sequence of leaves agrees with a short oracle of the EPCM, the children and the contents.

use std::collections::BTreeMap;

use proptest::prelude::*;
use usgx_isa::layout::PageType;
use usgx_isa::{EvictedPage, VaSlot};

use super::*;

const SLOTS: u16 = 6;

#[derive(Clone, Debug)]
enum Op {
    Aug(u32, u64),
    Remove(u32),
    Block(u32),
    Track,
    WriteBack(u32, u16),
    Load(u32, u16, bool),
    Restrict(u32),
    Trim(u32),
    Accept(u32),
    Enter,
    Leave,
}

/// What the oracle knows of a child page.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Child {
    linaddr: u64,
    fill: u8,
    w: bool,
    trim: bool,
    pending: bool,
    modified: bool,
    pr: bool,
    blocked: bool,
    stamp: u64,
}

#[derive(Default)]
struct Oracle {
    epoch: u64,
    inside: Vec<u64>,
    children: BTreeMap<u32, Child>,
    /// Pages in slots, and what EWB made of them.
    slots: BTreeMap<u16, (Child, EvictedPage)>,
}

impl Oracle {
    fn oldest(&self) -> u64 {
        self.inside.iter().copied().min().unwrap_or(u64::MAX)
    }

    fn is_tracked(&self, child: &Child) -> bool {
        child.stamp < self.epoch && child.stamp < self.oldest()
    }
}

fn op() -> impl Strategy<Value = Op> {
    let page = FREE.0..FREE.0 + 4;
    prop_oneof![
        4 => (page.clone(), 0..4u64).prop_map(|(page, at)| Op::Aug(page, at)),
        1 => page.clone().prop_map(Op::Remove),
        4 => page.clone().prop_map(Op::Block),
        3 => Just(Op::Track),
        4 => (page.clone(), 0..SLOTS).prop_map(|(page, slot)| Op::WriteBack(page, slot)),
        4 => (page.clone(), 0..SLOTS, any::<bool>()).prop_map(|(page, slot, b)| Op::Load(page, slot, b)),
        2 => page.clone().prop_map(Op::Restrict),
        1 => page.clone().prop_map(Op::Trim),
        3 => page.prop_map(Op::Accept),
        1 => Just(Op::Enter),
        2 => Just(Op::Leave),
    ]
}

/// Runs one leaf on both, and compares the outcomes.
fn step(cpu: &Cpu, eid: u64, oracle: &mut Oracle, number: u8, op: &Op) {
    match *op {
        Op::Aug(page, nth) => {
            let linaddr = BASE + 0x10_000 + nth * 0x1000;
            let expected =
                if oracle.children.contains_key(&page) { Err(Fault::Pf(Operand::Target)) } else { Ok(()) };
            assert_eq!(cpu.eaug(EpcPage(page), SECS, LinAddr(linaddr)), expected);
            if expected.is_ok() {
                write(cpu, EpcPage(page), 0, &[number; 4096]);
                let child = Child {
                    linaddr,
                    fill: number,
                    w: true,
                    trim: false,
                    pending: true,
                    modified: false,
                    pr: false,
                    blocked: false,
                    stamp: 0,
                };
                oracle.children.insert(page, child);
            }
        }
        Op::Remove(page) => {
            let needs_quiet = |child: &Child| !child.trim || child.modified;
            let busy = oracle.children.get(&page).is_some_and(needs_quiet) && !oracle.inside.is_empty();
            let expected = if busy { Err(code(SgxCode::EnclaveAct)) } else { Ok(()) };
            assert_eq!(cpu.eremove(EpcPage(page)), expected);
            if !busy {
                oracle.children.remove(&page);
            }
        }
        Op::Block(page) => {
            let epoch = oracle.epoch;
            let expected = match oracle.children.get_mut(&page) {
                None => Err(code(SgxCode::PgInvld)),
                Some(child) if child.blocked => Err(code(SgxCode::Blkstate)),
                Some(child) => {
                    (child.blocked, child.stamp) = (true, epoch);
                    Ok(())
                }
            };
            assert_eq!(cpu.eblock(EpcPage(page)), expected);
        }
        Op::Track => {
            let incomplete = oracle.oldest() < oracle.epoch;
            let expected = if incomplete { Err(code(SgxCode::PrevTrkIncmpl)) } else { Ok(()) };
            assert_eq!(cpu.etrack(SECS), expected);
            oracle.epoch += u64::from(!incomplete);
        }
        Op::WriteBack(page, index) => {
            let mut out = EvictedPage::default();
            let result = cpu.ewb(EpcPage(page), VaSlot { page: VA, index }, &mut out);
            let expected = match oracle.children.get(&page) {
                None => Err(pf(Operand::Target)),
                Some(child) if !child.blocked => Err(code(SgxCode::PageNotBlocked)),
                Some(child) if !oracle.is_tracked(child) => Err(code(SgxCode::NotTracked)),
                Some(_) if oracle.slots.contains_key(&index) => Err(code(SgxCode::VaSlotOccupied)),
                Some(child) => Ok(LinAddr(child.linaddr)),
            };
            assert_eq!(result, expected);
            if matches!(result, Ok(_) | Err(LeafError::Code(SgxCode::VaSlotOccupied))) {
                let child = oracle.children.remove(&page).expect("it was there");
                oracle.slots.insert(index, (child, out));
            }
        }
        Op::Load(page, index, blocked) => {
            let nothing = (LinAddr(BASE), EvictedPage::default());
            let (linaddr, evicted) = oracle
                .slots
                .get(&index)
                .map_or(nothing, |(child, evicted)| (LinAddr(child.linaddr), evicted.clone()));
            let stored = oracle.slots.contains_key(&index);
            let secs = stored.then_some(SECS);
            let slot = VaSlot { page: VA, index };
            let result = match blocked {
                true => cpu.eldb(EpcPage(page), slot, linaddr, secs, &evicted),
                false => cpu.eldu(EpcPage(page), slot, linaddr, secs, &evicted),
            };
            let expected = match (oracle.children.contains_key(&page), stored) {
                (true, _) => Err(pf(Operand::Target)),
                (false, false) => Err(code(SgxCode::MacCompareFail)),
                (false, true) => Ok(()),
            };
            assert_eq!(result, expected);
            if result.is_ok() {
                let (child, _) = oracle.slots.remove(&index).expect("it was there");
                oracle.children.insert(page, Child { blocked, stamp: 0, ..child });
            }
        }
        Op::Restrict(page) => {
            let epoch = oracle.epoch;
            let expected = match oracle.children.get_mut(&page) {
                None => Err(pf(Operand::Target)),
                Some(child) if child.pending || child.modified => Err(code(SgxCode::PageNotModifiable)),
                Some(child) if child.trim => Err(pf(Operand::Target)),
                Some(child) => {
                    (child.w, child.pr, child.stamp) = (false, true, epoch);
                    Ok(())
                }
            };
            assert_eq!(cpu.emodpr(EpcPage(page), &secinfo(R)), expected);
        }
        Op::Trim(page) => {
            let epoch = oracle.epoch;
            let expected = match oracle.children.get_mut(&page) {
                None => Err(pf(Operand::Target)),
                Some(child) if child.trim => Err(pf(Operand::Target)),
                Some(child) if child.pending => Err(code(SgxCode::PageNotModifiable)),
                Some(child) => {
                    *child = Child {
                        w: false,
                        trim: true,
                        modified: true,
                        pr: false,
                        stamp: epoch,
                        ..child.clone()
                    };
                    Ok(())
                }
            };
            assert_eq!(cpu.emodt(EpcPage(page), &secinfo(PT_TRIM)), expected);
        }
        Op::Accept(page) => accept(cpu, oracle, page),
        Op::Enter => {
            cpu.threads().enter(eid);
            oracle.inside.push(oracle.epoch);
        }
        Op::Leave => {
            cpu.threads().leave(eid);
            if !oracle.inside.is_empty() {
                oracle.inside.remove(0);
            }
        }
    }
}

/// EACCEPT of whatever change is outstanding.
fn accept(cpu: &Cpu, oracle: &mut Oracle, page: u32) {
    let Some(child) = oracle.children.get(&page).cloned() else { return };
    let request = match (child.trim, child.w) {
        (true, _) => PT_TRIM | if child.modified { MODIFIED } else { 0 },
        (false, w) => {
            PT_REG
                | R
                | if w { W } else { 0 }
                | if child.pending { PENDING } else { 0 }
                | if child.pr { PR } else { 0 }
        }
    };
    write(cpu, SSA, 0, secinfo(request).as_ref());
    let addr = LinAddr(child.linaddr);
    let mut map = map();
    map.0.insert(addr.0, EpcPage(page));
    let expected = if !(child.modified || child.pending || child.pr) {
        Err(EncluError::Gp)
    } else if child.blocked {
        Err(fault(addr, false, true))
    } else if (child.modified || child.pr) && !oracle.is_tracked(&child) {
        Err(EncluError::Code(SgxCode::NotTracked))
    } else {
        Ok(())
    };
    assert_eq!(cpu.eaccept(SECS, at(SSA), addr, &map), expected);
    if expected.is_ok() {
        oracle.children.insert(page, Child { pending: false, modified: false, pr: false, ..child });
    }
}

/// Compares everything that can be seen.
fn check(cpu: &Cpu, oracle: &Oracle) {
    let state = cpu.enclave(SECS).expect("an SECS");
    assert_eq!(state.nr_children as usize, 4 + oracle.children.len());
    assert_eq!(state.epoch, oracle.epoch);
    for page in FREE.0..FREE.0 + 4 {
        let entry = cpu.epcm(EpcPage(page));
        let Some(child) = oracle.children.get(&page) else {
            assert_eq!(entry, None);
            continue;
        };
        let entry = entry.expect("valid");
        assert_eq!(entry.page_type, if child.trim { PageType::Trim } else { PageType::Reg });
        assert_eq!((entry.r, entry.w, entry.x), (!child.trim, child.w, false));
        assert_eq!(
            (entry.pending, entry.modified, entry.pr, entry.blocked),
            (child.pending, child.modified, child.pr, child.blocked)
        );
        assert_eq!((entry.linaddr, entry.secs), (LinAddr(child.linaddr), Some(SECS)));
        assert_eq!(read::<4096>(cpu, EpcPage(page), 0), [child.fill; 4096]);
    }
    for index in 0..SLOTS {
        assert_eq!(read::<8>(cpu, VA, usize::from(index) * 8) != [0; 8], oracle.slots.contains_key(&index));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_leaves_agrees_with_the_oracle(ops in prop::collection::vec(op(), 1..120)) {
        let (cpu, eid) = enclave();
        let mut oracle = Oracle { epoch: 1, ..Oracle::default() };
        for (number, op) in ops.iter().enumerate() {
            step(&cpu, eid, &mut oracle, number as u8, op);
            check(&cpu, &oracle);
        }
    }
}
