//! EBLOCK, ETRACK, EWB, ELDU and ELDB: tracking, and tampering with what lies outside the EPC.

use super::*;
use usgx_isa::{EvictedPage, VaSlot};

const MAC_FAIL: LeafError = code(SgxCode::MacCompareFail);

fn slot(index: u16) -> VaSlot {
    VaSlot { page: VA, index }
}

/// Evicts a child page that nobody uses into a slot.
fn evict(cpu: &Cpu, page: EpcPage, index: u16) -> EvictedPage {
    block_and_track(cpu, page);
    let mut out = EvictedPage::default();
    assert_eq!(cpu.ewb(page, slot(index), &mut out), Ok(at(page)));
    out
}

fn slot_value(cpu: &Cpu, index: u16) -> u64 {
    u64::from_le_bytes(read(cpu, VA, usize::from(index) * 8))
}

#[test]
fn load_after_evict_restores_contents_and_state() {
    let (cpu, eid) = enclave();
    for (page, index) in [(TCS, 0), (CODE, 511), (DATA, 1)] {
        let contents: [u8; 4096] = read(&cpu, page, 0);
        let entry = cpu.epcm(page);
        let evicted = evict(&cpu, page, index);
        assert_eq!(cpu.epcm(page), None);
        assert_eq!(evicted.pcmd.enclaveid, eid);
        assert_ne!(evicted.contents.0, contents);
        assert_eq!((slot_value(&cpu, index) == 0, slot_value(&cpu, index) % 8), (false, 0));
        assert_eq!(cpu.enclave(SECS).expect("an SECS").nr_children, 3);
        // Into another EPC page, and back by way of ELDB.
        cpu.eldu(FREE, slot(index), at(page), Some(SECS), &evicted).expect("ELDU");
        assert_eq!((read(&cpu, FREE, 0), cpu.epcm(FREE), slot_value(&cpu, index)), (contents, entry, 0));
        let mut evicted = EvictedPage::default();
        block_and_track(&cpu, FREE);
        assert_eq!(cpu.ewb(FREE, slot(index), &mut evicted), Ok(at(page)));
        cpu.eldb(page, slot(index), at(page), Some(SECS), &evicted).expect("ELDB");
        let blocked = cpu.epcm(page).expect("valid");
        assert!(blocked.blocked);
        assert_eq!(Some(crate::EpcmEntry { blocked: false, ..blocked }), entry);
        assert_eq!(cpu.eblock(page), Err(code(SgxCode::Blkstate)));
    }
}

#[test]
fn eblock_reports_by_code() {
    let (cpu, _) = enclave();
    assert_eq!(cpu.eblock(OUTSIDE), Err(pf(Operand::Target)));
    assert_eq!(cpu.eblock(FREE), Err(code(SgxCode::PgInvld)));
    assert_eq!(cpu.eblock(SECS), Err(code(SgxCode::PgIsSecs)));
    assert_eq!(cpu.eblock(VA), Err(code(SgxCode::NotBlockable)));
    assert_eq!(cpu.eblock(DATA), Ok(()));
    assert_eq!(cpu.eblock(DATA), Err(code(SgxCode::Blkstate)));
}

#[test]
fn etrack_needs_an_secs() {
    let (cpu, _) = enclave();
    for page in [OUTSIDE, FREE, DATA, VA] {
        assert_eq!(cpu.etrack(page), Err(pf(Operand::Target)), "{page:?}");
    }
}

#[test]
fn a_page_is_evicted_when_every_old_thread_has_left() {
    let (cpu, eid) = enclave();
    let mut out = EvictedPage::default();
    let not_tracked = Err(code(SgxCode::NotTracked));
    cpu.threads().enter(eid);
    assert_eq!(cpu.ewb(DATA, slot(0), &mut out), Err(code(SgxCode::PageNotBlocked)));
    cpu.eblock(DATA).expect("EBLOCK");
    assert_eq!(cpu.ewb(DATA, slot(0), &mut out), not_tracked, "no ETRACK yet");
    assert_eq!(cpu.etrack(SECS), Ok(()));
    assert_eq!(cpu.etrack(SECS), Err(code(SgxCode::PrevTrkIncmpl)));
    assert_eq!(cpu.ewb(DATA, slot(0), &mut out), not_tracked, "a thread is inside since before");
    cpu.threads().enter(eid);
    cpu.threads().leave(eid);
    cpu.eblock(SSA).expect("EBLOCK");
    assert_eq!(cpu.ewb(SSA, slot(1), &mut out), not_tracked, "blocked after ETRACK");
    assert_eq!(cpu.ewb(DATA, slot(0), &mut out), Ok(at(DATA)), "the thread inside entered later");
    assert_eq!(cpu.etrack(SECS), Ok(()));
    assert_eq!(cpu.ewb(SSA, slot(1), &mut out), not_tracked);
    cpu.threads().leave(eid);
    assert_eq!(cpu.ewb(SSA, slot(1), &mut out), Ok(at(SSA)));
}

