//! The vDSO image that programs see: everything the kernel's own has, and `__vdso_sgx_enter_enclave`.
//!
//! Programs find the vDSO by `AT_SYSINFO_EHDR` and look symbols up in it in every way that ELF offers: the
//! dynamic linker by version and GNU or SysV hash, others by walking the dynamic section, Intel's runtime by
//! section headers. So [`mod@write`] makes a whole ELF file. Each function in it is one jump through a table; the
//! table is the only part that depends on the process, because the kernel places its own vDSO at random:
//! [`Template::image`] fills it in. [`read`] lists what the kernel's own image offers.

mod read;
mod write;

#[cfg(test)]
mod tests;

use anyhow::{Context as _, Result, ensure};
use usgx_wire::place;

/// The function that this project adds.
const ENTER: &[u8] = b"__vdso_sgx_enter_enclave";

/// Where a function of the image leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Target {
    /// To the kernel's own image, this far from its start.
    Kernel(u64),
    /// To the runtime's `__vdso_sgx_enter_enclave`.
    Enter,
}

/// A function that the image offers.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Export {
    name: Vec<u8>,
    /// A weak alias, such as `clock_gettime` for `__vdso_clock_gettime`.
    weak: bool,
    target: Target,
}

/// An image whose jump table is still empty.
#[derive(Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    /// Offset of the jump table, which has one address for each target.
    table: usize,
    targets: Vec<Target>,
}

impl Template {
    /// Makes the image from the vDSO of this very process: all processes of a kernel have the same one.
    ///
    /// # Errors
    ///
    /// If the kernel's image cannot be read or is not what it has been on every kernel so far.
    pub(crate) fn from_own() -> Result<Self> {
        let own = usgx_sys::vdso::own_image().context("reading this process's own vDSO")?;
        let kernel = match &own {
            Some(bytes) => read::kernel_image(bytes).context("the kernel's vDSO image is not understood")?,
            None => read::KernelImage::default(),
        };
        Self::new(kernel)
    }

    fn new(kernel: read::KernelImage) -> Result<Self> {
        let mut exports = kernel.exports;
        exports.retain(|export| export.name != ENTER);
        exports.push(Export { name: ENTER.to_vec(), weak: false, target: Target::Enter });
        let template = write::template(exports, &kernel.notes)?;
        let room = usize::try_from(place::VDSO_SIZE)?;
        let size = template.bytes.len();
        ensure!(size <= room, "the vDSO image has {size} bytes, more than the {room} reserved for it");
        Ok(template)
    }

    /// The image for a process whose kernel vDSO is at `kernel_base`, and whose runtime enters enclaves at
    /// `enter`.
    pub(crate) fn image(&self, kernel_base: u64, enter: u64) -> Vec<u8> {
        let mut image = self.bytes.clone();
        for (slot, target) in image[self.table..].chunks_exact_mut(8).zip(&self.targets) {
            let address = match target {
                Target::Kernel(offset) => kernel_base.wrapping_add(*offset),
                Target::Enter => enter,
            };
            slot.copy_from_slice(&address.to_le_bytes());
        }
        image
    }
}
