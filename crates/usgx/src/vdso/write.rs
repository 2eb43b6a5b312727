//! Lays the image out: one segment that holds the whole file, section headers included, because the kernel's
//! own image is like that and programs look into all of it.
//!
//! Order: headers, hashes, symbols, strings, versions, dynamic section, notes, unwind tables, code, jump
//! table, section headers. All addresses in it are offsets from its start.

use anyhow::{Context as _, Result};
use object::Endianness;
use object::elf;
use object::write::StringId;
use object::write::elf::{FileHeader, ProgramHeader, SectionHeader, SectionIndex, Sym, Verdef, Writer};

use super::{Export, Target, Template};

/// The name that the kernel's image gives itself, by which the dynamic linker lists it.
const SONAME: &[u8] = b"linux-vdso.so.1";
/// The version of all its symbols.
const VERSION: &[u8] = b"LINUX_2.6";
/// Index of [`VERSION`] among the version definitions; 1 is the file itself.
const VERSION_INDEX: u16 = 2;
/// Bytes of one function: `endbr64`, `jmp *slot(%rip)`, and padding that traps.
const STUB_SIZE: usize = 16;
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
const JMP_RIP_RELATIVE: [u8; 2] = [0xff, 0x25];
const TRAP: u8 = 0xcc;
/// Length of the code in a stub: the jump's displacement counts from here.
const STUB_CODE: usize = ENDBR64.len() + JMP_RIP_RELATIVE.len() + 4;

const BUCKETS: u32 = 8;
const BLOOM_WORDS: u32 = 1;
const BLOOM_SHIFT: u32 = 6;
const DYNAMIC_ENTRIES: usize = 11;
const SEGMENTS: u32 = 5;

/// A dynamic symbol: one of the exports, or the absolute symbol that names the version.
struct Symbol<'a> {
    name: &'a [u8],
    id: StringId,
    /// Index into the exports, `None` for the version's symbol.
    export: Option<usize>,
}

/// Offsets of everything that something else refers to.
struct Layout {
    hash: usize,
    gnu_hash: usize,
    dynsym: usize,
    dynstr: usize,
    dynstr_len: usize,
    versym: usize,
    verdef: usize,
    dynamic: usize,
    notes: usize,
    unwind_header: usize,
    unwind: usize,
    text: usize,
    table: usize,
    end: usize,
}

/// Builds the image, with an empty jump table.
pub(super) fn template(exports: Vec<Export>, notes: &[u8]) -> Result<Template> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut bytes);

    let mut symbols = Vec::with_capacity(exports.len() + 1);
    for (index, export) in exports.iter().enumerate() {
        let id = writer.add_dynamic_string(&export.name);
        symbols.push(Symbol { name: &export.name, id, export: Some(index) });
    }
    let version = writer.add_dynamic_string(VERSION);
    symbols.push(Symbol { name: VERSION, id: version, export: None });
    // A GNU hash table lists symbols bucket by bucket.
    symbols.sort_by_key(|symbol| elf::gnu_hash(symbol.name) % BUCKETS);
    let soname = writer.add_dynamic_string(SONAME);
    let nr_symbols = u32::try_from(symbols.len()).context("too many symbols")?;

    let sections = reserve_sections(&mut writer);
    writer.reserve_null_dynamic_symbol_index();
    for _ in &symbols {
        writer.reserve_dynamic_symbol_index();
    }
    let layout = reserve(&mut writer, nr_symbols, notes.len(), exports.len());

    write_headers(&mut writer, &layout, notes.len())?;
    writer.write_hash(BUCKETS, nr_symbols + 1, |index| {
        let index = (index as usize).checked_sub(1)?;
        Some(elf::hash(symbols[index].name))
    });
    writer.write_gnu_hash(1, BLOOM_SHIFT, BLOOM_WORDS, BUCKETS, nr_symbols, |index| {
        elf::gnu_hash(symbols[index as usize].name)
    });
    write_symbols(&mut writer, &symbols, &exports, &layout, sections.text);
    write_versions(&mut writer, nr_symbols, soname, version);
    write_dynamic(&mut writer, soname, &layout);

    writer.pad_until(layout.notes);
    writer.write(notes);
    write_unwind_tables(&mut writer, &layout)?;
    writer.pad_until(layout.text);
    for index in 0..exports.len() {
        writer.write(&stub(layout.table - layout.text, index)?);
    }
    writer.write(&vec![0; 8 * exports.len()]);

    writer.write_shstrtab();
    write_section_headers(&mut writer, &sections, &layout, notes.len());
    let targets: Vec<Target> = exports.iter().map(|export| export.target).collect();
    Ok(Template { bytes, table: layout.table, targets })
}

