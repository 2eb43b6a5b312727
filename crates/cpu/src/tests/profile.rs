//! CPUID of the profiles.

use super::*;
use crate::XsaveLayout;

const EPC: u64 = 93 << 20;

fn cpuid(profile: &Profile, leaf: u32, subleaf: u32) -> [u32; 4] {
    profile.cpuid(&[EPC], leaf, subleaf).expect("an override").apply([0; 4])
}

#[test]
fn profiles_have_unique_names_and_the_server_is_the_default() {
    let names: Vec<_> = Profile::all().map(|profile| profile.name()).collect();
    assert_eq!(names, ["coffee-lake", "tiger-lake", "ice-lake-sp", "sapphire-rapids"]);
    assert_eq!(Profile::default().name(), "ice-lake-sp");
    assert!(Profile::by_name("486").is_none());
    assert!(Profile::all().all(|profile| !profile.description().is_empty()));
}

#[test]
fn sgx_leaf_is_that_of_the_real_part() {
    let old = profile("coffee-lake");
    assert_eq!(cpuid(&old, 0x12, 0), [1, 0, 0, 0x241f]);
    assert_eq!(cpuid(&old, 0x12, 1), [0x36, 0, 0x1f, 0]);
    assert!(!old.has_sgx2() && !old.has_kss() && !old.rdtsc_in_enclaves());
    let server = Profile::default();
    assert_eq!(cpuid(&server, 0x12, 0), [0x403, 1, 0, 0x381f]);
    assert_eq!(cpuid(&server, 0x12, 1), [0xb6, 0, 0x2e7, 0]);
    assert!(server.has_sgx2() && server.has_kss() && server.rdtsc_in_enclaves() && !server.has_aex_notify());
    let newer = profile("sapphire-rapids");
    assert_eq!(cpuid(&newer, 0x12, 0), [0xc03, 1, 0, 0x381f]);
    assert_eq!(cpuid(&newer, 0x12, 1), [0x4b6, 0, 0x6_02e7, 0]);
    assert!(newer.has_aex_notify());
    let no_avx512 = XsaveLayout::from_cpuid(|_, _| [0x207, 0, 0, 0]);
    assert_eq!(cpuid(&server.with_xsave(no_avx512), 0x12, 1)[2], 0x207);
}

#[test]
fn epc_section_has_the_size_that_was_asked_for() {
    for profile in Profile::all() {
        let [eax, ebx, ecx, edx] = cpuid(&profile, 0x12, 2);
        assert_eq!(eax & 0xfff, 1);
        assert_ne!(u64::from(ebx) << 32 | u64::from(eax & !0xfff), 0);
        assert_eq!(u64::from(edx) << 32 | u64::from(ecx & !0xfff), EPC);
        assert_ne!(ecx & 0xf, 0);
        assert_eq!(cpuid(&profile, 0x12, 3), [0; 4]);
        let large = profile.cpuid(&[5 << 40], 0x12, 2).expect("an override").or;
        assert_eq!(u64::from(large[3]) << 32 | u64::from(large[2] & !0xfff), 5 << 40);
        assert_eq!(profile.cpuid(&[], 0x12, 2).expect("an override").or, [0; 4]);
    }
}

#[test]
fn each_section_has_a_subleaf() {
    let sections = [64 << 20, 5 << 40, 1 << 20];
    let mut next = None;
    for (subleaf, size) in (2..).zip(sections) {
        let [eax, ebx, ecx, edx] =
            Profile::default().cpuid(&sections, 0x12, subleaf).expect("an override").or;
        let base = u64::from(ebx) << 32 | u64::from(eax & !0xfff);
        assert_eq!((eax & 0xfff, u64::from(edx) << 32 | u64::from(ecx & !0xfff)), (1, size));
        assert!(next.is_none_or(|next| base == next), "they do not overlap");
        next = Some(base + size);
    }
    assert_eq!(Profile::default().cpuid(&sections, 0x12, 5).expect("an override").or, [0; 4]);
}

#[test]
fn other_leaves_keep_what_the_host_says() {
    let profile = Profile::default();
    let leaf0 = profile.cpuid(&[EPC], 0, 0).expect("an override");
    assert_eq!(leaf0.apply([0xd, 1, 2, 3])[0], 0x12);
    let [eax, ebx, ecx, edx] = leaf0.apply([0x20, 1, 2, 3]);
    assert_eq!(eax, 0x20);
    assert_eq!([ebx, edx, ecx].map(u32::to_le_bytes).concat(), b"GenuineIntel");
    let leaf7 = profile.cpuid(&[EPC], 7, 0).expect("an override");
    assert_eq!(leaf7.apply([1, 0x8000_0000, 0x80, 0xf]), [1, 0x8000_0004, 0x4000_0080, 0xd]);
    assert_eq!(profile.cpuid(&[EPC], 7, 1), None);
    assert_eq!(profile.cpuid(&[EPC], 1, 0), None);
}
