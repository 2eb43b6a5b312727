//! EINIT: signatures, masks and launch control.

use usgx_isa::layout::Miscselect;

use super::*;
use crate::keys::{self, Binding};

fn built(flags: u64) -> Cpu {
    let cpu = cpu();
    build(&cpu, flags);
    cpu
}

#[test]
fn every_byte_that_is_signed_or_checked_matters() {
    let cpu = built(0);
    let good = sign(0, |_| ());
    let bytes = good.as_ref().len();
    for byte in 0..bytes {
        let format = matches!(byte, 0..20 | 24..40 | 44..128 | 512..516 | 908..912 | 992..1008 | 1028..1040);
        let expected = if format { SgxCode::InvalidSigStruct } else { SgxCode::InvalidSignature };
        let bad = edit(&good, false, |bytes| bytes[byte] ^= 0x40);
        assert_eq!(einit(&cpu, &bad), Err(code(expected)), "byte {byte}");
    }
    assert_eq!(einit(&cpu, &good), Ok(()));
    assert_eq!(einit(&cpu, &good), Err(GP), "initialised already");
}

#[test]
fn vendor_can_be_intel() {
    let good = edit(&sign(0, |_| ()), true, |bytes| le::put(bytes, 16, &0x8086u32.to_le_bytes()));
    assert_eq!(einit(&built(0), &good), Ok(()));
}

#[test]
fn signature_numbers_out_of_range_are_refused() {
    let cpu = built(0);
    let good = sign(0, |_| ());
    for offset in [128, 516, 1040, 1424] {
        for value in [0, 0xff] {
            let bad = edit(&good, false, |bytes| bytes[offset..offset + 384].fill(value));
            assert_eq!(einit(&cpu, &bad), Err(code(SgxCode::InvalidSignature)), "{offset}, {value}");
        }
    }
    // The same residue, but not the signature: S + N.
    let n = good.modulus;
    let bad = edit(&good, false, |bytes| {
        let mut carry = 0;
        for (s, n) in bytes[516..900].iter_mut().zip(n) {
            let sum = u16::from(*s) + u16::from(n) + carry;
            (*s, carry) = (sum as u8, sum >> 8);
        }
    });
    assert_eq!(einit(&cpu, &bad), Err(code(SgxCode::InvalidSignature)));
}

#[test]
fn operand_must_be_an_secs() {
    let cpu = built(0);
    let (sig, token) = (sign(0, |_| ()), Einittoken::default());
    for page in [OUTSIDE, VA, DATA, FREE] {
        assert_eq!(cpu.einit(page, &sig, &token, launch_hash()), Err(pf(Operand::Target)), "{page:?}");
    }
}

#[test]
fn measurement_must_be_the_signed_one() {
    let cpu = built(0);
    let other = sign(0, |signer| {
        signer.enclavehash(EnclaveHash::new([1; 32]));
    });
    assert_eq!(einit(&cpu, &other), Err(code(SgxCode::InvalidMeasurement)));
}

#[test]
fn attributes_and_miscselect_are_compared_under_their_masks() {
    let mismatch = Err(code(SgxCode::InvalidAttribute));
    let debug = AttributesFlags::DEBUG;
    let cpu = built(0);
    let wants = |customise: fn(&mut Signer)| einit(&cpu, &sign(0, customise));
    assert_eq!(
        wants(|s| _ = s.attributes_flags(AttributesFlags::DEBUG | AttributesFlags::MODE64BIT, !0)),
        mismatch
    );
    assert_eq!(wants(|s| _ = s.attributes_xfrm(7, !0)), mismatch);
    assert_eq!(wants(|s| _ = s.miscselect(Miscselect::EXINFO, !0)), mismatch);
    assert_eq!(
        wants(|s| _ = s.attributes_flags(AttributesFlags::MODE64BIT, !0).attributes_xfrm(7, 3)),
        Ok(())
    );
    let masked = sign(0, |s| _ = s.attributes_flags(debug | AttributesFlags::MODE64BIT, !debug.bits()));
    assert_eq!(einit(&built(0), &masked), Ok(()));
}

#[test]
fn kss_fields_need_kss() {
    let with_kss_fields = |flags, offset: usize| edit(&sign(flags, |_| ()), true, |bytes| bytes[offset] = 1);
    for offset in [912, 1008] {
        let refused = einit(&built(0), &with_kss_fields(0, offset));
        assert_eq!(refused, Err(code(SgxCode::InvalidSigStruct)));
        assert_eq!(einit(&built(0x80), &with_kss_fields(0x80, offset)), Ok(()));
    }
}

