//! EREPORT and EGETKEY.

use super::*;
use crate::keys;
use usgx_isa::layout::{Keyname, Keypolicy, Keyrequest, Report, Targetinfo};

const NO_KEYS: u64 = 2;
const ALL_KEYS: u64 = 2 | 0x10 | 0x20;

/// Runs EGETKEY with operands in DATA.
fn egetkey(cpu: &Cpu, request: &Keyrequest) -> Result<[u8; 16], EncluError> {
    write(cpu, DATA, 512, request.as_ref());
    write(cpu, DATA, 16, &[0xee; 16]);
    let result = cpu.egetkey(SECS, LinAddr(at(DATA).0 + 512), LinAddr(at(DATA).0 + 16), &map());
    let key = read(cpu, DATA, 16);
    assert_eq!(result.is_err(), key == [0xee; 16], "an error leaves the buffer alone");
    result.map(|()| key)
}

fn ereport(cpu: &Cpu, target: &Targetinfo, data: [u8; 64]) -> Result<Report, EncluError> {
    write(cpu, DATA, 0, target.as_ref());
    write(cpu, DATA, 512, &data);
    let [rbx, rcx, rdx] = [0, 512, 1024].map(|offset| LinAddr(at(DATA).0 + offset));
    cpu.ereport(SECS, rbx, rcx, rdx, &map())?;
    Ok(Report::try_copy_from(&read::<432>(cpu, DATA, 1024)).expect("432 bytes"))
}

fn request(name: Keyname) -> Keyrequest {
    Keyrequest { keyname: name as u16, ..Keyrequest::default() }
}

fn with(flags: u64, seed: u64) -> Cpu {
    let cpu = power_on(Profile::default(), fuses(seed), seed + 100);
    enclave_with(&cpu, flags);
    cpu
}

#[test]
fn a_report_can_be_verified_by_its_target() {
    let (cpu, _) = enclave();
    let about_me = ereport(&cpu, &Targetinfo::default(), [5; 64]).expect("EREPORT");
    let state = cpu.enclave(SECS).expect("an SECS");
    assert_eq!((about_me.mrenclave, about_me.mrsigner), (state.mrenclave, state.mrsigner));
    assert_eq!((about_me.isvprodid, about_me.isvsvn, about_me.reportdata), (7, 5, [5; 64]));
    assert_eq!(about_me.attributes, attributes(7));
    assert_eq!(about_me.cpusvn, fuses(1).cpusvn);

    let report = ereport(&cpu, &Targetinfo::from(about_me), [6; 64]).expect("EREPORT");
    let key =
        egetkey(&cpu, &Keyrequest { keyid: report.keyid, ..request(Keyname::Report) }).expect("EGETKEY");
    assert_eq!(report.mac, keys::mac(&key, report.mac_data()));
    let other = egetkey(&cpu, &Keyrequest { keyid: [0; 32], ..request(Keyname::Report) }).expect("EGETKEY");
    assert_ne!(report.mac, keys::mac(&other, report.mac_data()));
    let mut elsewhere = Targetinfo::from(report);
    elsewhere.measurement[0] ^= 1;
    let report = ereport(&cpu, &elsewhere, [6; 64]).expect("EREPORT");
    assert_ne!(report.mac, keys::mac(&key, report.mac_data()));
}

