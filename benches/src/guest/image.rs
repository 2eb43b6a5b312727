//! The enclave of the measurements: a TCS, a frame for its state, a page of code, and data.

/// Bytes of a page.
pub(crate) const PAGE_SIZE: usize = 4096;
/// Bytes of a SIGSTRUCT.
pub(crate) const SIGSTRUCT_SIZE: usize = 1808;
/// Index of the first data page.
pub(crate) const FIRST_DATA: usize = 3;

/// SECINFO.FLAGS.
const TCS: u64 = 0x100;
const REG_RW: u64 = 0x203;
const REG_RX: u64 = 0x205;

/// An enclave's description, from which both its pages and its signature are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    pub(crate) data_pages: usize,
    /// Whether the data is measured (the rest always is).
    pub(crate) measured: bool,
    /// Pages behind the data that are mapped, and there only when the enclave has accepted them.
    pub(crate) heap_pages: usize,
}

/// Pages of one kind, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) first: usize,
    pub(crate) count: usize,
    pub(crate) secinfo: u64,
    pub(crate) measured: bool,
}

impl Image {
    /// All pages that are added.
    pub(crate) fn pages(&self) -> usize {
        FIRST_DATA + self.data_pages
    }

    /// Bytes of the address range.
    pub(crate) fn size(&self) -> usize {
        ((self.pages() + self.heap_pages) * PAGE_SIZE).next_power_of_two()
    }

    /// What is added, in this order.
    pub(crate) fn regions(&self) -> [Region; 4] {
        let region = |first, count, secinfo, measured| Region { first, count, secinfo, measured };
        [
            region(0, 1, TCS, true),
            region(1, 1, REG_RW, true),
            region(2, 1, REG_RX, true),
            region(FIRST_DATA, self.data_pages, REG_RW, self.measured),
        ]
    }

    /// Writes the contents of a page, which are zeros so far.
    pub(crate) fn fill(index: usize, page: &mut [u8]) {
        match index {
            0 => {
                // OSSA, NSSA, OENTRY; limits.
                page[16..24].copy_from_slice(&(PAGE_SIZE as u64).to_le_bytes());
                page[28..32].copy_from_slice(&1_u32.to_le_bytes());
                page[32..40].copy_from_slice(&(2 * PAGE_SIZE as u64).to_le_bytes());
                page[64..72].fill(0xff);
            }
            1 => {}
            2 => {
                let code = super::raw::code();
                page[..code.len()].copy_from_slice(code);
            }
            _ => {
                for (at, word) in (0_u64..).zip(page.chunks_exact_mut(8)) {
                    word.copy_from_slice(&(index as u64 ^ at << 32).to_le_bytes());
                }
            }
        }
    }

    /// The SECS, for an enclave at `base`: frames of one page, a 64-bit debug enclave, x87 and SSE.
    pub(crate) fn secs(&self, base: u64) -> [u8; PAGE_SIZE] {
        let mut secs = [0; PAGE_SIZE];
        secs[0..8].copy_from_slice(&(self.size() as u64).to_le_bytes());
        secs[8..16].copy_from_slice(&base.to_le_bytes());
        secs[16..20].copy_from_slice(&1_u32.to_le_bytes());
        secs[48..56].copy_from_slice(&6_u64.to_le_bytes());
        secs[56..64].copy_from_slice(&3_u64.to_le_bytes());
        secs
    }
}
