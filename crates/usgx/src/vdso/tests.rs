//! Looks symbols up in the image in each way that programs do, with readers that share no code with the
//! writer.

use super::read::{KernelImage, kernel_image};
use super::*;

fn word(image: &[u8], at: usize, size: usize) -> usize {
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(&image[at..at + size]);
    usize::try_from(u64::from_le_bytes(bytes)).expect("the tests run on 64 bits")
}

fn text(image: &[u8], at: usize) -> &[u8] {
    let end = image[at..].iter().position(|&byte| byte == 0).expect("strings end");
    &image[at..at + end]
}

/// Program headers as (type, offset).
fn segments(image: &[u8]) -> Vec<(usize, usize)> {
    let (table, count) = (word(image, 32, 8), word(image, 56, 2));
    (0..count).map(|i| (word(image, table + 56 * i, 4), word(image, table + 56 * i + 8, 8))).collect()
}

fn dynamic(image: &[u8], tag: usize) -> usize {
    let start = segments(image).into_iter().find(|segment| segment.0 == 2).expect("PT_DYNAMIC").1;
    let mut entries = (start..).step_by(16).map(|at| (word(image, at, 8), word(image, at + 8, 8)));
    entries
        .by_ref()
        .take_while(|entry| entry.0 != 0)
        .find(|entry| entry.0 == tag)
        .expect("the tag is there")
        .1
}

/// A symbol's (name, value).
fn symbol(image: &[u8], index: usize) -> (&[u8], usize) {
    let at = dynamic(image, 6) + 24 * index;
    (text(image, dynamic(image, 5) + word(image, at, 4)), word(image, at + 8, 8))
}

/// As the kernel's selftests do it: `DT_HASH`.
fn by_sysv_hash(image: &[u8], name: &[u8]) -> Option<usize> {
    let table = dynamic(image, 4);
    let mut hash = 0u32;
    for &byte in name {
        hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        hash = (hash ^ (high >> 24)) & !high;
    }
    let nr_buckets = word(image, table, 4);
    let chains = table + 8 + 4 * nr_buckets;
    let mut index = word(image, table + 8 + 4 * (hash as usize % nr_buckets), 4);
    while index != 0 {
        let (found, value) = symbol(image, index);
        if found == name {
            return Some(value);
        }
        index = word(image, chains + 4 * index, 4);
    }
    None
}

/// As the dynamic linker does it: `DT_GNU_HASH`, Bloom filter included.
fn by_gnu_hash(image: &[u8], name: &[u8]) -> Option<usize> {
    let table = dynamic(image, 0x6fff_fef5);
    let hash = name.iter().fold(5381u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)));
    let [nr_buckets, base, nr_bloom, shift] = [0, 4, 8, 12].map(|offset| word(image, table + offset, 4));
    let bloom = word(image, table + 16 + 8 * (hash as usize / 64 % nr_bloom), 8);
    if bloom >> (hash % 64) & 1 == 0 || bloom >> ((hash >> shift) % 64) & 1 == 0 {
        return None;
    }
    let buckets = table + 16 + 8 * nr_bloom;
    let chains = buckets + 4 * nr_buckets;
    let mut index = word(image, buckets + 4 * (hash as usize % nr_buckets), 4);
    if index == 0 {
        return None;
    }
    loop {
        let in_chain = word(image, chains + 4 * (index - base), 4);
        let (found, value) = symbol(image, index);
        if in_chain | 1 == hash as usize | 1 && found == name {
            return Some(value);
        }
        if in_chain & 1 == 1 {
            return None;
        }
        index += 1;
    }
}

/// As Intel's runtime does it: the sections named `.dynsym` and `.dynstr`.
fn by_sections(image: &[u8], name: &[u8]) -> Option<usize> {
    let (table, count, names) = (word(image, 40, 8), word(image, 60, 2), word(image, 62, 2));
    let names = word(image, table + 64 * names + 24, 8);
    let section = |wanted: &[u8]| {
        (0..count).map(|i| table + 64 * i).find(|&at| text(image, names + word(image, at, 4)) == wanted)
    };
    let (symbols, strings) = (section(b".dynsym")?, section(b".dynstr")?);
    let (start, size) = (word(image, symbols + 24, 8), word(image, symbols + 32, 8));
    let strings = word(image, strings + 24, 8);
    (start..start + size)
        .step_by(24)
        .find(|&at| text(image, strings + word(image, at, 4)) == name)
        .map(|at| word(image, at + 8, 8))
}