#[test]
fn ereport_checks_its_operands() {
    let (cpu, _) = enclave();
    for byte in (48..50).chain(56..64).chain(128..512) {
        let mut bytes = [0; 512];
        bytes[byte] = 1;
        let target = Targetinfo::try_copy_from(&bytes).expect("512 bytes");
        assert!(matches!(ereport(&cpu, &target, [0; 64]), Err(EncluError::Gp)), "byte {byte}");
    }
    write(&cpu, DATA, 0, &[0; 4096]);
    let good = [0, 512, 1024].map(|offset| at(DATA).0 + offset);
    let run = |[rbx, rcx, rdx]: [u64; 3]| cpu.ereport(SECS, LinAddr(rbx), LinAddr(rcx), LinAddr(rdx), &map());
    assert_eq!(run(good), Ok(()));
    for operand in 0..3 {
        for wrong in [good[operand] + 64, BASE - 512, BASE + SIZE] {
            let mut operands = good;
            operands[operand] = wrong;
            assert_eq!(run(operands), Err(EncluError::Gp));
        }
        for (addr, sgx) in [(at(TCS), true), (LinAddr(BASE + SIZE - 0x1000), false)] {
            let mut operands = good;
            operands[operand] = addr.0;
            assert_eq!(run(operands), Err(fault(addr, operand == 2, sgx)));
        }
    }
    let code = at(CODE);
    assert_eq!(run([good[0], good[1], code.0]), Err(fault(code, true, true)), "not writable");
}

#[test]
fn sealed_data_survives_a_restart_and_stays_on_the_machine() {
    let seal = Keyrequest { keypolicy: Keypolicy::MRENCLAVE, keyid: [3; 32], ..request(Keyname::Seal) };
    let key = egetkey(&with(NO_KEYS, 1), &seal).expect("EGETKEY");
    let stored = FuseKeys::from_bytes(&fuses(1).to_bytes()).expect("fuse keys");
    let restarted = power_on(Profile::default(), stored, 999);
    enclave_with(&restarted, NO_KEYS);
    assert_eq!(egetkey(&restarted, &seal), Ok(key));
    assert_ne!(egetkey(&with(NO_KEYS, 2), &seal), Ok(key));
}

#[test]
fn keys_are_bound_to_what_the_table_says() {
    let cpu = with(ALL_KEYS, 1);
    // The fields of the request that change each kind of key: KEYID, ISVSVN, CPUSVN, ATTRIBUTEMASK, MISCMASK,
    // and KEYPOLICY.
    let changes: [fn(&mut Keyrequest); 6] = [
        |r| r.keyid = [1; 32],
        |r| r.isvsvn = 1,
        |r| r.cpusvn[0] = 1,
        |r| r.attributemask[0] = 0x10,
        |r| r.miscmask = 1,
        |r| r.keypolicy = Keypolicy::MRSIGNER,
    ];
    let table = [
        (Keyname::Einittoken, [true, true, true, true, false, false]),
        (Keyname::Provision, [false, true, true, true, true, false]),
        (Keyname::ProvisionSeal, [false, true, true, true, true, true]),
        (Keyname::Report, [true, false, false, false, false, false]),
        (Keyname::Seal, [true, true, true, true, true, true]),
    ];
    let mut seen = std::collections::HashSet::new();
    for (name, bound) in table {
        let plain = egetkey(&cpu, &request(name)).expect("EGETKEY");
        assert!(seen.insert(plain), "{name:?} is a key of its own");
        for (change, bound) in changes.iter().zip(bound) {
            let mut changed = request(name);
            change(&mut changed);
            let key = egetkey(&cpu, &changed).expect("EGETKEY");
            assert_eq!(key != plain, bound, "{name:?} {changed:?}");
        }
    }
}

#[test]
fn only_seal_by_measurement_tells_enclaves_of_a_signer_apart() {
    let by = |policy, cpu: &Cpu| egetkey(cpu, &Keyrequest { keypolicy: policy, ..request(Keyname::Seal) });
    let (first, second) = (with(0, 1), power_on(Profile::default(), fuses(1), 7));
    // Another measurement, the same signer.
    second.ecreate(SECS, &secs_page(0), &secinfo(0)).expect("ECREATE");
    second.eadd(DATA, SECS, at(DATA), &Page::ZERO, &secinfo(PT_REG | R | W)).expect("EADD");
    let mut plain = crate::measure::Measurement::start(1, SIZE);
    plain.add(at(DATA).0 - BASE, PT_REG | R | W);
    einit(&second, &sign(0, |s| _ = s.enclavehash(EnclaveHash::new(plain.finish())))).expect("EINIT");
    assert_eq!(by(Keypolicy::MRSIGNER, &first), by(Keypolicy::MRSIGNER, &second));
    assert_ne!(by(Keypolicy::MRENCLAVE, &first), by(Keypolicy::MRENCLAVE, &second));
}

