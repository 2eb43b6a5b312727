//! What the kernel's own vDSO image offers: its functions, and its notes.

use anyhow::{Result, bail};
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _};
use object::{Endianness, SectionIndex};

use super::{Export, Target};

/// The parts of the kernel's image that ours repeats.
#[derive(Debug, Default)]
pub(super) struct KernelImage {
    /// Its functions.
    pub(super) exports: Vec<Export>,
    /// Its `PT_NOTE` segment, from which the dynamic linker learns the kernel's version.
    pub(super) notes: Vec<u8>,
}

/// Reads an image as it lies in memory.
pub(super) fn kernel_image(bytes: &[u8]) -> Result<KernelImage> {
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let base = header
        .program_headers(endian, bytes)?
        .iter()
        .find(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .map_or(0, |segment| segment.p_vaddr(endian));
    let sections = header.sections(endian, bytes)?;
    let symbols = sections.symbols(endian, bytes, elf::SHT_DYNSYM)?;
    if symbols.is_empty() {
        bail!("it has no section of dynamic symbols");
    }
    let mut exports = Vec::new();
    for symbol in symbols.iter() {
        let callable = matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_NOTYPE | elf::STT_GNU_IFUNC);
        let section = symbol.st_shndx(endian);
        if !callable || section == elf::SHN_UNDEF || section >= elf::SHN_LORESERVE {
            continue;
        }
        let executable = sections
            .section(SectionIndex(section.into()))
            .is_ok_and(|section| section.sh_flags(endian) & u64::from(elf::SHF_EXECINSTR) != 0);
        if executable {
            exports.push(Export {
                name: symbol.name(endian, symbols.strings())?.to_vec(),
                weak: symbol.st_bind() == elf::STB_WEAK,
                target: Target::Kernel(symbol.st_value(endian).wrapping_sub(base)),
            });
        }
    }
    let notes = header
        .program_headers(endian, bytes)?
        .iter()
        .find(|segment| segment.p_type(endian) == elf::PT_NOTE)
        .and_then(|segment| segment.data(endian, bytes).ok())
        .unwrap_or_default()
        .to_vec();
    Ok(KernelImage { exports, notes })
}
