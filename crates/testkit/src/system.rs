//! A whole system: driver, processor and simulations, and a program that uses enclaves.

use std::marker::PhantomData;
use std::sync::Arc;

use usgx_cpu::{Access, ArenaBytes, EncluError, FuseKeys, PageBytes, Processor, Profile, Translate};
use usgx_driver::{
    Behaviour, Config, Driver, Enclave, EnclaveId, FaultOutcome, Machine, Platform, Prot, SectionConfig,
};
use usgx_isa::{EpcPage, LinAddr};

use crate::caller::SimCaller;
use crate::image::Image;
use crate::platform::SimPlatform;
use crate::refusing::{Refusals, Refusing};
use crate::rng::Rng;
use crate::spaces::SimSpaces;
use crate::store::SimStore;
use crate::threads::SimThreads;

/// A user leaf, as it is run with the processor, the enclave's SECS and its page tables.
pub type Leaf<'a> = dyn Fn(&SimHw, EpcPage, &dyn Translate) -> Result<(), EncluError> + 'a;

/// The processor of a simulated system.
pub type SimHw = Processor<ArenaBytes, SimThreads>;

/// The types of a simulated system on a platform.
#[derive(Debug)]
pub struct SimMachineOn<P>(PhantomData<P>);

/// The types of a simulated system.
pub type SimMachine = SimMachineOn<SimPlatform>;

impl<P: Platform> Machine for SimMachineOn<P> {
    type Hw = Refusing;
    type Platform = P;
    type Spaces = SimSpaces;
    type Store = SimStore;
}

/// How often a program repeats an access that does not succeed, before the test is considered stuck.
const PATIENCE: usize = 100_000;

/// What came of an access to an enclave page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Touch {
    /// It was made; the value that was there before.
    Done(u64),
    /// SIGBUS.
    Sigbus,
    /// The page is there and the EPCM refuses the access.
    Refused,
    /// It was repeated without end.
    Stuck,
}

/// What is mapped, as the processor finds it in page tables.
struct Mapped<'a> {
    spaces: &'a SimSpaces,
    enclave: EnclaveId,
    look_up: &'a dyn Fn(u64) -> Option<EpcPage>,
}

impl Translate for Mapped<'_> {
    fn translate(&self, addr: LinAddr, _write: bool) -> Option<EpcPage> {
        let page = (self.look_up)(addr.0)?;
        (self.spaces.mapped(self.enclave, addr.page().0) == Some(page)).then_some(page)
    }
}

/// Driver, processor and simulations.
pub struct SystemOn<P: Platform> {
    /// The driver.
    pub driver: Driver<SimMachineOn<P>>,
    /// The processor.
    pub hw: Arc<SimHw>,
    /// What it refuses to the driver.
    pub refusals: Refusals,
    /// Locks and signals.
    pub platform: Arc<P>,
    /// Address spaces.
    pub spaces: Arc<SimSpaces>,
    /// Backing store.
    pub store: Arc<SimStore>,
    /// Threads inside enclaves.
    pub threads: SimThreads,
    /// Whether an access that must wait runs reclaim passes itself, since no thread is `ksgxd`.
    pub plays_ksgxd: bool,
}

/// A system whose threads are the system's own.
pub type System = SystemOn<SimPlatform>;

impl<P: Platform + Default> SystemOn<P> {
    /// A system with an EPC of `pages` pages, sanitised, on a processor with SGX2.
    #[must_use]
    pub fn with_epc_pages(pages: u32) -> Self {
        Self::with_profile(pages, Profile::default())
    }

    /// A system with another processor.
    #[must_use]
    pub fn with_profile(pages: u32, profile: Profile) -> Self {
        Self::with_behaviour(pages, profile, Behaviour::default())
    }

