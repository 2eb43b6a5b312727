//! ECREATE, EADD, EEXTEND and EREMOVE: every check, in order, and the measurement.

use usgx_isa::layout::PageType;

use super::*;

const TARGET: LeafError = pf(Operand::Target);

fn ecreate(change: impl FnOnce(&mut [u8; 4096])) -> Result<(), Fault> {
    ecreate_on(Profile::default(), change)
}

fn ecreate_on(profile: Profile, change: impl FnOnce(&mut [u8; 4096])) -> Result<(), Fault> {
    let mut page = secs_page(0);
    change(&mut page.0);
    power_on(profile, fuses(1), 2).ecreate(SECS, &page, &secinfo(0))
}

fn field<const N: usize>(offset: usize, value: [u8; N]) -> impl FnOnce(&mut [u8; 4096]) {
    move |secs| le::put(secs, offset, &value)
}

#[test]
fn measurement_is_that_of_the_sgxs_crate() {
    let (cpu, _) = enclave();
    let state = cpu.enclave(SECS).expect("an SECS");
    assert_eq!(state.mrenclave, expected_mrenclave());
    assert_eq!((state.isvprodid, state.isvsvn, state.initialised), (7, 5, true));
    assert_eq!((state.base, state.size, state.nr_children), (LinAddr(BASE), SIZE, 4));
    assert_eq!((state.attributes, state.xfrm, state.xsave_size), (7, 3, 576));
    let words: Vec<u64> = state.mrsigner.chunks_exact(8).map(|word| le::get_u64(word, 0)).collect();
    assert_eq!(words, launch_hash());
}

#[test]
fn ecreate_makes_an_secs() {
    let cpu = cpu();
    cpu.ecreate(SECS, &secs_page(0), &secinfo(0)).expect("ECREATE");
    let entry = cpu.epcm(SECS).expect("valid");
    assert_eq!((entry.page_type, entry.linaddr, entry.secs), (PageType::Secs, LinAddr(0), None));
    assert!(!(entry.r || entry.w || entry.x || entry.blocked || entry.pending || entry.modified || entry.pr));
    assert_eq!(cpu.ecreate(SECS, &secs_page(0), &secinfo(0)), Err(Fault::Pf(Operand::Target)));
    assert_eq!(cpu.ecreate(OUTSIDE, &secs_page(0), &secinfo(0)), Err(Fault::Pf(Operand::Target)));
    for flags in [PT_REG, 1 << 6, 1 << 7, 1 << 16, 1 << 63] {
        assert_eq!(cpu.ecreate(FREE, &secs_page(0), &secinfo(flags)), Err(Fault::Gp), "{flags:#x}");
    }
    let mut reserved = [0; 64];
    reserved[63] = 1;
    let reserved = Secinfo::try_copy_from(&reserved).expect("64 bytes");
    assert_eq!(cpu.ecreate(FREE, &secs_page(0), &reserved), Err(Fault::Gp));
}

#[test]
fn ecreate_gives_every_enclave_its_own_eid() {
    let cpu = cpu();
    let eids: std::collections::HashSet<u64> = (0..20)
        .map(|_| {
            cpu.ecreate(SECS, &secs_page(0), &secinfo(0)).expect("ECREATE");
            let eid = cpu.enclave(SECS).expect("an SECS").eid;
            cpu.eremove(SECS).expect("EREMOVE");
            assert_eq!(cpu.enclave(SECS), None);
            eid
        })
        .collect();
    assert_eq!(eids.len(), 20);
}