struct Sections {
    notes: StringId,
    unwind_header: StringId,
    unwind: StringId,
    text_name: StringId,
    text: SectionIndex,
}

/// Reserves section numbers, in the order in which [`write_section_headers`] writes them.
fn reserve_sections(writer: &mut Writer<'_>) -> Sections {
    writer.reserve_null_section_index();
    writer.reserve_hash_section_index();
    writer.reserve_gnu_hash_section_index();
    writer.reserve_dynsym_section_index();
    writer.reserve_dynstr_section_index();
    writer.reserve_gnu_versym_section_index();
    writer.reserve_gnu_verdef_section_index();
    writer.reserve_dynamic_section_index();
    let notes = writer.add_section_name(b".note");
    writer.reserve_section_index();
    let unwind_header = writer.add_section_name(b".eh_frame_hdr");
    writer.reserve_section_index();
    let unwind = writer.add_section_name(b".eh_frame");
    writer.reserve_section_index();
    let text_name = writer.add_section_name(b".text");
    let text = writer.reserve_section_index();
    writer.reserve_shstrtab_section_index();
    Sections { notes, unwind_header, unwind, text_name, text }
}

/// Reserves places in the file, in the order in which they are written.
fn reserve(writer: &mut Writer<'_>, nr_symbols: u32, notes: usize, nr_exports: usize) -> Layout {
    writer.reserve_file_header();
    writer.reserve_program_headers(SEGMENTS);
    let hash = writer.reserve_hash(BUCKETS, nr_symbols + 1);
    let gnu_hash = writer.reserve_gnu_hash(BLOOM_WORDS, BUCKETS, nr_symbols);
    let dynsym = writer.reserve_dynsym();
    let dynstr = writer.reserve_dynstr();
    let dynstr_len = writer.dynstr_len();
    let versym = writer.reserve_gnu_versym();
    let verdef = writer.reserve_gnu_verdef(2, 2);
    let dynamic = writer.reserve_dynamic(DYNAMIC_ENTRIES);
    let notes = writer.reserve(notes, 8);
    let unwind_header = writer.reserve(UNWIND_HEADER_SIZE, 8);
    let unwind = writer.reserve(UNWIND_SIZE, 8);
    let text = writer.reserve(nr_exports * STUB_SIZE, STUB_SIZE);
    let table = writer.reserve(nr_exports * 8, 8);
    writer.reserve_shstrtab();
    writer.reserve_section_headers();
    let end = writer.reserved_len();
    Layout {
        hash,
        gnu_hash,
        dynsym,
        dynstr,
        dynstr_len,
        versym,
        verdef,
        dynamic,
        notes,
        unwind_header,
        unwind,
        text,
        table,
        end,
    }
}