    /// A system with another processor, and other switches of the driver.
    #[must_use]
    pub fn with_behaviour(pages: u32, profile: Profile, behaviour: Behaviour) -> Self {
        let mut rng = Rng::new(u64::from(pages));
        let threads = SimThreads::default();
        let fuses = FuseKeys::generate(&mut |out| rng.fill(out));
        let hw = Arc::new(Processor::new(
            profile,
            fuses,
            pages,
            ArenaBytes::new(pages),
            threads.clone(),
            &mut |out| rng.fill(out),
        ));
        let (platform, store) = (Arc::new(P::default()), Arc::new(SimStore::default()));
        let spaces = Arc::new(SimSpaces::new(threads.clone()));
        let config = Config {
            sections: vec![SectionConfig { node: 0, first: EpcPage(0), pages }],
            sgx2: hw.profile().has_sgx2(),
            misc_reserved: !hw.profile().miscselect() | !1,
            attributes_reserved: !hw.profile().attributes() | 1 << 3 | 1 << 6 | 1 << 8 | 1 << 9 | !0 << 11,
            xfrm_reserved: !hw.profile().xfrm(),
            behaviour,
        };
        let refusals = Refusals::default();
        let driver = Driver::new(
            config,
            Arc::new(Refusing::new(Arc::clone(&hw), refusals.clone())),
            Arc::clone(&platform),
            Arc::clone(&spaces),
            Arc::clone(&store),
        );
        assert_eq!(driver.sanitize(), 0, "a new EPC is clean");
        Self { driver, hw, refusals, platform, spaces, store, threads, plays_ksgxd: true }
    }

    /// Opens an enclave.
    #[must_use]
    pub fn open(&self) -> Enclave<SimMachineOn<P>> {
        self.driver.open().expect("opening succeeds")
    }

    /// Opens and builds an enclave.
    #[must_use]
    pub fn build(&self, image: &Image) -> Enclave<SimMachineOn<P>> {
        let enclave = self.open();
        image.build(&enclave, &SimCaller::new()).expect("the image builds");
        enclave
    }

    /// Reads the 64-bit number at `addr`, as enclave code does.
    pub fn read(&self, enclave: &Enclave<SimMachineOn<P>>, addr: u64) -> Touch {
        self.touch(enclave, addr, Prot::R | Prot::W, None)
    }

    /// Writes the 64-bit number at `addr`, as enclave code does.
    pub fn write(&self, enclave: &Enclave<SimMachineOn<P>>, addr: u64, value: u64) -> Touch {
        self.touch(enclave, addr, Prot::R | Prot::W, Some(value))
    }

    /// Accesses the 64-bit number at `addr` through a mapping with protection `vma`: faults until the page is
    /// mapped, asks the EPCM, and reads the old number and writes the new one, if there is one.
    pub fn touch(
        &self,
        enclave: &Enclave<SimMachineOn<P>>,
        addr: u64,
        vma: Prot,
        value: Option<u64>,
    ) -> Touch {
        for _ in 0..PATIENCE {
            if let Some(touch) = self.try_touch(enclave, addr, value) {
                return touch;
            }
            match enclave.fault(addr, vma) {
                FaultOutcome::Mapped => {}
                FaultOutcome::Sigbus => return Touch::Sigbus,
                FaultOutcome::Retry | FaultOutcome::OutOfMemory => self.let_ksgxd_work(),
            }
        }
        Touch::Stuck
    }

    fn let_ksgxd_work(&self) {
        if self.plays_ksgxd {
            self.driver.ksgxd_pass();
        } else {
            self.platform.yield_now();
        }
    }