#[test]
fn debug_enclaves_never_get_production_keys() {
    assert_ne!(
        egetkey(&with(0, 1), &request(Keyname::Seal)),
        egetkey(&with(2, 1), &request(Keyname::Seal)),
        "DEBUG counts whatever the mask says"
    );
}

#[test]
fn keys_need_their_attributes() {
    let cpu = with(NO_KEYS, 1);
    for name in [Keyname::Einittoken, Keyname::Provision, Keyname::ProvisionSeal] {
        // The attribute is looked at before the versions.
        let refused = egetkey(&cpu, &Keyrequest { isvsvn: 99, ..request(name) });
        assert_eq!(refused, Err(EncluError::Code(SgxCode::InvalidAttribute)), "{name:?}");
    }
    assert!(egetkey(&cpu, &request(Keyname::Seal)).is_ok());
}

#[test]
fn newer_versions_are_refused_and_older_ones_stay() {
    let cpu = with(ALL_KEYS, 1);
    let current = fuses(1).cpusvn;
    for name in [Keyname::Einittoken, Keyname::Provision, Keyname::ProvisionSeal, Keyname::Seal] {
        for byte in 0..16 {
            let mut newer = Keyrequest { cpusvn: current, isvsvn: 9, ..request(name) };
            newer.cpusvn[byte] += 1;
            assert_eq!(egetkey(&cpu, &newer), Err(EncluError::Code(SgxCode::InvalidCpusvn)));
        }
        let newer = Keyrequest { isvsvn: 6, ..request(name) };
        assert_eq!(egetkey(&cpu, &newer), Err(EncluError::Code(SgxCode::InvalidIsvsvn)));
        assert!(egetkey(&cpu, &Keyrequest { isvsvn: 5, cpusvn: current, ..request(name) }).is_ok());
    }
    let unknown = Keyrequest { keyname: 5, ..Keyrequest::default() };
    assert_eq!(egetkey(&cpu, &unknown), Err(EncluError::Code(SgxCode::InvalidKeyname)));
}

#[test]
fn reserved_fields_of_a_request_are_checked() {
    let cpu = with(NO_KEYS, 1);
    let kss = with(NO_KEYS | 0x80, 1);
    let run = |cpu: &Cpu, byte: usize, value: u8| {
        let mut bytes = request(Keyname::Seal).as_ref().to_vec();
        bytes[byte] |= value;
        egetkey(cpu, &Keyrequest::try_copy_from(&bytes).expect("512 bytes"))
    };
    for byte in (6..8).chain(78..512) {
        assert_eq!(run(&kss, byte, 1), Err(EncluError::Gp), "byte {byte}");
    }
    for (byte, value) in [(2, 0x40), (2, 0x80), (3, 0x01), (3, 0x80)] {
        assert_eq!(run(&kss, byte, value), Err(EncluError::Gp), "KEYPOLICY");
    }
    for (byte, value) in [(2, 0x04), (2, 0x08), (2, 0x10), (2, 0x20)] {
        assert_eq!(run(&cpu, byte, value), Err(EncluError::Gp), "KEYPOLICY without KSS");
        assert!(run(&kss, byte, value).is_ok());
    }
    assert_eq!(run(&cpu, 76, 1), Err(EncluError::Gp), "CONFIGSVN without KSS");
    assert_eq!(run(&kss, 76, 1), Err(EncluError::Code(SgxCode::InvalidIsvsvn)), "beyond the enclave's");
}