#[test]
fn one_etrack_serves_all_pages_blocked_before() {
    let (cpu, _) = enclave();
    for page in [TCS, SSA, CODE, DATA] {
        cpu.eblock(page).expect("EBLOCK");
    }
    cpu.etrack(SECS).expect("ETRACK");
    for (index, page) in (0..).zip([TCS, SSA, CODE, DATA]) {
        assert_eq!(cpu.ewb(page, slot(index), &mut EvictedPage::default()), Ok(at(page)));
    }
}

#[test]
fn ewb_checks_its_operands() {
    let (cpu, _) = enclave();
    let mut out = EvictedPage::default();
    let mut ewb = |page, slot| cpu.ewb(page, slot, &mut out);
    let va_fault = Err(pf(Operand::VaSlot));
    assert_eq!(ewb(OUTSIDE, slot(0)), Err(pf(Operand::Target)));
    assert_eq!(ewb(VA, VaSlot { page: OUTSIDE, index: 0 }), va_fault);
    assert_eq!(ewb(DATA, slot(512)), va_fault, "beyond the page");
    assert_eq!(ewb(VA, slot(0)), Err(GP), "into itself");
    assert_eq!(ewb(FREE, slot(0)), Err(pf(Operand::Target)));
    assert_eq!(ewb(DATA, VaSlot { page: FREE, index: 0 }), va_fault);
    assert_eq!(ewb(DATA, VaSlot { page: SSA, index: 0 }), va_fault);
    assert_eq!(ewb(SECS, slot(0)), Err(code(SgxCode::ChildPresent)));
}

#[test]
fn an_occupied_slot_is_reported_after_the_eviction() {
    let (cpu, _) = enclave();
    let lost = evict(&cpu, DATA, 0);
    block_and_track(&cpu, SSA);
    let mut out = EvictedPage::default();
    assert_eq!(cpu.ewb(SSA, slot(0), &mut out), Err(code(SgxCode::VaSlotOccupied)));
    assert_eq!(cpu.epcm(SSA), None);
    assert_eq!(cpu.eldu(DATA, slot(0), at(DATA), Some(SECS), &lost), Err(MAC_FAIL));
    assert_eq!(cpu.eldu(SSA, slot(0), at(SSA), Some(SECS), &out), Ok(()));
}

#[test]
fn any_change_outside_the_epc_is_found() {
    let (cpu, _) = enclave();
    let good = evict(&cpu, DATA, 0);
    let version = slot_value(&cpu, 0);
    let refused = |evicted: &EvictedPage, linaddr, what: &str| {
        let result = cpu.eldu(DATA, slot(0), linaddr, Some(SECS), evicted);
        assert_eq!(result, Err(MAC_FAIL), "{what}");
        assert_eq!((cpu.epcm(DATA), slot_value(&cpu, 0)), (None, version), "{what}");
    };
    for byte in 0..4096 {
        let mut bad = good.clone();
        bad.contents.0[byte] ^= 1;
        refused(&bad, at(DATA), &format!("contents byte {byte}"));
    }
    for byte in (0..64).chain(72..128) {
        let mut bytes = good.pcmd.as_ref().to_vec();
        bytes[byte] ^= 1;
        // PAGE_TYPE decides whether there is an owner at all; here REG becomes VA.
        if byte == 1 {
            continue;
        }
        let mut bad = good.clone();
        bad.pcmd = usgx_isa::layout::Pcmd::try_copy_from(&bytes).expect("128 bytes");
        refused(&bad, at(DATA), &format!("PCMD byte {byte}"));
    }
    for bit in 0..64 {
        refused(&good, LinAddr(at(DATA).0 ^ 1 << bit), &format!("address bit {bit}"));
    }
    let mut other_id = good.clone();
    other_id.pcmd.enclaveid ^= 1;
    assert_eq!(cpu.eldu(DATA, slot(0), at(DATA), Some(SECS), &other_id), Ok(()), "ENCLAVEID is a hint");
}

