//! The enclave's address space: what the linker made, and threads and heap behind it.

use std::fmt::Write as _;

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _, Rela as _, SectionHeader as _};

use crate::layout;

pub(crate) const PAGE_SIZE: usize = 4096;
/// SECINFO.FLAGS: R, W, X.
const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;
/// SECINFO.FLAGS: page types.
const TCS: u64 = 1 << 8;
const REG: u64 = 2 << 8;

/// Pages of one kind, one after the other.
pub(crate) struct Region {
    /// From the enclave's base.
    pub(crate) offset: usize,
    /// In bytes, whole pages.
    pub(crate) length: usize,
    /// SECINFO.FLAGS.
    pub(crate) flags: u64,
    /// Whether the contents are part of MRENCLAVE.
    pub(crate) measured: bool,
    /// Where the contents are in [`Image::contents`]; `None` for zeros.
    pub(crate) contents: Option<usize>,
}

/// An enclave before it is loaded.
pub(crate) struct Image {
    /// In the order in which they are added.
    pub(crate) regions: Vec<Region>,
    /// The bytes of all regions that have some.
    pub(crate) contents: Vec<u8>,
}

impl Image {
    pub(crate) fn new(file: &[u8]) -> Self {
        let mut image = Self { regions: Vec::new(), contents: Vec::new() };
        let header = FileHeader64::<Endianness>::parse(file).expect("the linker writes ELF files");
        let endian = header.endian().expect("little");
        check_relocations(header, endian, file);
        let segments = header.program_headers(endian, file).expect("the linker writes program headers");
        for segment in segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD) {
            let mut bytes = segment.data(endian, file).expect("the file is whole").to_vec();
            bytes.resize((segment.p_memsz(endian) as usize).next_multiple_of(PAGE_SIZE), 0);
            let flag = |pf, secinfo| if segment.p_flags(endian) & pf == 0 { 0 } else { secinfo };
            let flags = REG | flag(elf::PF_R, R) | flag(elf::PF_W, W) | flag(elf::PF_X, X);
            image.add(segment.p_vaddr(endian) as usize, &bytes, flags);
        }
        for thread in 0..layout::NR_THREADS {
            image.add_thread(layout::THREADS + thread * layout::THREAD_STRIDE, header.e_entry(endian));
        }
        // Measuring 64 MiB of zeros would only take time. Nothing in the enclave relies on what it finds there.
        image.add_zeros(layout::HEAP, layout::HEAP_SIZE, false);
        image
    }

    fn add_thread(&mut self, tcs: usize, entry: u64) {
        let mut page = [0; PAGE_SIZE];
        let ssa = tcs + PAGE_SIZE;
        // OSSA, NSSA, OENTRY, FSLIMIT, GSLIMIT.
        page[16..24].copy_from_slice(&(ssa as u64).to_le_bytes());
        page[28..32].copy_from_slice(&(layout::NR_SSA_FRAMES as u32).to_le_bytes());
        page[32..40].copy_from_slice(&entry.to_le_bytes());
        page[64..72].copy_from_slice(&[0xff; 8]);
        self.add(tcs, &page, TCS);
        self.add_zeros(ssa, layout::NR_SSA_FRAMES * PAGE_SIZE, true);
        self.add_zeros(tcs + layout::STACK_BOTTOM, layout::STACK_TOP - layout::STACK_BOTTOM, true);
    }

    fn add(&mut self, offset: usize, bytes: &[u8], flags: u64) {
        let contents = Some(self.contents.len());
        self.contents.extend(bytes);
        self.regions.push(Region { offset, length: bytes.len(), flags, measured: true, contents });
    }

    fn add_zeros(&mut self, offset: usize, length: usize, measured: bool) {
        self.regions.push(Region { offset, length, flags: REG | R | W, measured, contents: None });
    }

    /// The contents of the page at `offset` into a region.
    pub(crate) fn page(&self, region: &Region, offset: usize) -> &[u8] {
        static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        region.contents.map_or(&ZEROS, |start| &self.contents[start + offset..start + offset + PAGE_SIZE])
    }

    /// The regions as the elements of a Rust array.
    pub(crate) fn as_rust(&self) -> String {
        let mut text = String::from("[\n");
        for Region { offset, length, flags, measured, contents } in &self.regions {
            writeln!(
                text,
                "    Region {{ offset: {offset:#x}, length: {length:#x}, flags: {flags:#x}, \
                 measured: {measured}, contents: {contents:?} }},"
            )
            .expect("a string has room");
        }
        text.push_str("]\n");
        text
    }
}

/// The enclave's entry code knows one kind of relocation, and can write to writable pages only.
fn check_relocations(header: &FileHeader64<Endianness>, endian: Endianness, file: &[u8]) {
    let writable = |address: u64| {
        header.program_headers(endian, file).expect("read before").iter().any(|segment| {
            segment.p_type(endian) == elf::PT_LOAD
                && segment.p_flags(endian) & elf::PF_W != 0
                && (segment.p_vaddr(endian)..segment.p_vaddr(endian) + segment.p_memsz(endian))
                    .contains(&address)
        })
    };
    for section in header.sections(endian, file).expect("the linker writes section headers").iter() {
        let Some((relocations, _)) = section.rela(endian, file).expect("the linker writes them whole") else {
            continue;
        };
        for relocation in relocations {
            let (kind, place) = (relocation.r_type(endian, false), relocation.r_offset(endian));
            assert!(
                kind == elf::R_X86_64_RELATIVE && writable(place),
                "the enclave has a relocation of type {kind} at {place:#x}, which its entry code cannot do"
            );
        }
    }
}