#[test]
fn without_a_token_the_launch_hash_decides() {
    let cpu = built(0);
    let (sig, token) = (sign(0, |_| ()), Einittoken::default());
    for word in 0..4 {
        let mut other = launch_hash();
        other[word] ^= 1;
        assert_eq!(cpu.einit(SECS, &sig, &token, other), Err(code(SgxCode::InvalidEinitToken)));
    }
    let invalid_but_ignored = Einittoken { mrenclave: [1; 32], ..Einittoken::default() };
    assert_eq!(cpu.einit(SECS, &sig, &invalid_but_ignored, launch_hash()), Ok(()));
}

#[test]
fn launch_key_is_for_the_launch_signer_only() {
    let sig = sign(0x20, |_| ());
    let token = Einittoken::default();
    assert_eq!(built(0x20).einit(SECS, &sig, &token, [1; 4]), Err(code(SgxCode::InvalidAttribute)));
    assert_eq!(built(0x20).einit(SECS, &sig, &token, launch_hash()), Ok(()));
    assert_eq!(built(0x10).einit(SECS, &sign(0x10, |_| ()), &token, launch_hash()), Ok(()), "PROVISIONKEY");
}

/// A token as a launch enclave with the signer [7; 4] would make it for the enclave of [`build`].
fn token(change: impl FnOnce(&mut Einittoken), remac: bool) -> Einittoken {
    let fuses = fuses(1);
    let mrsigner = launch_hash().map(u64::to_le_bytes).concat();
    let mut token = Einittoken {
        valid: 1,
        attributes: attributes(4),
        mrenclave: expected_mrenclave(),
        mrsigner: mrsigner.try_into().expect("32 bytes"),
        cpusvnle: fuses.cpusvn,
        isvprodidle: 3,
        isvsvnle: 4,
        maskedattributesle: attributes(0x25),
        keyid: [9; 32],
        ..Einittoken::default()
    };
    let mac = |token: &mut Einittoken| {
        let key = fuses.derive(&Binding {
            attributes: [token.maskedattributesle.flags.bits(), token.maskedattributesle.xfrm],
            miscselect: token.maskedmiscselectle.bits(),
            isvprodid: token.isvprodidle,
            isvsvn: token.isvsvnle,
            cpusvn: token.cpusvnle,
            keyid: token.keyid,
            mrsigner: [[7, 0, 0, 0, 0, 0, 0, 0]; 4].concat().try_into().expect("32 bytes"),
            owner_epoch: true,
            seal_fuses: true,
            ..Binding::new(keys::EINITTOKEN)
        });
        token.mac = keys::mac(&key, &token.as_ref()[..192]);
    };
    mac(&mut token);
    change(&mut token);
    if remac {
        mac(&mut token);
    }
    token
}

#[test]
fn a_token_launches_any_signer() {
    let sig = sign(0, |_| ());
    let launch =
        |change: fn(&mut Einittoken), remac| built(0).einit(SECS, &sig, &token(change, remac), [7; 4]);
    let bad_token = Err(code(SgxCode::InvalidEinitToken));
    assert_eq!(launch(|_| (), false), Ok(()));
    assert_eq!(launch(|t| t.maskedattributesle.flags |= AttributesFlags::DEBUG, true), bad_token);
    assert_eq!(launch(|t| t.valid = 3, true), bad_token);
    assert_eq!(launch(|t| t._reserved1[0] = 1, true), bad_token);
    assert_eq!(launch(|t| t._reserved2[31] = 1, true), bad_token);
    assert_eq!(launch(|t| t._reserved3[0] = 1, true), bad_token);
    assert_eq!(launch(|t| t._reserved4[23] = 1, true), bad_token);
    assert_eq!(launch(|t| t.cpusvnle[15] = 1, true), Err(code(SgxCode::InvalidCpusvn)));
    assert_eq!(launch(|t| t.mrenclave[0] ^= 1, true), Err(code(SgxCode::InvalidMeasurement)));
    assert_eq!(launch(|t| t.mrsigner[0] ^= 1, true), Err(code(SgxCode::InvalidMeasurement)));
    assert_eq!(launch(|t| t.attributes.xfrm = 7, true), Err(code(SgxCode::InvalidAttribute)));
    let forged: [fn(&mut Einittoken); 7] = [
        |t| t.mac[0] ^= 1,
        |t| t.mrenclave[0] ^= 1,
        |t| t.keyid[0] ^= 1,
        |t| t.isvprodidle ^= 1,
        |t| t.isvsvnle ^= 1,
        |t| t.cpusvnle[0] ^= 1,
        |t| t.maskedattributesle.xfrm ^= 4,
    ];
    for forge in forged {
        assert_eq!(launch(forge, false), bad_token);
    }
}
