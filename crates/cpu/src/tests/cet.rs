//! Shadow stacks of enclaves (CET), which no profile has: every leaf that sees their page types or fields answers what
//! a processor without CET answers.

use usgx_isa::layout::PageType;
use usgx_isa::{EvictedPage, VaSlot};

use super::*;

/// PT_SS_FIRST and PT_SS_REST in their place in FLAGS.
const PT_SS: [u64; 2] = [5 << 8, 6 << 8];
const SECINFO_AT: u64 = 64;

/// Runs a user leaf of the fixture with this SECINFO.
fn with_secinfo(
    cpu: &Cpu,
    flags: u64,
    leaf: impl FnOnce(LinAddr, &Map) -> Result<(), EncluError>,
) -> Result<(), EncluError> {
    write(cpu, SSA, SECINFO_AT as usize, secinfo(flags).as_ref());
    leaf(LinAddr(at(SSA).0 + SECINFO_AT), &map())
}

#[test]
fn no_profile_shows_cet() {
    for profile in Profile::all() {
        let attributes = profile.cpuid(&[1 << 20], 0x12, 1).expect("an override").apply([0; 4])[0];
        let misc = profile.cpuid(&[1 << 20], 0x12, 0).expect("an override").apply([0; 4])[1];
        assert_eq!((attributes & 1 << 6, misc & 2), (0, 0), "{}: CET and CPINFO", profile.name());
    }
}

#[test]
fn no_enclave_is_created_with_cet() {
    type Change = fn(&mut [u8]);
    let changes: [(&str, Change); 4] = [
        ("ATTRIBUTES.CET", |secs| secs[48] |= 1 << 6),
        ("MISCSELECT.CPINFO", |secs| secs[20] = 2),
        ("CET_LEG_BITMAP_OFFSET", |secs| secs[25] = 0x10),
        ("CET_ATTRIBUTES", |secs| secs[32] = 1),
    ];
    for profile in Profile::all() {
        for (what, change) in changes {
            let mut page = secs_page(0);
            change(&mut page.0);
            let cpu = power_on(profile, fuses(1), 2);
            assert_eq!(cpu.ecreate(SECS, &page, &secinfo(0)), Err(Fault::Gp), "{what} on {}", profile.name());
        }
    }
}

#[test]
fn no_page_becomes_a_shadow_stack() {
    for page_type in PT_SS {
        let cpu = cpu();
        build(&cpu, 0);
        let eadd = cpu.eadd(FREE, SECS, at(FREE), &Page::ZERO, &secinfo(page_type | R | W));
        assert_eq!(eadd, Err(Fault::Gp), "EADD");
        assert_eq!(cpu.ecreate(FREE, &secs_page(0), &secinfo(page_type)), Err(Fault::Gp), "ECREATE");
        einit(&cpu, &sign(0, |_| ())).expect("EINIT");
        for page in [DATA, TCS] {
            assert_eq!(cpu.emodt(page, &secinfo(page_type)), Err(GP), "EMODT of {page:?}");
        }
    }
}

#[test]
fn no_shadow_stack_is_accepted() {
    let (cpu, _) = enclave();
    for page_type in PT_SS {
        for state in [0, PENDING, MODIFIED, PR, PENDING | PR] {
            let accepted = with_secinfo(&cpu, page_type | R | W | state, |secinfo, map| {
                cpu.eaccept(SECS, secinfo, at(DATA), map)
            });
            assert_eq!(accepted, Err(EncluError::Gp), "EACCEPT, {state:#x}");
        }
        let copied = with_secinfo(&cpu, page_type | R | W, |secinfo, map| {
            cpu.eacceptcopy(SECS, secinfo, at(DATA), at(SSA), map)
        });
        assert_eq!(copied, Err(EncluError::Gp), "EACCEPTCOPY");
    }
}

#[test]
fn no_shadow_stack_is_loaded() {
    let (cpu, _) = enclave();
    let slot = VaSlot { page: VA, index: 0 };
    let mut evicted = EvictedPage::default();
    block_and_track(&cpu, DATA);
    cpu.ewb(DATA, slot, &mut evicted).expect("EWB");
    for page_type in PT_SS {
        let mut forged = evicted.clone();
        forged.pcmd.secinfo = secinfo(page_type | R | W);
        // A type that does not exist has no owner, and no MAC that fits.
        assert_eq!(cpu.eldu(DATA, slot, at(DATA), Some(SECS), &forged), Err(GP));
        assert_eq!(cpu.eldu(DATA, slot, at(DATA), None, &forged), Err(code(SgxCode::MacCompareFail)));
    }
    cpu.eldu(DATA, slot, at(DATA), Some(SECS), &evicted).expect("the page itself");
    assert_eq!(cpu.epcm(DATA).expect("valid").page_type, PageType::Reg);
}