/// Follows a function's jump, as the processor would: `endbr64; jmp *disp(%rip)`.
fn destination(image: &[u8], function: usize) -> usize {
    assert_eq!(image[function..function + 6], [0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25]);
    word(image, function + 10 + word(image, function + 6, 4), 8)
}

fn sample() -> Template {
    let export =
        |name: &[u8], weak, offset| Export { name: name.to_vec(), weak, target: Target::Kernel(offset) };
    let exports = vec![
        export(b"__vdso_clock_gettime", false, 0x800),
        export(b"clock_gettime", true, 0x800),
        export(b"__vdso_getcpu", false, 0x900),
        export(ENTER, false, 0xa00),
    ];
    Template::new(KernelImage { exports, notes: vec![7; 24] }).expect("the sample is small")
}

#[test]
fn every_way_of_looking_up_finds_every_function() {
    let image = sample().image(0x7fff_0000_0000, 0x2a00_0000_1230);
    for (name, target) in [
        (&b"__vdso_clock_gettime"[..], 0x7fff_0000_0800),
        (b"clock_gettime", 0x7fff_0000_0800),
        (b"__vdso_getcpu", 0x7fff_0000_0900),
        (ENTER, 0x2a00_0000_1230),
    ] {
        for found in [by_sysv_hash(&image, name), by_gnu_hash(&image, name), by_sections(&image, name)] {
            assert_eq!(destination(&image, found.expect("it is found")), target);
        }
    }
    assert_eq!(by_sysv_hash(&image, b"__vdso_nothing"), None);
    assert_eq!(by_gnu_hash(&image, b"__vdso_nothing"), None);
}

#[test]
fn every_symbol_has_the_kernels_version() {
    let image = sample().image(0, 0);
    let (versions, strings, definitions) =
        (dynamic(&image, 0x6fff_fff0), dynamic(&image, 5), dynamic(&image, 0x6fff_fffc));
    let nr_symbols = word(&image, dynamic(&image, 4) + 4, 4);
    assert!((1..nr_symbols).all(|index| word(&image, versions + 2 * index, 2) == 2));
    assert_eq!(dynamic(&image, 0x6fff_fffd), 2);
    let first = definitions;
    let second = first + word(&image, first + 16, 4);
    let name = |at: usize| text(&image, strings + word(&image, at + word(&image, at + 12, 4), 4));
    assert_eq!(
        (word(&image, first + 2, 2), word(&image, first + 4, 2), name(first)),
        (1, 1, &b"linux-vdso.so.1"[..])
    );
    assert_eq!(
        (word(&image, second + 2, 2), word(&image, second + 4, 2), name(second)),
        (0, 2, &b"LINUX_2.6"[..])
    );
    // The hash by which the C library asks for this version.
    assert_eq!(word(&image, second + 8, 4), 0x03ae_75f6);
    assert_eq!(text(&image, strings + dynamic(&image, 14)), b"linux-vdso.so.1");
}

#[test]
fn notes_are_the_kernels() {
    let image = sample().image(0, 0);
    let at = segments(&image).into_iter().find(|segment| segment.0 == 4).expect("PT_NOTE").1;
    assert_eq!(image[at..at + 24], [7; 24]);
}

#[test]
fn the_running_kernels_image_is_repeated_in_full() {
    let Some(own) = usgx_sys::vdso::own_image().expect("it can be read") else { return };
    let kernel = kernel_image(&own).expect("it is understood");
    assert!(!kernel.exports.is_empty());
    let expected = kernel.exports.clone();
    let image = Template::new(kernel).expect("it fits").image(0x1000_0000, 0x42);
    for export in expected {
        let Target::Kernel(offset) = export.target else { panic!("the kernel's image leads to itself") };
        let found = by_gnu_hash(&image, &export.name).expect("it is found");
        let target = if export.name == ENTER { 0x42 } else { 0x1000_0000 + offset };
        assert_eq!(destination(&image, found) as u64, target);
        assert_eq!(by_sysv_hash(&image, &export.name), Some(found));
        assert_eq!(by_sections(&image, &export.name), Some(found));
    }
}