    /// The access, if the page is mapped. The enclave's lock stands for the atomicity of one access to memory.
    fn try_touch(&self, enclave: &Enclave<SimMachineOn<P>>, addr: u64, value: Option<u64>) -> Option<Touch> {
        let page_addr = LinAddr(addr).page();
        let access = |secs: EpcPage, page: EpcPage| {
            if self.spaces.mapped(enclave.id(), page_addr.0) != Some(page) {
                return None;
            }
            let entry = self.hw.epcm(page).expect("what is mapped is valid");
            let kind = if value.is_some() { Access::Write } else { Access::Read };
            if !entry.permits(secs, page_addr, kind) {
                return Some(Touch::Refused);
            }
            let offset = (addr % 4096) as usize;
            let mut old = [0; 8];
            self.hw.bytes().read(page, offset, &mut old);
            if let Some(value) = value {
                self.hw.bytes().write(page, offset, &value.to_le_bytes());
            }
            Some(Touch::Done(u64::from_le_bytes(old)))
        };
        enclave.with_pages(|secs, look_up| look_up(addr).and_then(|page| access(secs, page))).ok().flatten()
    }

    /// Runs EACCEPT on the page at `addr` with this SECINFO.FLAGS, as enclave code does that keeps its SECINFO in
    /// the page at `scratch`: takes the faults until the leaf says something of its own.
    ///
    /// # Errors
    /// What the leaf reports.
    ///
    /// # Panics
    /// If `scratch` is no page that can be written, or the leaf is repeated without end.
    pub fn accept(
        &self,
        enclave: &Enclave<SimMachineOn<P>>,
        scratch: u64,
        addr: u64,
        flags: u64,
    ) -> Result<(), EncluError> {
        for word in 0..8 {
            let value = if word == 0 { flags } else { 0 };
            assert!(matches!(self.write(enclave, scratch + word * 8, value), Touch::Done(_)), "a data page");
        }
        self.enclu(enclave, &|_| Prot::R | Prot::W, &|hw, secs, map| {
            hw.eaccept(secs, LinAddr(scratch), LinAddr(addr), map)
        })
    }

    /// Runs a user leaf, as enclave code does: takes the faults, through mappings with the protection that `vma`
    /// says of an address, until the leaf says something of its own.
    ///
    /// # Errors
    /// What the leaf reports.
    ///
    /// # Panics
    /// If the leaf is repeated without end.
    pub fn enclu(
        &self,
        enclave: &Enclave<SimMachineOn<P>>,
        vma: &dyn Fn(u64) -> Prot,
        leaf: &Leaf<'_>,
    ) -> Result<(), EncluError> {
        for _ in 0..PATIENCE {
            let result = enclave.with_pages(|secs, look_up| {
                leaf(&self.hw, secs, &Mapped { spaces: &self.spaces, enclave: enclave.id(), look_up })
            });
            let missing = match result {
                Ok(Err(EncluError::PageFault { addr, sgx: false, .. })) => addr.page().0,
                Ok(result) => return result,
                // Any fault brings the SECS back.
                Err(_) => enclave.base_size().map_or(0, |(base, _)| base),
            };
            if enclave.fault(missing, vma(missing)) == FaultOutcome::Retry {
                self.let_ksgxd_work();
            }
        }
        panic!("a leaf is repeated without end");
    }

    /// Reclaims until nothing more goes; every page that can is evicted then.
    pub fn evict_all(&self) {
        // A pass over young pages frees nothing, and makes them old for the next round.
        let rounds = 2 * (self.driver.epc_pages() / 16 + 1);
        let mut idle = 0;
        while idle < rounds {
            idle = if self.driver.ksgxd_pass() > 0 { 0 } else { idle + 1 };
        }
    }

    /// Checks the books of the driver, and those of the simulations against them.
    pub fn check_invariants(&self) {
        self.driver.check_invariants();
        let stats = self.driver.stats();
        assert!(self.spaces.nr_spaces() as u64 <= stats.enclaves, "address spaces belong to enclaves");
        assert_eq!(self.store.nr_enclaves(), self.spaces.nr_spaces(), "created enclaves have a store");
        for (enclave, addr, page) in self.spaces.all_mapped() {
            let entry = self.hw.epcm(page).expect("what is mapped is valid");
            assert_eq!(entry.linaddr.0, addr, "{page:?} of {enclave:?} is mapped where it belongs");
        }
        assert_eq!(self.store.nr_reserved(), self.store.nr_stored(), "no room is kept for pages that stayed");
    }
}
