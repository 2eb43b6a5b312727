//! EAUG, EMODPR, EMODT and their EACCEPT, EMODPE and EACCEPTCOPY.

use usgx_isa::layout::PageType;

use super::*;
use crate::EpcmEntry;

const MISMATCH: EncluError = EncluError::Code(SgxCode::PageAttributesMismatch);
/// Where the tests keep a SECINFO: in SSA, a readable page.
fn secinfo_at() -> LinAddr {
    LinAddr(at(SSA).0 + 64)
}

fn put_secinfo(cpu: &Cpu, flags: u64) {
    write(cpu, SSA, 64, secinfo(flags).as_ref());
}

fn wide_map() -> Map {
    let mut map = map();
    map.0.insert(at(FREE).0, FREE);
    map
}

fn eaccept(cpu: &Cpu, page: EpcPage, flags: u64) -> Result<(), EncluError> {
    put_secinfo(cpu, flags);
    cpu.eaccept(SECS, secinfo_at(), at(page), &wide_map())
}

fn emodpe(cpu: &Cpu, page: EpcPage, flags: u64) -> Result<(), EncluError> {
    put_secinfo(cpu, flags);
    cpu.emodpe(SECS, secinfo_at(), at(page), &wide_map())
}

fn eacceptcopy(cpu: &Cpu, page: EpcPage, flags: u64) -> Result<(), EncluError> {
    put_secinfo(cpu, flags);
    cpu.eacceptcopy(SECS, secinfo_at(), at(page), at(DATA), &wide_map())
}

fn entry(cpu: &Cpu, page: EpcPage) -> EpcmEntry {
    cpu.epcm(page).expect("valid")
}

#[test]
fn eaug_adds_a_pending_zero_page() {
    let (cpu, _) = enclave();
    cpu.eaug(FREE, SECS, at(FREE)).expect("EAUG");
    let expected = EpcmEntry {
        page_type: PageType::Reg,
        r: true,
        w: true,
        x: false,
        blocked: false,
        pending: true,
        modified: false,
        pr: false,
        linaddr: at(FREE),
        secs: Some(SECS),
    };
    assert_eq!(entry(&cpu, FREE), expected);
    assert_eq!(read::<4096>(&cpu, FREE, 0), [0; 4096]);
    assert!(!expected.permits(SECS, at(FREE), crate::Access::Read));
    assert_eq!(eaccept(&cpu, FREE, PT_REG | R | W | PENDING), Ok(()), "no tracking needed");
    assert!(entry(&cpu, FREE).permits(SECS, at(FREE), crate::Access::Write));
}

#[test]
fn eaug_checks_its_operands() {
    let (cpu, _) = enclave();
    let eaug = |target, secs, addr: u64| cpu.eaug(target, secs, LinAddr(addr));
    assert_eq!(eaug(OUTSIDE, SECS, at(FREE).0), Err(Fault::Pf(Operand::Target)));
    assert_eq!(eaug(FREE, SECS, at(FREE).0 + 1), Err(Fault::Gp));
    assert_eq!(eaug(FREE, OUTSIDE, at(FREE).0), Err(Fault::Pf(Operand::Secs)));
    assert_eq!(eaug(DATA, SECS, at(FREE).0), Err(Fault::Pf(Operand::Target)));
    assert_eq!(eaug(FREE, DATA, at(FREE).0), Err(Fault::Pf(Operand::Secs)));
    assert_eq!(eaug(FREE, FREE, at(FREE).0), Err(Fault::Gp), "locked by itself");
    assert_eq!(eaug(FREE, SECS, BASE + SIZE), Err(Fault::Gp));
    assert_eq!(eaug(FREE, SECS, at(DATA).0), Ok(()), "nothing checks for another page there");
    let young = self::cpu();
    build(&young, 0);
    assert_eq!(young.eaug(FREE, SECS, at(FREE)), Err(Fault::Gp), "not initialised");
}