#[test]
fn egetkey_checks_its_operands() {
    let (cpu, _) = enclave();
    write(&cpu, DATA, 0, request(Keyname::Seal).as_ref());
    let run = |rbx: u64, rcx: u64| cpu.egetkey(SECS, LinAddr(rbx), LinAddr(rcx), &map());
    let (rbx, rcx) = (at(DATA).0, at(DATA).0 + 1024);
    assert_eq!(run(rbx, rcx), Ok(()));
    assert_eq!(run(rbx + 256, rcx), Err(EncluError::Gp));
    assert_eq!(run(BASE - 512, rcx), Err(EncluError::Gp));
    assert_eq!(run(rbx, rcx + 8), Err(EncluError::Gp));
    assert_eq!(run(rbx, BASE + SIZE), Err(EncluError::Gp));
    assert_eq!(run(at(TCS).0, rcx), Err(fault(at(TCS), false, true)));
    assert_eq!(run(rbx, at(CODE).0), Err(fault(at(CODE), true, true)));
    assert_eq!(cpu.egetkey(DATA, LinAddr(rbx), LinAddr(rcx), &map()), Err(EncluError::Gp), "no enclave");
    cpu.eblock(DATA).expect("EBLOCK");
    assert_eq!(run(rbx, rcx), Err(fault(at(DATA), false, true)));
}

/// With KSS, the enclave's configuration and its signer's families can be part of a seal key.
#[test]
fn kss_policies_bind_to_configuration_and_family() {
    let with_kss = |change: fn(&mut [u8; 4096]), family: u8, ext: u8| {
        let cpu = power_on(Profile::default(), fuses(1), 5);
        let mut secs = secs_page(0x80);
        change(&mut secs.0);
        cpu.ecreate(SECS, &secs, &secinfo(0)).expect("ECREATE");
        cpu.eadd(SSA, SECS, at(SSA), &Page::ZERO, &secinfo(PT_REG | R | W)).expect("EADD");
        cpu.eadd(DATA, SECS, at(DATA), &Page::ZERO, &secinfo(PT_REG | R | W)).expect("EADD");
        let hash = cpu.resident(SECS).expect("an SECS").measurement().finish();
        let sig = sign(0x80, |signer| _ = signer.enclavehash(EnclaveHash::new(hash)));
        let sig = edit(&sig, true, |bytes| (bytes[912], bytes[1008]) = (family, ext));
        einit(&cpu, &sig).expect("EINIT");
        cpu
    };
    const CONFIGID: u8 = 1 << 3;
    const ISVFAMILYID: u8 = 1 << 4;
    const ISVEXTPRODID: u8 = 1 << 5;
    let seal = |cpu: &Cpu, policy: u8, configsvn: u8| {
        let mut bytes = request(Keyname::Seal).as_ref().to_vec();
        (bytes[2], bytes[76]) = (policy, configsvn);
        egetkey(cpu, &Keyrequest::try_copy_from(&bytes).expect("512 bytes"))
    };
    let plain = with_kss(|_| (), 0, 0);
    let others = [
        (CONFIGID, with_kss(|secs| secs[192] = 1, 0, 0)),
        (ISVFAMILYID, with_kss(|_| (), 1, 0)),
        (ISVEXTPRODID, with_kss(|_| (), 0, 1)),
    ];
    for (policy, other) in &others {
        for asked in [CONFIGID, ISVFAMILYID, ISVEXTPRODID] {
            let same = seal(&plain, asked, 0) == seal(other, asked, 0);
            assert_eq!(same, asked != *policy, "{policy:#x} {asked:#x}");
        }
    }
    let versioned = with_kss(|secs| secs[260] = 2, 0, 0);
    assert_ne!(seal(&versioned, CONFIGID, 1), seal(&versioned, CONFIGID, 2));
    assert_eq!(seal(&versioned, 0, 1), seal(&versioned, 0, 2));
    assert_eq!(seal(&versioned, CONFIGID, 3), Err(EncluError::Code(SgxCode::InvalidIsvsvn)));
}