#[test]
fn ecreate_checks_the_secs() {
    assert_eq!(ecreate(|_| ()), Ok(()));
    let refused: [(&str, Result<(), Fault>); 20] = [
        ("size not a power of two", ecreate(field(0, 0x18_0000u64.to_le_bytes()))),
        ("size below two pages", ecreate(field(0, 0x1000u64.to_le_bytes()))),
        (
            "size at the bound",
            ecreate(|secs| {
                le::put(secs, 0, &(1u64 << 56).to_le_bytes());
                le::put(secs, 8, &[0; 8]);
            }),
        ),
        ("base not aligned to size", ecreate(field(8, (BASE + 0x1000).to_le_bytes()))),
        ("base not canonical", ecreate(field(8, (1u64 << 47).to_le_bytes()))),
        ("32-bit enclave, high base", ecreate(field(48, 0u64.to_le_bytes()))),
        ("no SSA frame", ecreate(field(16, 0u32.to_le_bytes()))),
        ("MISCSELECT bit that does not exist", ecreate(field(20, 2u32.to_le_bytes()))),
        ("CET_LEG_BITMAP_OFFSET", ecreate(field(24, 0x1000u64.to_le_bytes()))),
        ("CET_ATTRIBUTES", ecreate(field(32, [1]))),
        ("reserved after CET", ecreate(field(47, [1]))),
        ("INIT", ecreate(field(48, 5u64.to_le_bytes()))),
        ("reserved attribute", ecreate(field(48, 0xcu64.to_le_bytes()))),
        ("XFRM without SSE", ecreate(field(56, 1u64.to_le_bytes()))),
        ("XFRM AMX, not in the profile", ecreate(field(56, 0x6_0003u64.to_le_bytes()))),
        ("reserved 2", ecreate(field(127, [1]))),
        ("reserved 3", ecreate(field(160, [1]))),
        ("CONFIGID without KSS", ecreate(field(255, [1]))),
        ("CONFIGSVN without KSS", ecreate(field(260, [1]))),
        ("last byte", ecreate(field(4095, [1]))),
    ];
    for (what, result) in refused {
        assert_eq!(result, Err(Fault::Gp), "{what}");
    }
    let accepted: [(&str, Result<(), Fault>); 6] = [
        (
            "largest size",
            ecreate(|secs| {
                le::put(secs, 0, &(1u64 << 55).to_le_bytes());
                le::put(secs, 8, &[0; 8]);
            }),
        ),
        (
            "32-bit enclave",
            ecreate(|secs| {
                le::put(secs, 8, &SIZE.to_le_bytes());
                le::put(secs, 48, &[0; 8]);
            }),
        ),
        ("EXINFO", ecreate(field(20, 1u32.to_le_bytes()))),
        ("AVX-512 in one page", ecreate(field(56, 0xe7u64.to_le_bytes()))),
        (
            "outputs are ignored",
            ecreate(|secs| {
                secs[64] = 1;
                secs[128] = 1;
                secs[256] = 1;
                secs[258] = 1;
            }),
        ),
        (
            "KSS",
            ecreate(|secs| {
                secs[48] |= 0x80;
                secs[192] = 1;
                secs[260] = 1;
            }),
        ),
    ];
    for (what, result) in accepted {
        assert_eq!(result, Ok(()), "{what}");
    }
}

#[test]
fn ecreate_obeys_the_profile() {
    let old = profile("coffee-lake");
    assert_eq!(ecreate_on(old, |_| ()), Ok(()));
    assert_eq!(ecreate_on(old, |secs| secs[48] |= 0x80), Err(Fault::Gp), "KSS");
    assert_eq!(ecreate_on(old, |secs| secs[20] = 1), Err(Fault::Gp), "EXINFO");
    assert_eq!(ecreate_on(old, |secs| secs[56] = 0xe7), Err(Fault::Gp), "AVX-512");
    let no_avx = crate::XsaveLayout::from_cpuid(|_, _| [0x3, 0, 0, 0]);
    assert_eq!(ecreate_on(Profile::default().with_xsave(no_avx), |secs| secs[56] = 7), Err(Fault::Gp));
}