#[test]
fn types_can_not_be_changed_outside_the_epc() {
    let (cpu, _) = enclave();
    let good = evict(&cpu, DATA, 0);
    for page_type in 0..=255u64 {
        let mut bad = good.clone();
        bad.pcmd.secinfo.flags = SecinfoFlags::from_bits_truncate(R | W | page_type << 8);
        let is_child = matches!(page_type, 1 | 2 | 4);
        let owned = cpu.eldu(FREE, slot(0), at(DATA), Some(SECS), &bad);
        let ownerless = cpu.eldu(FREE, slot(0), at(DATA), None, &bad);
        if page_type == 2 {
            assert_eq!((owned, ownerless), (Ok(()), Err(pf(Operand::Target))));
            assert_eq!(cpu.eremove(FREE), Ok(()));
        } else if is_child {
            assert_eq!((owned, ownerless), (Err(MAC_FAIL), Err(pf(Operand::Secs))), "{page_type}");
        } else {
            assert_eq!((owned, ownerless), (Err(GP), Err(MAC_FAIL)), "{page_type}");
        }
    }
}

#[test]
fn old_and_swapped_copies_are_refused() {
    let (cpu, _) = enclave();
    let old = evict(&cpu, DATA, 0);
    cpu.eldu(DATA, slot(0), at(DATA), Some(SECS), &old).expect("ELDU");
    assert_eq!(cpu.eldu(FREE, slot(0), at(DATA), Some(SECS), &old), Err(MAC_FAIL), "the slot is empty");
    let new = evict(&cpu, DATA, 0);
    let other = evict(&cpu, SSA, 1);
    assert_eq!(cpu.eldu(DATA, slot(0), at(DATA), Some(SECS), &old), Err(MAC_FAIL), "replay");
    assert_eq!(cpu.eldu(DATA, slot(0), at(SSA), Some(SECS), &other), Err(MAC_FAIL), "swap");
    assert_eq!(cpu.eldu(DATA, slot(1), at(DATA), Some(SECS), &new), Err(MAC_FAIL), "other slot");
    cpu.ecreate(FREE, &secs_page(0), &secinfo(0)).expect("ECREATE");
    assert_eq!(cpu.eldu(DATA, slot(0), at(DATA), Some(FREE), &new), Err(MAC_FAIL), "other enclave");
    assert_eq!(cpu.eldu(DATA, slot(0), at(DATA), Some(SECS), &new), Ok(()));
}

#[test]
fn eld_checks_its_operands() {
    let (cpu, _) = enclave();
    let evicted = evict(&cpu, DATA, 0);
    let eldu = |target, slot, secs| cpu.eldu(target, slot, at(DATA), secs, &evicted);
    assert_eq!(eldu(OUTSIDE, slot(0), Some(SECS)), Err(pf(Operand::Target)));
    assert_eq!(eldu(FREE, VaSlot { page: OUTSIDE, index: 0 }, Some(SECS)), Err(pf(Operand::VaSlot)));
    assert_eq!(eldu(VA, slot(0), Some(SECS)), Err(GP), "the VA page is locked");
    assert_eq!(eldu(SSA, slot(0), Some(SECS)), Err(pf(Operand::Target)));
    assert_eq!(eldu(FREE, VaSlot { page: SSA, index: 0 }, Some(SECS)), Err(pf(Operand::VaSlot)));
    assert_eq!(eldu(FREE, slot(0), Some(OUTSIDE)), Err(pf(Operand::Secs)));
    assert_eq!(eldu(FREE, slot(0), Some(SSA)), Err(pf(Operand::Secs)));
    assert_eq!(eldu(FREE, slot(0), None), Err(pf(Operand::Secs)));
}

#[test]
fn va_pages_can_be_evicted_into_va_pages() {
    let (cpu, _) = enclave();
    let data = evict(&cpu, DATA, 7);
    cpu.epa(FREE).expect("EPA");
    assert_eq!(cpu.epa(FREE), Err(Fault::Pf(Operand::Target)));
    let mut va = EvictedPage::default();
    assert_eq!(cpu.ewb(VA, VaSlot { page: FREE, index: 0 }, &mut va), Ok(LinAddr(0)));
    assert_eq!(va.pcmd.enclaveid, 0);
    assert_eq!(cpu.eldu(DATA, slot(7), at(DATA), Some(SECS), &data), Err(pf(Operand::VaSlot)));
    assert_eq!(cpu.eldu(VA, VaSlot { page: FREE, index: 0 }, LinAddr(0), None, &va), Ok(()));
    assert_eq!(cpu.eldu(DATA, slot(7), at(DATA), Some(SECS), &data), Ok(()));
}