#[test]
fn emodpr_restricts_and_eaccept_waits_for_tracking() {
    let (cpu, eid) = enclave();
    let request = PT_REG | R | PR;
    cpu.threads().enter(eid);
    cpu.emodpr(DATA, &secinfo(R)).expect("EMODPR");
    let restricted = entry(&cpu, DATA);
    assert_eq!((restricted.r, restricted.w, restricted.x, restricted.pr), (true, false, false, true));
    assert!(restricted.permits(SECS, at(DATA), crate::Access::Read), "usable meanwhile");
    assert_eq!(eaccept(&cpu, DATA, PT_REG | R | W | PR), Err(MISMATCH));
    assert_eq!(eaccept(&cpu, DATA, request), Err(EncluError::Code(SgxCode::NotTracked)));
    cpu.etrack(SECS).expect("ETRACK");
    assert_eq!(eaccept(&cpu, DATA, request), Err(EncluError::Code(SgxCode::NotTracked)));
    cpu.threads().leave(eid);
    cpu.threads().enter(eid);
    assert_eq!(eaccept(&cpu, DATA, request), Ok(()));
    assert!(!entry(&cpu, DATA).pr);
}

#[test]
fn emodpr_checks_its_operands() {
    let (cpu, _) = enclave();
    let not_modifiable = Err(code(SgxCode::PageNotModifiable));
    assert_eq!(cpu.emodpr(OUTSIDE, &secinfo(R)), Err(pf(Operand::Target)));
    assert_eq!(cpu.emodpr(DATA, &secinfo(R | 1 << 6)), Err(GP));
    assert_eq!(cpu.emodpr(DATA, &secinfo(W)), Err(GP));
    assert_eq!(cpu.emodpr(FREE, &secinfo(R)), Err(pf(Operand::Target)));
    assert_eq!(cpu.emodpr(TCS, &secinfo(R)), Err(pf(Operand::Target)));
    assert_eq!(cpu.emodpr(VA, &secinfo(R)), Err(pf(Operand::Target)));
    cpu.eaug(FREE, SECS, at(FREE)).expect("EAUG");
    assert_eq!(cpu.emodpr(FREE, &secinfo(R)), not_modifiable);
    cpu.emodt(DATA, &secinfo(PT_TRIM)).expect("EMODT");
    assert_eq!(cpu.emodpr(DATA, &secinfo(R)), not_modifiable, "the code comes before the type");
    cpu.etrack(SECS).expect("ETRACK");
    eaccept(&cpu, DATA, PT_TRIM | MODIFIED).expect("EACCEPT");
    assert_eq!(cpu.emodpr(DATA, &secinfo(R)), Err(pf(Operand::Target)), "an accepted PT_TRIM page");
    assert_eq!(cpu.emodpr(CODE, &secinfo(R | W | X)), Ok(()));
    assert!(entry(&cpu, CODE).pr && !entry(&cpu, CODE).w, "removes nothing, sets PR");
    let young = self::cpu();
    build(&young, 0);
    assert_eq!(young.emodpr(DATA, &secinfo(R)), Err(GP), "not initialised");
}

#[test]
fn emodt_trims_and_the_page_goes_while_threads_run() {
    let (cpu, eid) = enclave();
    cpu.emodt(DATA, &secinfo(PT_TRIM)).expect("EMODT");
    let trimmed = entry(&cpu, DATA);
    assert_eq!((trimmed.page_type, trimmed.modified, trimmed.r || trimmed.w), (PageType::Trim, true, false));
    cpu.etrack(SECS).expect("ETRACK");
    cpu.threads().enter(eid);
    assert_eq!(cpu.eremove(DATA), Err(code(SgxCode::EnclaveAct)), "not accepted");
    assert_eq!(eaccept(&cpu, DATA, PT_TRIM | MODIFIED), Ok(()));
    assert_eq!(cpu.eremove(DATA), Ok(()));
    assert_eq!(cpu.enclave(SECS).expect("an SECS").nr_children, 3);
}