#[test]
fn eadd_checks_its_operands() {
    let cpu = cpu();
    build(&cpu, 0);
    let reg = PT_REG | R | W;
    let eadd = |target, secs, addr: u64, page: &Page, flags| {
        cpu.eadd(target, secs, LinAddr(addr), page, &secinfo(flags)).map_err(LeafError::from)
    };
    let zero = Page::ZERO;
    let addr = at(FREE).0;
    assert_eq!(eadd(OUTSIDE, SECS, addr, &zero, reg), Err(TARGET));
    assert_eq!(eadd(FREE, SECS, addr + 8, &zero, reg), Err(GP));
    assert_eq!(eadd(FREE, OUTSIDE, addr, &zero, reg), Err(pf(Operand::Secs)));
    for flags in [R, PT_VA, PT_TRIM, 5 << 8, 6 << 8, reg | 1 << 6, reg | 1 << 16] {
        assert_eq!(eadd(FREE, SECS, addr, &zero, flags), Err(GP), "{flags:#x}");
    }
    assert_eq!(eadd(DATA, SECS, addr, &zero, reg), Err(TARGET));
    assert_eq!(eadd(FREE, DATA, addr, &zero, reg), Err(pf(Operand::Secs)));
    assert_eq!(eadd(FREE, VA, addr, &zero, reg), Err(pf(Operand::Secs)));
    assert_eq!(eadd(FREE, EpcPage(9), addr, &zero, reg), Err(pf(Operand::Secs)));
    assert_eq!(eadd(FREE, SECS, addr, &zero, PT_REG | W), Err(GP));
    assert_eq!(eadd(FREE, SECS, BASE - 0x1000, &zero, reg), Err(GP));
    assert_eq!(eadd(FREE, SECS, BASE + SIZE, &zero, reg), Err(GP));
    for byte in [72, 80, 4095] {
        let mut tcs = tcs_page();
        tcs.0[byte] = 1;
        assert_eq!(eadd(FREE, SECS, addr, &tcs, PT_TCS), Err(GP), "TCS byte {byte}");
    }
    assert_eq!(cpu.epcm(FREE), None);
    assert_eq!(cpu.enclave(SECS).expect("an SECS").nr_children, 4);
    assert_eq!(eadd(FREE, SECS, addr, &zero, PT_REG | X), Ok(()), "X alone is fine");
    einit(&cpu, &sign(0, |_| ())).expect_err("another measurement");
}

#[test]
fn eadd_and_eextend_refuse_an_initialised_enclave() {
    let (cpu, _) = enclave();
    assert_eq!(cpu.eadd(FREE, SECS, at(FREE), &Page::ZERO, &secinfo(PT_REG | R)), Err(Fault::Gp));
    assert_eq!(cpu.eextend(SECS, DATA, 0), Err(Fault::Gp));
}

#[test]
fn eadd_resets_a_tcs() {
    let cpu = cpu();
    cpu.ecreate(SECS, &secs_page(2), &secinfo(0)).expect("ECREATE");
    let mut tcs = tcs_page();
    le::put(&mut tcs.0, 0, &1u64.to_le_bytes());
    le::put(&mut tcs.0, 8, &0xffu64.to_le_bytes());
    le::put(&mut tcs.0, 24, &9u32.to_le_bytes());
    le::put(&mut tcs.0, 40, &9u64.to_le_bytes());
    cpu.eadd(TCS, SECS, at(TCS), &tcs, &secinfo(PT_TCS | R | W | X)).expect("EADD");
    let fields: Vec<u64> = (0..48).step_by(8).map(|at| cpu.edbgrd(TCS, at).expect("EDBGRD")).collect();
    assert_eq!(fields, [0, 0xfe, 0x1000, 2 << 32, 0x2000, 0]);
    let entry = cpu.epcm(TCS).expect("valid");
    assert!(!(entry.r || entry.w || entry.x));
    assert_eq!((entry.page_type, entry.secs, entry.linaddr), (PageType::Tcs, Some(SECS), at(TCS)));
}

