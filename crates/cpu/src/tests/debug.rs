//! EDBGRD and EDBGWR.

use super::*;
use usgx_isa::{EvictedPage, VaSlot};

#[test]
fn words_of_a_debug_enclave_can_be_read_and_written() {
    let (cpu, _) = enclave();
    assert_eq!(cpu.edbgrd(DATA, 8), Ok(0xdada_dada_dada_dada));
    assert_eq!(cpu.edbgwr(DATA, 4088, 42), Ok(()));
    assert_eq!(cpu.edbgrd(DATA, 4088), Ok(42));
    assert_eq!(cpu.edbgwr(CODE, 0, 1), Ok(()), "permissions do not matter");
    cpu.eblock(DATA).expect("EBLOCK");
    assert_eq!(cpu.edbgrd(DATA, 4088), Ok(42), "nor does BLOCKED");
}

#[test]
fn operands_are_checked() {
    let (cpu, _) = enclave();
    let target = pf(Operand::Target);
    for (page, offset, refusal) in
        [(DATA, 4, GP), (DATA, 4096, GP), (OUTSIDE, 0, target), (FREE, 0, target), (SECS, 0, target)]
    {
        assert_eq!(cpu.edbgrd(page, offset), Err(refusal), "{page:?} {offset}");
        assert_eq!(cpu.edbgwr(page, offset, 0), Err(refusal), "{page:?} {offset}");
    }
    assert_eq!(cpu.edbgwr(VA, 0, 1), Err(target));
    assert_eq!(cpu.edbgrd(TCS, 64), Ok(0));
    assert_eq!(cpu.edbgrd(TCS, 72), Err(GP));
    assert_eq!(cpu.edbgwr(TCS, 0, 1), Err(GP));
    assert_eq!(cpu.edbgwr(TCS, 8, 1), Ok(()));
    assert_eq!(cpu.edbgrd(TCS, 8), Ok(1));
    cpu.eaug(FREE, SECS, at(FREE)).expect("EAUG");
    assert_eq!(cpu.edbgrd(FREE, 0), Err(code(SgxCode::PageNotDebuggable)));
    assert_eq!(cpu.edbgwr(FREE, 0, 0), Err(code(SgxCode::PageNotDebuggable)));
    cpu.emodt(DATA, &secinfo(PT_TRIM)).expect("EMODT");
    assert_eq!(cpu.edbgrd(DATA, 0), Err(target), "PT_TRIM");
}

#[test]
fn production_enclaves_are_closed() {
    let cpu = cpu();
    enclave_with(&cpu, 0);
    assert_eq!(cpu.edbgrd(DATA, 0), Err(GP));
    assert_eq!(cpu.edbgwr(DATA, 0, 0), Err(GP));
    assert_eq!(cpu.edbgwr(TCS, 8, 1), Err(GP));
}

#[test]
fn slots_only_show_whether_they_are_in_use() {
    let (cpu, _) = enclave();
    block_and_track(&cpu, DATA);
    cpu.ewb(DATA, VaSlot { page: VA, index: 3 }, &mut EvictedPage::default()).expect("EWB");
    assert_eq!(cpu.edbgrd(VA, 24), Ok(u64::MAX));
    assert_eq!(cpu.edbgrd(VA, 32), Ok(0));
}