#[test]
fn emodt_checks_its_operands() {
    let (cpu, _) = enclave();
    let target = Err(pf(Operand::Target));
    assert_eq!(cpu.emodt(OUTSIDE, &secinfo(PT_TRIM)), target);
    for flags in [0, PT_REG, PT_VA, 5 << 8, PT_TRIM | 1 << 16] {
        assert_eq!(cpu.emodt(DATA, &secinfo(flags)), Err(GP), "{flags:#x}");
    }
    assert_eq!(cpu.emodt(FREE, &secinfo(PT_TRIM)), target);
    assert_eq!(cpu.emodt(VA, &secinfo(PT_TRIM)), target);
    assert_eq!(cpu.emodt(TCS, &secinfo(PT_TCS)), target);
    cpu.eaug(FREE, SECS, at(FREE)).expect("EAUG");
    assert_eq!(cpu.emodt(FREE, &secinfo(PT_TRIM)), Err(code(SgxCode::PageNotModifiable)));
    cpu.emodt(DATA, &secinfo(PT_TRIM)).expect("EMODT");
    assert_eq!(cpu.emodt(DATA, &secinfo(PT_TRIM)), target, "the type comes before the code");
    assert_eq!(cpu.emodt(TCS, &secinfo(PT_TRIM)), Ok(()));
    let young = self::cpu();
    build(&young, 0);
    assert_eq!(young.emodt(DATA, &secinfo(PT_TRIM)), Err(GP), "not initialised");
}