fn write_headers(writer: &mut Writer<'_>, layout: &Layout, notes: usize) -> Result<()> {
    writer.write_file_header(&FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: elf::ET_DYN,
        e_machine: elf::EM_X86_64,
        e_entry: layout.text as u64,
        e_flags: 0,
    })?;
    writer.write_align_program_headers();
    let mut segment = |p_type, p_flags, start: usize, size: usize, p_align| {
        writer.write_program_header(&ProgramHeader {
            p_type,
            p_flags,
            p_offset: start as u64,
            p_vaddr: start as u64,
            p_paddr: start as u64,
            p_filesz: size as u64,
            p_memsz: size as u64,
            p_align,
        });
    };
    let dynamic_size = DYNAMIC_ENTRIES * size_of::<elf::Dyn64<Endianness>>();
    segment(elf::PT_LOAD, elf::PF_R | elf::PF_X, 0, layout.end, 0x1000);
    segment(elf::PT_DYNAMIC, elf::PF_R, layout.dynamic, dynamic_size, 8);
    segment(elf::PT_NOTE, elf::PF_R, layout.notes, notes, 4);
    segment(elf::PT_GNU_EH_FRAME, elf::PF_R, layout.unwind_header, UNWIND_HEADER_SIZE, 4);
    // Without this one a dynamic linker may take the image for one that wants an executable stack.
    segment(elf::PT_GNU_STACK, elf::PF_R | elf::PF_W, 0, 0, 16);
    Ok(())
}

