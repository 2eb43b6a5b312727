//! The processor package: its parts, and what all leaves need of them.
//!
//! Every method takes `&self` and any number of threads may run leaves at once. There is no lock over the whole
//! processor: a leaf holds the locks of the pages it names ([`crate::lock`]) and short look-ups take the table
//! of resident enclaves. Nothing is held while a leaf waits, because leaves do not wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use usgx_isa::code::Operand;
use usgx_isa::{EpcPage, Fault};

use crate::bytes::PageBytes;
use crate::epcm::{Entry, EpcmEntry, State};
use crate::fuses::FuseKeys;
use crate::paging::PagingUnit;
use crate::profile::Profile;
use crate::secinfo;
use crate::secs::{EnclaveState, Resident, Residents};
use crate::tracking::LogicalProcessors;

/// A software SGX processor with one EPC.
pub struct Processor<B, L> {
    profile: Profile,
    fuses: FuseKeys,
    /// KEYID of every report made until the machine is switched off.
    report_keyid: [u8; 32],
    epcm: Box<[Entry]>,
    residents: Residents,
    bytes: B,
    threads: L,
    paging: PagingUnit,
    next_eid: AtomicU64,
}

impl<B: PageBytes, L: LogicalProcessors> Processor<B, L> {
    /// Switches a processor on: `nr_pages` EPC pages, all free.
    ///
    /// The paging key and the KEYID of reports come from `random`; what outlives a power cycle is in `fuses`.
    pub fn new(
        profile: Profile,
        fuses: FuseKeys,
        nr_pages: u32,
        bytes: B,
        threads: L,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Self {
        let mut paging_key = [0; 16];
        random(&mut paging_key);
        let mut report_keyid = [0; 32];
        random(&mut report_keyid);
        Self {
            profile,
            fuses,
            report_keyid,
            epcm: (0..nr_pages).map(|_| Entry::free()).collect(),
            residents: Residents::default(),
            bytes,
            threads,
            paging: PagingUnit::new(paging_key),
            next_eid: AtomicU64::new(1),
        }
    }

    /// Which processor this is.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Where the bytes of EPC pages are.
    pub fn bytes(&self) -> &B {
        &self.bytes
    }

    /// Who is inside which enclave.
    pub fn threads(&self) -> &L {
        &self.threads
    }

    /// Pages of the EPC.
    pub fn nr_pages(&self) -> u32 {
        // It was made from a `u32`.
        self.epcm.len() as u32
    }

    /// What the EPCM says of `page` at this moment; `None` if it is free or not in the EPC.
    pub fn epcm(&self, page: EpcPage) -> Option<EpcmEntry> {
        self.epcm.get(page.index())?.snapshot()
    }

    /// The enclave whose SECS is `secs`, at this moment; `None` if that page is no SECS.
    pub fn enclave(&self, secs: EpcPage) -> Option<EnclaveState> {
        self.resident(secs).map(|resident| resident.snapshot())
    }

    pub(crate) fn fuses(&self) -> &FuseKeys {
        &self.fuses
    }

    pub(crate) fn report_keyid(&self) -> &[u8; 32] {
        &self.report_keyid
    }

    pub(crate) fn residents(&self) -> &Residents {
        &self.residents
    }

    pub(crate) fn paging(&self) -> &PagingUnit {
        &self.paging
    }

    /// The EPCM entry of `page`, if it is in the EPC.
    pub(crate) fn entry(&self, page: EpcPage) -> Option<&Entry> {
        self.epcm.get(page.index())
    }

    /// The EPCM entry of a supervisor leaf's operand, or the fault that it is not in the EPC.
    pub(crate) fn operand(&self, page: EpcPage, operand: Operand) -> Result<&Entry, Fault> {
        self.entry(page).ok_or_else(|| self.epcm_fault(operand))
    }

    /// What a supervisor leaf raises if the EPCM refuses an operand: parts without SGX2 know `#GP` only.
    pub(crate) fn epcm_fault(&self, operand: Operand) -> Fault {
        if self.profile.has_sgx2() { Fault::Pf(operand) } else { Fault::Gp }
    }

    /// The fault that an SGX2 leaf raises where there is none.
    pub(crate) fn require_sgx2(&self) -> Result<(), Fault> {
        if self.profile.has_sgx2() { Ok(()) } else { Err(Fault::Gp) }
    }

    /// A number for a new enclave.
    pub(crate) fn new_eid(&self) -> u64 {
        self.next_eid.fetch_add(1, Ordering::Relaxed)
    }

    /// The enclave whose SECS is in `page`, if that is an SECS.
    pub(crate) fn resident(&self, page: EpcPage) -> Option<Arc<Resident>> {
        let entry = self.entry(page)?;
        let state = entry.state();
        let secs = state.is_valid() && state.page_type() == secinfo::PT_SECS;
        secs.then(|| self.residents.get(entry.address(), page)).flatten()
    }

    /// The enclave that owns a child page. Preconditions: a lock or a pin of the child is held, so it stays
    /// valid, and an SECS stays as long as it has valid children.
    pub(crate) fn owner(&self, child: State) -> Arc<Resident> {
        self.resident(child.owner()).expect("a valid child page keeps its SECS in the EPC")
    }
}

impl<B, L> std::fmt::Debug for Processor<B, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processor")
            .field("profile", &self.profile.name())
            .field("nr_pages", &self.epcm.len())
            .finish_non_exhaustive()
    }
}