#[test]
fn a_page_becomes_a_tcs() {
    type Case = (&'static str, fn(&mut [u8]), bool);
    let cases: [Case; 7] = [
        ("good", |_| (), true),
        ("reserved", |tcs| tcs[100] = 1, false),
        ("DBGOPTIN", |tcs| tcs[8] = 1, false),
        ("AEXNOTIFY", |tcs| tcs[8] = 2, true),
        ("CSSA", |tcs| tcs[24] = 2, false),
        ("AEP", |tcs| tcs[40] = 1, false),
        ("STATE", |tcs| tcs[0] = 1, false),
    ];
    for (what, change, accepted) in cases {
        let (cpu, _) = enclave();
        let mut page = tcs_page();
        change(&mut page.0);
        write(&cpu, DATA, 0, &page.0);
        cpu.emodt(DATA, &secinfo(PT_TCS)).expect("EMODT");
        assert_eq!(eaccept(&cpu, DATA, PT_TCS | MODIFIED), Err(EncluError::Code(SgxCode::NotTracked)));
        cpu.etrack(SECS).expect("ETRACK");
        let expected = if accepted { Ok(()) } else { Err(EncluError::Gp) };
        assert_eq!(eaccept(&cpu, DATA, PT_TCS | MODIFIED), expected, "{what}");
        assert_eq!(cpu.tcs(DATA, at(DATA)).is_ok(), accepted && what != "AEXNOTIFY", "{what}");
    }
}

#[test]
fn a_change_can_be_accepted_after_an_eviction() {
    use usgx_isa::{EvictedPage, VaSlot};
    let (cpu, _) = enclave();
    let slot = VaSlot { page: VA, index: 0 };
    let mut evicted = EvictedPage::default();
    cpu.emodt(DATA, &secinfo(PT_TRIM)).expect("EMODT");
    cpu.etrack(SECS).expect("ETRACK");
    block_and_track(&cpu, DATA);
    cpu.ewb(DATA, slot, &mut evicted).expect("EWB");
    cpu.eldu(DATA, slot, at(DATA), Some(SECS), &evicted).expect("ELDU");
    assert_eq!(eaccept(&cpu, DATA, PT_TRIM | MODIFIED), Ok(()), "no thread has a translation from before");
}

#[test]
fn eaccept_checks_its_operands() {
    let (cpu, _) = enclave();
    cpu.eaug(FREE, SECS, at(FREE)).expect("EAUG");
    let (map, good) = (wide_map(), secinfo_at());
    put_secinfo(&cpu, PT_REG | R | W | PENDING);
    let eaccept_at = |rbx: u64, rcx: u64| cpu.eaccept(SECS, LinAddr(rbx), LinAddr(rcx), &map);
    assert_eq!(eaccept_at(good.0 + 8, at(FREE).0), Err(EncluError::Gp));
    assert_eq!(eaccept_at(BASE - 64, at(FREE).0), Err(EncluError::Gp));
    assert_eq!(
        eaccept_at(at(FREE).0, at(FREE).0),
        Err(fault(at(FREE), false, true)),
        "SECINFO in a pending page"
    );
    assert_eq!(eaccept_at(at(TCS).0, at(FREE).0), Err(fault(at(TCS), false, true)), "SECINFO in the TCS");
    assert_eq!(eaccept_at(good.0, at(FREE).0 + 8), Err(EncluError::Gp));
    assert_eq!(eaccept_at(good.0, BASE + SIZE), Err(EncluError::Gp));
    let unmapped = LinAddr(BASE + SIZE - 0x1000);
    assert_eq!(eaccept_at(good.0, unmapped.0), Err(fault(unmapped, false, false)));
    for flags in [
        PT_REG | R,
        PT_REG | PENDING | MODIFIED,
        PT_TRIM,
        PT_TRIM | MODIFIED | PR,
        PT_TCS | PENDING,
        PT_VA | PENDING,
    ] {
        assert_eq!(eaccept(&cpu, FREE, flags), Err(EncluError::Gp), "{flags:#x}");
    }
    assert_eq!(eaccept(&cpu, FREE, PT_REG | R | PENDING), Err(MISMATCH));
    assert_eq!(eaccept(&cpu, FREE, PT_REG | R | W | PR), Err(MISMATCH));
    assert_eq!(eaccept(&cpu, FREE, PT_TRIM | MODIFIED), Err(MISMATCH));
    let request = PT_REG | R | W | PENDING;
    put_secinfo(&cpu, request);
    let mut moved = wide_map();
    moved.0.insert(at(FREE).0 + 0x1000, FREE);
    let elsewhere = LinAddr(at(FREE).0 + 0x1000);
    assert_eq!(cpu.eaccept(SECS, good, elsewhere, &moved), Err(MISMATCH), "mapped at another address");
    moved.0.insert(elsewhere.0, OUTSIDE);
    assert_eq!(cpu.eaccept(SECS, good, elsewhere, &moved), Err(fault(elsewhere, false, true)));
    moved.0.insert(elsewhere.0, VA);
    assert_eq!(cpu.eaccept(SECS, good, elsewhere, &moved), Err(fault(elsewhere, false, true)));
    cpu.eblock(FREE).expect("EBLOCK");
    assert_eq!(eaccept(&cpu, FREE, request), Err(fault(at(FREE), false, true)));
    assert_eq!(cpu.eaccept(DATA, good, at(FREE), &map), Err(EncluError::Gp), "no enclave");
}

#[test]
fn emodpe_extends_at_once() {
    let (cpu, _) = enclave();
    assert_eq!(emodpe(&cpu, CODE, W), Ok(()), "PAGE_TYPE does not matter");
    let extended = entry(&cpu, CODE);
    assert!(extended.r && extended.w && extended.x && !extended.pr);
    let put = |flags| emodpe(&cpu, DATA, flags);
    assert_eq!(put(1 << 6), Err(EncluError::Gp));
    cpu.emodpr(DATA, &secinfo(0)).expect("EMODPR");
    assert_eq!(put(W), Err(EncluError::Gp), "W without R");
    assert_eq!(put(R | X), Ok(()));
    assert!(entry(&cpu, DATA).pr, "still to be accepted");
    assert_eq!(emodpe(&cpu, TCS, R), Err(fault(at(TCS), false, true)));
    cpu.eaug(FREE, SECS, at(FREE)).expect("EAUG");
    assert_eq!(emodpe(&cpu, FREE, X), Err(fault(at(FREE), false, true)));
    let mut moved = wide_map();
    moved.0.insert(at(FREE).0, DATA);
    assert_eq!(cpu.emodpe(SECS, secinfo_at(), at(FREE), &moved), Err(fault(at(FREE), false, true)));
    for (rbx, rcx) in [
        (secinfo_at().0 + 1, at(DATA).0),
        (secinfo_at().0, at(DATA).0 + 1),
        (0, at(DATA).0),
        (secinfo_at().0, 0),
    ] {
        assert_eq!(cpu.emodpe(SECS, LinAddr(rbx), LinAddr(rcx), &wide_map()), Err(EncluError::Gp));
    }
}

#[test]
fn eacceptcopy_fills_a_pending_page() {
    let (cpu, _) = enclave();
    cpu.eaug(FREE, SECS, at(FREE)).expect("EAUG");
    for flags in [PT_REG | W, PT_TCS | R, R, PT_REG | R | 1 << 7] {
        assert_eq!(eacceptcopy(&cpu, FREE, flags), Err(EncluError::Gp), "{flags:#x}");
    }
    assert_eq!(eacceptcopy(&cpu, CODE, PT_REG | R), Err(MISMATCH), "not pending");
    assert_eq!(eacceptcopy(&cpu, FREE, PT_REG | R | X), Ok(()));
    let filled = entry(&cpu, FREE);
    assert_eq!((filled.r, filled.w, filled.x, filled.pending), (true, false, true, false));
    assert_eq!(read::<4096>(&cpu, FREE, 0), [0xda; 4096]);
    assert_eq!(eacceptcopy(&cpu, FREE, PT_REG | R | X), Err(MISMATCH), "done already");
}

#[test]
fn eacceptcopy_checks_its_operands() {
    let (cpu, _) = enclave();
    cpu.eaug(FREE, SECS, at(FREE)).expect("EAUG");
    put_secinfo(&cpu, PT_REG | R);
    let map = wide_map();
    let good = [secinfo_at().0, at(FREE).0, at(DATA).0];
    let run =
        |[rbx, rcx, rdx]: [u64; 3]| cpu.eacceptcopy(SECS, LinAddr(rbx), LinAddr(rcx), LinAddr(rdx), &map);
    for operand in 0..3 {
        for wrong in [good[operand] + 8, good[operand] & 0xfff, BASE + SIZE] {
            let mut operands = good;
            operands[operand] = wrong;
            assert_eq!(run(operands), Err(EncluError::Gp), "operand {operand}");
        }
        let unmapped = BASE + SIZE - 0x1000;
        let mut operands = good;
        operands[operand] = unmapped;
        assert_eq!(run(operands), Err(fault(LinAddr(unmapped), operand == 1, false)));
    }
    assert_eq!(run([good[0], good[1], at(TCS).0]), Err(fault(at(TCS), false, true)));
    assert_eq!(run([at(TCS).0, good[1], good[2]]), Err(fault(at(TCS), false, true)));
    cpu.eblock(FREE).expect("EBLOCK");
    assert_eq!(run(good), Err(MISMATCH), "a code where EACCEPT raises #PF");
}

#[test]
fn a_refusal_by_a_page_that_has_moved_is_an_ordinary_fault() {
    /// Says something else at every second look.
    struct Moving(std::cell::Cell<bool>);
    impl Translate for Moving {
        fn translate(&self, addr: LinAddr, _write: bool) -> Option<EpcPage> {
            if addr.page() == at(SSA) {
                return Some(SSA);
            }
            self.0.replace(true).then_some(DATA).or(Some(FREE))
        }
    }
    let (cpu, _) = enclave();
    put_secinfo(&cpu, PT_REG | R | W | PENDING);
    let moving = Moving(std::cell::Cell::new(false));
    assert_eq!(cpu.eaccept(SECS, secinfo_at(), at(DATA), &moving), Err(fault(at(DATA), false, false)));
}