fn write_symbols(
    writer: &mut Writer<'_>,
    symbols: &[Symbol<'_>],
    exports: &[Export],
    layout: &Layout,
    text: SectionIndex,
) {
    writer.write_null_dynamic_symbol();
    for symbol in symbols {
        let name = Some(symbol.id);
        writer.write_dynamic_symbol(&match symbol.export {
            Some(index) => Sym {
                name,
                section: Some(text),
                st_info: info(exports[index].weak, elf::STT_FUNC),
                st_other: 0,
                st_shndx: 0,
                st_value: (layout.text + index * STUB_SIZE) as u64,
                st_size: STUB_CODE as u64,
            },
            None => Sym {
                name,
                section: None,
                st_info: info(false, elf::STT_OBJECT),
                st_other: 0,
                st_shndx: elf::SHN_ABS,
                st_value: 0,
                st_size: 0,
            },
        });
    }
    writer.write_dynstr();
}

fn info(weak: bool, kind: u8) -> u8 {
    let binding = if weak { elf::STB_WEAK } else { elf::STB_GLOBAL };
    (binding << 4) | kind
}

fn write_versions(writer: &mut Writer<'_>, nr_symbols: u32, soname: StringId, version: StringId) {
    writer.write_null_gnu_versym();
    for _ in 0..nr_symbols {
        writer.write_gnu_versym(VERSION_INDEX);
    }
    writer.write_align_gnu_verdef();
    let definition = |flags, index, name| Verdef { version: 1, flags, index, aux_count: 1, name };
    writer.write_gnu_verdef(&definition(elf::VER_FLG_BASE, 1, soname));
    writer.write_gnu_verdef(&definition(0, VERSION_INDEX, version));
}

fn write_dynamic(writer: &mut Writer<'_>, soname: StringId, layout: &Layout) {
    writer.write_align_dynamic();
    writer.write_dynamic_string(elf::DT_SONAME, soname);
    let symbol_size = size_of::<elf::Sym64<Endianness>>();
    for (tag, value) in [
        (elf::DT_HASH, layout.hash),
        (elf::DT_GNU_HASH, layout.gnu_hash),
        (elf::DT_STRTAB, layout.dynstr),
        (elf::DT_SYMTAB, layout.dynsym),
        (elf::DT_STRSZ, layout.dynstr_len),
        (elf::DT_SYMENT, symbol_size),
        (elf::DT_VERDEF, layout.verdef),
        (elf::DT_VERDEFNUM, 2),
        (elf::DT_VERSYM, layout.versym),
        (elf::DT_NULL, 0),
    ] {
        writer.write_dynamic(tag, value as u64);
    }
}

/// One function: a jump through its slot of the table, which starts `table` bytes after the first function.
fn stub(table: usize, index: usize) -> Result<[u8; STUB_SIZE]> {
    let displacement = table + 8 * index - (STUB_SIZE * index + STUB_CODE);
    let mut code = [TRAP; STUB_SIZE];
    code[..4].copy_from_slice(&ENDBR64);
    code[4..6].copy_from_slice(&JMP_RIP_RELATIVE);
    code[6..10].copy_from_slice(&i32::try_from(displacement)?.to_le_bytes());
    Ok(code)
}

/// `.eh_frame_hdr`: version and encodings, the address of `.eh_frame`, one sorted entry.
const UNWIND_HEADER_SIZE: usize = 20;
/// `.eh_frame`: one CIE and one FDE of 24 bytes each, and the terminator.
const UNWIND_SIZE: usize = 52;
/// A CIE with augmentation "zR": code in units of 1, data of -8, return address in column 16, 4-byte
/// pc-relative addresses; the frame is at RSP + 8, the return address just below it.
const CIE: [u8; 24] =
    [0x14, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0];
/// Length of an FDE after its length field, and the distance from its second field back to the CIE.
const FDE_HEAD: [u8; 8] = [0x14, 0, 0, 0, 0x1c, 0, 0, 0];

/// Tells unwinders that no stub moves the stack pointer: one entry covers them all.
fn write_unwind_tables(writer: &mut Writer<'_>, layout: &Layout) -> Result<()> {
    let distance = |to: usize, from: usize| -> Result<[u8; 4]> {
        Ok(i32::try_from(to as i64 - from as i64)?.to_le_bytes())
    };
    let header = layout.unwind_header;
    let fde = layout.unwind + CIE.len();
    writer.pad_until(header);
    // Version 1; pointer pc-relative, count unsigned, table relative to this header; all of 4 bytes.
    writer.write(&[1, 0x1b, 0x03, 0x3b]);
    writer.write(&distance(layout.unwind, header + 4)?);
    writer.write(&1u32.to_le_bytes());
    writer.write(&distance(layout.text, header)?);
    writer.write(&distance(fde, header)?);
    writer.pad_until(layout.unwind);
    writer.write(&CIE);
    writer.write(&FDE_HEAD);
    writer.write(&distance(layout.text, fde + FDE_HEAD.len())?);
    writer.write(&distance(layout.table, layout.text)?);
    writer.write(&[0; 8]);
    writer.write(&[0; 4]);
    Ok(())
}

fn write_section_headers(writer: &mut Writer<'_>, sections: &Sections, layout: &Layout, notes: usize) {
    writer.write_null_section_header();
    writer.write_hash_section_header(layout.hash as u64);
    writer.write_gnu_hash_section_header(layout.gnu_hash as u64);
    writer.write_dynsym_section_header(layout.dynsym as u64, 1);
    writer.write_dynstr_section_header(layout.dynstr as u64);
    writer.write_gnu_versym_section_header(layout.versym as u64);
    writer.write_gnu_verdef_section_header(layout.verdef as u64);
    writer.write_dynamic_section_header(layout.dynamic as u64);
    let code = elf::SHF_ALLOC | elf::SHF_EXECINSTR;
    let text_size = layout.table + (layout.table - layout.text) / STUB_SIZE * 8 - layout.text;
    for (name, sh_type, flags, start, size, align) in [
        (sections.notes, elf::SHT_NOTE, elf::SHF_ALLOC, layout.notes, notes, 4),
        (
            sections.unwind_header,
            elf::SHT_PROGBITS,
            elf::SHF_ALLOC,
            layout.unwind_header,
            UNWIND_HEADER_SIZE,
            4,
        ),
        (sections.unwind, elf::SHT_PROGBITS, elf::SHF_ALLOC, layout.unwind, UNWIND_SIZE, 8),
        (sections.text_name, elf::SHT_PROGBITS, code, layout.text, text_size, 16),
    ] {
        writer.write_section_header(&SectionHeader {
            name: Some(name),
            sh_type,
            sh_flags: flags.into(),
            sh_addr: start as u64,
            sh_offset: start as u64,
            sh_size: size as u64,
            sh_link: 0,
            sh_info: 0,
            sh_addralign: align,
            sh_entsize: 0,
        });
    }
    writer.write_shstrtab_section_header();
}
