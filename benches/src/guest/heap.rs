//! A heap that grows and shrinks while the enclave runs, as SGX2's runtimes do it.

use anyhow::{Result, ensure};

use super::raw::Enclave;

/// SECINFO.FLAGS of a page that EAUG has added: R, W, PENDING, PT_REG.
const ADDED: u64 = 0x20b;
/// SECINFO.FLAGS of a page that is to be removed: MODIFIED, PT_TRIM.
const TRIMMED: u64 = 0x410;
const PT_TRIM: u64 = 4;

/// The enclave accepts and uses pages that are not there yet: the kernel adds them, at its faults.
pub(super) fn grow(enclave: &Enclave, count: usize) -> Result<()> {
    enclave.accept(0, count, ADDED)
}

/// Gives pages back, `chunk` of them at a time: MODIFY_TYPES, EACCEPT by the enclave, REMOVE_PAGES.
pub(super) fn shrink(enclave: &Enclave, count: usize, chunk: usize) -> Result<()> {
    ensure!(chunk > 0, "nothing at a time never ends");
    for first in (0..count).step_by(chunk) {
        let pages = chunk.min(count - first);
        enclave.modify_types(first, pages, PT_TRIM)?;
        enclave.accept(first, pages, TRIMMED)?;
        enclave.remove_pages(first, pages)?;
    }
    Ok(())
}