#[test]
fn an_enclave_survives_the_eviction_of_its_secs() {
    let (cpu, eid) = enclave();
    let before = cpu.enclave(SECS).expect("an SECS");
    let children: Vec<_> = (0..)
        .zip([TCS, SSA, CODE, DATA])
        .map(|(index, page)| (index, page, evict(&cpu, page, index)))
        .collect();
    let mut secs = EvictedPage::default();
    assert_eq!(cpu.ewb(SECS, slot(9), &mut secs), Ok(LinAddr(0)));
    assert_eq!((secs.pcmd.enclaveid, cpu.enclave(SECS)), (eid, None));
    let [_, _, _, (_, _, data)] = &children[..] else { unreachable!("four children") };
    assert_eq!(cpu.eldu(DATA, slot(3), at(DATA), Some(SECS), data), Err(pf(Operand::Secs)));
    cpu.eldu(FREE, slot(9), LinAddr(0), None, &secs).expect("ELDU of the SECS");
    let after = cpu.enclave(FREE).expect("an SECS");
    assert!(after.epoch > before.epoch);
    assert_eq!(crate::EnclaveState { nr_children: 4, epoch: before.epoch, ..after }, before);
    for (index, page, evicted) in &children {
        cpu.eldu(*page, slot(*index), at(*page), Some(FREE), evicted).expect("ELDU of a child");
    }
    assert_eq!(cpu.edbgrd(DATA, 0), Ok(0xdada_dada_dada_dada));
    assert_eq!(cpu.enclave(FREE).expect("an SECS").nr_children, 4);
}

#[test]
fn a_running_measurement_survives_the_eviction_of_its_secs() {
    let cpu = cpu();
    cpu.epa(VA).expect("EPA");
    cpu.ecreate(SECS, &secs_page(0), &secinfo(0)).expect("ECREATE");
    let mut expected = Vec::new();
    for (page, flags, contents) in pages() {
        let mut secs = EvictedPage::default();
        let mut child = EvictedPage::default();
        cpu.ewb(SECS, slot(0), &mut secs).expect("EWB");
        cpu.eldu(SECS, slot(0), LinAddr(0), None, &secs).expect("ELDU");
        cpu.eadd(page, SECS, at(page), &contents, &secinfo(flags)).expect("EADD");
        for offset in (0..4096).step_by(256) {
            cpu.eextend(SECS, page, offset).expect("EEXTEND");
        }
        block_and_track(&cpu, page);
        let index = 1 + page.0 as u16;
        cpu.ewb(page, slot(index), &mut child).expect("EWB");
        expected.push((page, index, child));
    }
    einit(&cpu, &sign(0, |_| ())).expect("EINIT");
}

#[test]
fn whoever_claims_to_be_inside_since_before_a_reload_is_waited_for() {
    let cpu = cpu();
    cpu.epa(VA).expect("EPA");
    cpu.ecreate(SECS, &secs_page(0), &secinfo(0)).expect("ECREATE");
    let eid = cpu.enclave(SECS).expect("an SECS").eid;
    cpu.threads().enter(eid);
    let mut secs = EvictedPage::default();
    cpu.ewb(SECS, slot(0), &mut secs).expect("EWB");
    cpu.eldu(SECS, slot(0), LinAddr(0), None, &secs).expect("ELDU");
    assert_eq!(cpu.etrack(SECS), Err(code(SgxCode::PrevTrkIncmpl)));
    cpu.threads().leave(eid);
    assert_eq!(cpu.etrack(SECS), Ok(()));
}

#[test]
fn an_evicted_page_is_worthless_after_power_off() {
    let (cpu, _) = enclave();
    let evicted = evict(&cpu, DATA, 0);
    let version = slot_value(&cpu, 0);
    let next = power_on(Profile::default(), fuses(1), 3);
    enclave_with(&next, 2);
    next.eremove(DATA).expect("EREMOVE");
    write(&next, VA, 0, &version.to_le_bytes());
    assert_eq!(next.eldu(DATA, slot(0), at(DATA), Some(SECS), &evicted), Err(MAC_FAIL));
}
