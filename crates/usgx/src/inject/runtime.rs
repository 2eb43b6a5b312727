//! The runtime's ELF file, which this executable carries: what of it goes where.

use anyhow::{Context as _, Result, ensure};
use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _, Sym as _};
use usgx_wire::{boot, place};

use super::remote;

/// As `build.rs` has built it.
static EMBEDDED: &[u8] = include_bytes!(env!("USGX_RUNTIME"));

const PAGE_SIZE: u64 = 4096;
/// Where the runtime's parameters go.
const BOOT_SYMBOL: &[u8] = b"usgx_boot";
/// The function behind `__vdso_sgx_enter_enclave`.
const ENTER_SYMBOL: &[u8] = b"usgx_vdso_enter";

/// A part of the image with one protection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Page-aligned start.
    pub(crate) address: u64,
    /// What the file holds of it; the rest is zero.
    pub(crate) bytes: &'static [u8],
    /// Its size in memory, in whole pages.
    pub(crate) mapped_size: u64,
    /// `PROT_*`.
    pub(crate) protection: u64,
}

/// The runtime, ready to be written into a program.
#[derive(Debug)]
pub(crate) struct Runtime {
    /// In ascending order, without overlap, inside the reserved range.
    pub(crate) segments: Vec<Segment>,
    /// Where the runtime begins to run.
    pub(crate) entry: u64,
    /// Where its parameters go.
    pub(crate) boot: u64,
    /// Its `__vdso_sgx_enter_enclave`.
    pub(crate) vdso_enter: u64,
}

impl Runtime {
    /// The runtime that this executable carries.
    ///
    /// # Errors
    ///
    /// Only if the build was wrong.
    pub(crate) fn embedded() -> Result<Self> {
        Self::parse(EMBEDDED).context("the runtime inside this executable is broken; build usgx anew")
    }

    fn parse(file: &'static [u8]) -> Result<Self> {
        let header = FileHeader64::<Endianness>::parse(file)?;
        let endian = header.endian()?;
        ensure!(header.e_type(endian) == elf::ET_EXEC, "it is not linked to a fixed place");
        let mut segments = Vec::new();
        let mut end = place::RUNTIME_BASE;
        for program_header in header.program_headers(endian, file)? {
            if program_header.p_type(endian) != elf::PT_LOAD || program_header.p_memsz(endian) == 0 {
                continue;
            }
            let address = program_header.p_vaddr(endian);
            let Ok(bytes) = program_header.data(endian, file) else {
                anyhow::bail!("a segment reaches past its end");
            };
            let size = program_header.p_memsz(endian);
            let mapped_size = size.checked_next_multiple_of(PAGE_SIZE).context("a segment is too large")?;
            ensure!(address % PAGE_SIZE == 0, "the segment at {address:#x} is not page-aligned");
            ensure!(bytes.len() as u64 <= size, "the segment at {address:#x} is larger in the file");
            ensure!(address >= end, "the segment at {address:#x} is out of order or out of range");
            end = address.checked_add(mapped_size).context("a segment is too large")?;
            let protection = protection(program_header.p_flags(endian));
            segments.push(Segment { address, bytes, mapped_size, protection });
        }
        ensure!(
            end <= place::RUNTIME_BASE + place::IMAGE_SIZE,
            "it is larger than the range reserved for it"
        );
        ensure!(!segments.is_empty(), "it has no segments");
        let symbols = header.sections(endian, file)?.symbols(endian, file, elf::SHT_SYMTAB)?;
        let find = |name: &[u8]| {
            let symbol = symbols.iter().find(|symbol| symbol.name(endian, symbols.strings()) == Ok(name));
            symbol.with_context(|| format!("it has no symbol {}", String::from_utf8_lossy(name)))
        };
        let boot = find(BOOT_SYMBOL)?;
        let boot_size = size_of::<boot::Boot>() as u64;
        ensure!(boot.st_size(endian) == boot_size, "its usgx_boot is of another version");
        Ok(Self {
            entry: header.e_entry(endian),
            boot: boot.st_value(endian),
            vdso_enter: find(ENTER_SYMBOL)?.st_value(endian),
            segments,
        })
    }
}

/// `PF_*` as `PROT_*`.
fn protection(flags: u32) -> u64 {
    [(elf::PF_R, remote::READ), (elf::PF_W, remote::WRITE), (elf::PF_X, remote::EXECUTE)]
        .into_iter()
        .filter(|(flag, _)| flags & flag != 0)
        .fold(0, |all, (_, protection)| all | protection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_runtime_fits_its_place() {
        let runtime = Runtime::embedded().expect("the build is right");
        let inside = |address: u64, needed: u64| {
            runtime.segments.iter().any(|segment| {
                (segment.address..segment.address + segment.mapped_size).contains(&address)
                    && segment.protection & needed == needed
            })
        };
        assert!(inside(runtime.entry, remote::EXECUTE));
        assert!(inside(runtime.vdso_enter, remote::EXECUTE));
        assert!(inside(runtime.boot, remote::READ));
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(Runtime::parse(b"#!/bin/sh\n").is_err());
        assert!(Runtime::parse(&[]).is_err());
    }
}