#[test]
fn segment_limits_matter_in_32_bit_enclaves() {
    let cpu = cpu();
    let mut secs = secs_page(0);
    le::put(&mut secs.0, 8, &SIZE.to_le_bytes());
    le::put(&mut secs.0, 48, &0u64.to_le_bytes());
    cpu.ecreate(SECS, &secs, &secinfo(0)).expect("ECREATE");
    let mut tcs = tcs_page();
    let eadd = |tcs: &Page| cpu.eadd(TCS, SECS, LinAddr(SIZE), tcs, &secinfo(PT_TCS));
    assert_eq!(eadd(&tcs), Err(Fault::Gp));
    le::put(&mut tcs.0, 64, &[0xff, 0x0f, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(eadd(&tcs), Ok(()));
}

#[test]
fn eextend_checks_its_operands() {
    let cpu = cpu();
    build(&cpu, 0);
    cpu.ecreate(FREE, &secs_page(0), &secinfo(0)).expect("ECREATE");
    let eextend = |secs, target, offset| cpu.eextend(secs, target, offset).map_err(LeafError::from);
    assert_eq!(eextend(OUTSIDE, DATA, 0), Err(pf(Operand::Secs)));
    assert_eq!(eextend(SECS, DATA, 8), Err(GP));
    assert_eq!(eextend(SECS, DATA, 4096), Err(GP));
    assert_eq!(eextend(SECS, OUTSIDE, 0), Err(TARGET));
    assert_eq!(eextend(SECS, EpcPage(9), 0), Err(TARGET));
    assert_eq!(eextend(SECS, VA, 0), Err(TARGET));
    assert_eq!(eextend(SECS, SECS, 0), Err(TARGET));
    assert_eq!(eextend(FREE, DATA, 0), Err(GP), "another enclave's page");
    assert_eq!(eextend(DATA, DATA, 0), Err(GP), "not an SECS");
}

#[test]
fn a_page_at_once_measures_as_its_chunks_do() {
    let measurement = |extend: fn(&Cpu) -> Result<(), Fault>| {
        let cpu = cpu();
        cpu.ecreate(SECS, &secs_page(0), &secinfo(0)).expect("ECREATE");
        let contents = Page(std::array::from_fn(|i| (i / 7) as u8));
        cpu.eadd(DATA, SECS, at(DATA), &contents, &secinfo(PT_REG | R)).expect("EADD");
        extend(&cpu).expect("EEXTEND");
        cpu.resident(SECS).expect("an SECS").measurement().finish()
    };
    let at_once = measurement(|cpu| cpu.eextend_page(SECS, DATA));
    let chunks =
        measurement(|cpu| (0..4096).step_by(256).try_for_each(|offset| cpu.eextend(SECS, DATA, offset)));
    assert_eq!(at_once, chunks);
    let (cpu, _) = enclave();
    assert_eq!(cpu.eextend_page(SECS, DATA), Err(Fault::Gp), "it is initialised");
    assert_eq!(cpu.eextend_page(SECS, SECS), Err(Fault::Pf(Operand::Target)));
}

#[test]
fn processors_without_sgx2_know_gp_only() {
    let cpu = power_on(profile("coffee-lake"), fuses(1), 2);
    build(&cpu, 0);
    assert_eq!(cpu.ecreate(OUTSIDE, &secs_page(0), &secinfo(0)), Err(Fault::Gp));
    assert_eq!(cpu.epa(VA), Err(Fault::Gp));
    assert_eq!(cpu.eextend(SECS, VA, 0), Err(Fault::Gp));
    assert_eq!(cpu.etrack(DATA), Err(GP));
    assert_eq!(cpu.eremove(OUTSIDE), Err(GP));
    assert_eq!(cpu.eaug(FREE, SECS, at(FREE)), Err(Fault::Gp));
    assert_eq!(cpu.emodpr(DATA, &secinfo(R)), Err(GP));
    assert_eq!(cpu.emodt(DATA, &secinfo(PT_TRIM)), Err(GP));
}

#[test]
fn eremove_frees_pages_by_their_type() {
    let (cpu, eid) = enclave();
    assert_eq!(cpu.eremove(OUTSIDE), Err(TARGET));
    assert_eq!(cpu.eremove(FREE), Ok(()), "a free page is no error");
    assert_eq!(cpu.eremove(SECS), Err(code(SgxCode::ChildPresent)));
    cpu.threads().enter(eid);
    assert_eq!(cpu.eremove(DATA), Err(code(SgxCode::EnclaveAct)));
    assert_eq!(cpu.eremove(VA), Ok(()));
    cpu.threads().leave(eid);
    for page in [TCS, SSA, CODE, DATA] {
        assert_eq!(cpu.eremove(SECS), Err(code(SgxCode::ChildPresent)));
        assert_eq!(cpu.eremove(page), Ok(()));
        assert_eq!(cpu.epcm(page), None);
    }
    assert_eq!(cpu.eremove(SECS), Ok(()));
}
