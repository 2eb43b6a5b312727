//! What entry checks of a TCS, and what entry and exit store.

use super::*;

#[test]
fn a_tcs_can_be_entered() {
    let (cpu, eid) = enclave();
    let tcs = cpu.tcs(TCS, at(TCS)).expect("a TCS");
    assert_eq!((tcs.state, tcs.cssa, tcs.nssa, tcs.aep), (0, 0, 2, 0));
    assert_eq!((tcs.secs, tcs.eid, tcs.base, tcs.size), (SECS, eid, LinAddr(BASE), SIZE));
    assert_eq!((tcs.attributes, tcs.xfrm, tcs.ssaframesize, tcs.xsave_size), (7, 3, 1, 576));
    assert_eq!((tcs.frame(0), tcs.frame(1)), (at(SSA), LinAddr(at(SSA).0 + 0x1000)));
}

#[test]
fn entry_checks_the_tcs() {
    let (cpu, _) = enclave();
    let refused = Err(Fault::Pf(Operand::Target));
    assert_eq!(cpu.tcs(TCS, LinAddr(at(TCS).0 + 8)), Err(Fault::Gp));
    assert_eq!(cpu.tcs(OUTSIDE, at(TCS)), refused);
    assert_eq!(cpu.tcs(FREE, at(FREE)), refused);
    assert_eq!(cpu.tcs(DATA, at(DATA)), refused);
    assert_eq!(cpu.tcs(TCS, at(SSA)), refused);
    for (offset, value) in [(16, 1u64), (48, 1), (56, 1), (8, 4), (8, 2)] {
        let old: [u8; 8] = read(&cpu, TCS, offset);
        write(&cpu, TCS, offset, &value.to_le_bytes());
        assert_eq!(cpu.tcs(TCS, at(TCS)), Err(Fault::Gp), "offset {offset}");
        write(&cpu, TCS, offset, &old);
    }
    write(&cpu, TCS, 8, &1u64.to_le_bytes());
    assert!(cpu.tcs(TCS, at(TCS)).is_ok(), "DBGOPTIN");
    cpu.eblock(TCS).expect("EBLOCK");
    assert_eq!(cpu.tcs(TCS, at(TCS)), refused);
    let young = self::cpu();
    build(&young, 0);
    assert_eq!(young.tcs(TCS, at(TCS)), Err(Fault::Gp), "not initialised");
}

#[test]
fn stores_reach_pages_that_are_blocked_and_no_others() {
    let (cpu, _) = enclave();
    for page in [TCS, SSA] {
        cpu.eblock(page).expect("EBLOCK");
    }
    assert!(cpu.store_tcs(TCS, 1, 7, 0x1234));
    assert_eq!(read::<4>(&cpu, TCS, 24), 7u32.to_le_bytes());
    assert_eq!(read::<8>(&cpu, TCS, 40), 0x1234u64.to_le_bytes());
    assert!(cpu.store_implicit(SSA, 4088, &[9; 8]));
    assert_eq!(read::<8>(&cpu, SSA, 4088), [9; 8]);
    for page in [SECS, DATA, VA, FREE, OUTSIDE] {
        assert!(!cpu.store_tcs(page, 1, 1, 1), "{page:?}");
    }
    for page in [SECS, TCS, VA, FREE, OUTSIDE] {
        assert!(!cpu.store_implicit(page, 0, &[1]), "{page:?}");
    }
}

/// An enclave on a processor with AEX-Notify, with the attribute or without.
fn notify_enclave(attribute: bool) -> Cpu {
    const AEXNOTIFY: u64 = 1 << 10;
    let cpu = power_on(profile("sapphire-rapids"), fuses(1), 2);
    let flags = 2 | if attribute { AEXNOTIFY } else { 0 };
    build(&cpu, flags);
    // The signer's types do not know the attribute.
    let sig = edit(&sign(2, |_| ()), true, |bytes| le::put(bytes, 928, &(flags | 4).to_le_bytes()));
    einit(&cpu, &sig).expect("EINIT");
    assert_eq!(cpu.enclave(SECS).expect("an SECS").attributes, flags | 5);
    cpu
}

#[test]
fn aex_notify_is_the_enclaves_and_the_threads_to_agree_on() {
    const DBGOPTIN: u64 = 1;
    const AEXNOTIFY: u64 = 2;
    for attribute in [false, true] {
        let cpu = notify_enclave(attribute);
        for (flags, enters) in [
            (0, !attribute),
            (AEXNOTIFY, attribute),
            // A debugger's thread need not agree.
            (DBGOPTIN, true),
            (DBGOPTIN | AEXNOTIFY, true),
            (4, false),
            (DBGOPTIN | 4, false),
        ] {
            write(&cpu, TCS, 8, &flags.to_le_bytes());
            let expected = if enters { Ok(flags) } else { Err(Fault::Gp) };
            assert_eq!(cpu.tcs(TCS, at(TCS)).map(|tcs| tcs.flags), expected, "{attribute} {flags}");
        }
    }
}

#[test]
fn parts_without_aex_notify_refuse_attribute_and_flag() {
    for profile in Profile::all() {
        let cpu = power_on(profile, fuses(1), 2);
        let created = cpu.ecreate(SECS, &secs_page(1 << 10), &secinfo(0));
        let expected = if profile.has_aex_notify() { Ok(()) } else { Err(Fault::Gp) };
        assert_eq!(created, expected, "{}", profile.name());
    }
    let (cpu, _) = enclave();
    for flags in [2_u64, 3] {
        write(&cpu, TCS, 8, &flags.to_le_bytes());
        assert_eq!(cpu.tcs(TCS, at(TCS)), Err(Fault::Gp), "{flags}");
    }
}
