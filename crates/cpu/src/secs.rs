//! Resident enclaves: what the processor knows of every SECS that is in the EPC.
//!
//! An SECS page is read as a whole only when it is loaded; while it is resident, leaves use the [`Resident`]
//! beside it. State that changes (running measurement, identity given by EINIT, epoch) goes back into the page
//! at EINIT and when the page is written back, in the area that software can not see, and so survives the
//! eviction of the SECS. Source: SDM volume 3D, "SGX Enclave Control Structure (SECS)".

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use usgx_isa::layout::secs as layout;
use usgx_isa::{EpcPage, LinAddr, PAGE_SIZE};

use crate::le;
use crate::measure::Measurement;
use crate::tracking::{FIRST_EPOCH, LogicalProcessors, Tracker};
use crate::xsave::XsaveLayout;

/// Offsets of SECS fields.
pub(crate) mod at {
    pub(crate) const SIZE: usize = 0;
    pub(crate) const BASEADDR: usize = 8;
    pub(crate) const SSAFRAMESIZE: usize = 16;
    pub(crate) const MISCSELECT: usize = 20;
    /// CET fields, reserved without CET, and reserved bytes.
    pub(crate) const RESERVED1: usize = 24;
    pub(crate) const ATTRIBUTES: usize = 48;
    pub(crate) const XFRM: usize = 56;
    pub(crate) const MRENCLAVE: usize = 64;
    pub(crate) const RESERVED2: usize = 96;
    pub(crate) const MRSIGNER: usize = 128;
    pub(crate) const RESERVED3: usize = 160;

    // Ours, in the area that ECREATE demands to be zero and software never sees again.
    pub(super) const EID: usize = 264;
    pub(super) const EPOCH: usize = 272;
    pub(super) const MEASUREMENT: usize = 280;
    pub(super) const ISVFAMILYID: usize = 320;
    pub(super) const ISVEXTPRODID: usize = 336;
}

/// ATTRIBUTES.INIT.
pub(crate) const INIT: u64 = 1 << 0;
/// ATTRIBUTES.DEBUG.
pub(crate) const DEBUG: u64 = 1 << 1;
/// ATTRIBUTES.MODE64BIT.
pub(crate) const MODE64BIT: u64 = 1 << 2;
/// ATTRIBUTES.PROVISIONKEY.
pub(crate) const PROVISIONKEY: u64 = 1 << 4;
/// ATTRIBUTES.EINITTOKENKEY.
pub(crate) const EINITTOKENKEY: u64 = 1 << 5;

/// What EINIT establishes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Identity {
    pub(crate) mrenclave: [u8; 32],
    pub(crate) mrsigner: [u8; 32],
    pub(crate) isvprodid: u16,
    pub(crate) isvsvn: u16,
    pub(crate) isvfamilyid: [u8; 16],
    pub(crate) isvextprodid: [u8; 16],
}

/// An enclave whose SECS is in the EPC.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) page: EpcPage,
    pub(crate) eid: u64,
    pub(crate) base: u64,
    pub(crate) size: u64,
    pub(crate) ssaframesize: u32,
    pub(crate) miscselect: u32,
    /// ATTRIBUTES without INIT, which is whether there is an identity.
    flags: u64,
    pub(crate) xfrm: u64,
    pub(crate) configid: [u8; 64],
    pub(crate) configsvn: u16,
    /// Bytes of the XSAVE area of an SSA frame.
    pub(crate) xsave_size: u32,
    pub(crate) tracker: Tracker,
    /// Valid EPC pages that belong to the enclave.
    children: AtomicU32,
    identity: OnceLock<Identity>,
    /// Used by leaves that hold the build lock of the SECS, so never contended.
    measurement: Mutex<Measurement>,
}

impl Resident {
    /// The enclave that ECREATE makes of a checked source SECS.
    pub(crate) fn create(
        page: EpcPage,
        eid: u64,
        source: &[u8; PAGE_SIZE],
        xsave: &XsaveLayout,
        threads: &impl LogicalProcessors,
    ) -> Self {
        let start = Measurement::start(le::get_u32(source, at::SSAFRAMESIZE), le::get_u64(source, at::SIZE));
        Self::new(page, source, start, Tracker::start(eid, FIRST_EPOCH, threads), eid, xsave)
    }

    /// The enclave whose SECS `contents` were just loaded into `page`.
    pub(crate) fn reload(
        page: EpcPage,
        contents: &[u8; PAGE_SIZE],
        xsave: &XsaveLayout,
        threads: &impl LogicalProcessors,
    ) -> Self {
        let eid = le::get_u64(contents, at::EID);
        // A new epoch, so that whoever still claims to be inside since before counts as an old entry.
        let epoch = le::get_u64(contents, at::EPOCH) + 1;
        let measurement = Measurement::load(&le::array(contents, at::MEASUREMENT));
        let resident =
            Self::new(page, contents, measurement, Tracker::start(eid, epoch, threads), eid, xsave);
        if le::get_u64(contents, at::ATTRIBUTES) & INIT != 0 {
            resident.set_identity(Identity {
                mrenclave: le::array(contents, at::MRENCLAVE),
                mrsigner: le::array(contents, at::MRSIGNER),
                isvprodid: le::get_u16(contents, layout::ISVPRODID),
                isvsvn: le::get_u16(contents, layout::ISVSVN),
                isvfamilyid: le::array(contents, at::ISVFAMILYID),
                isvextprodid: le::array(contents, at::ISVEXTPRODID),
            });
        }
        resident
    }

    fn new(
        page: EpcPage,
        contents: &[u8; PAGE_SIZE],
        measurement: Measurement,
        tracker: Tracker,
        eid: u64,
        xsave: &XsaveLayout,
    ) -> Self {
        let xfrm = le::get_u64(contents, at::XFRM);
        Self {
            page,
            eid,
            base: le::get_u64(contents, at::BASEADDR),
            size: le::get_u64(contents, at::SIZE),
            ssaframesize: le::get_u32(contents, at::SSAFRAMESIZE),
            miscselect: le::get_u32(contents, at::MISCSELECT),
            flags: le::get_u64(contents, at::ATTRIBUTES) & !INIT,
            xfrm,
            configid: le::array(contents, layout::CONFIGID),
            configsvn: le::get_u16(contents, layout::CONFIGSVN),
            xsave_size: xsave.area_size(xfrm),
            tracker,
            children: AtomicU32::new(0),
            identity: OnceLock::new(),
            measurement: Mutex::new(measurement),
        }
    }

    /// Writes everything that is not in the page yet into its contents.
    pub(crate) fn store(&self, contents: &mut [u8; PAGE_SIZE]) {
        let identity = self.identity().copied().unwrap_or_default();
        le::put(contents, at::ATTRIBUTES, &self.attributes()[0].to_le_bytes());
        le::put(contents, at::MRENCLAVE, &identity.mrenclave);
        le::put(contents, at::MRSIGNER, &identity.mrsigner);
        le::put(contents, layout::ISVPRODID, &identity.isvprodid.to_le_bytes());
        le::put(contents, layout::ISVSVN, &identity.isvsvn.to_le_bytes());
        le::put(contents, at::EID, &self.eid.to_le_bytes());
        le::put(contents, at::EPOCH, &self.tracker.epoch().to_le_bytes());
        le::put(contents, at::MEASUREMENT, &self.measurement.lock().save());
        le::put(contents, at::ISVFAMILYID, &identity.isvfamilyid);
        le::put(contents, at::ISVEXTPRODID, &identity.isvextprodid);
    }

    /// ATTRIBUTES and XFRM.
    pub(crate) fn attributes(&self) -> [u64; 2] {
        [self.flags | if self.is_initialised() { INIT } else { 0 }, self.xfrm]
    }

    /// Whether ATTRIBUTES has any of `flags`, which are not INIT.
    pub(crate) fn has(&self, flags: u64) -> bool {
        self.flags & flags != 0
    }

    pub(crate) fn is_initialised(&self) -> bool {
        self.identity.get().is_some()
    }

    /// What EINIT established, if it did.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    /// Makes the enclave an initialised one. Preconditions: the build lock is held, and it is not one yet.
    pub(crate) fn set_identity(&self, identity: Identity) {
        self.identity.set(identity).expect("an enclave is initialised once");
    }

    /// The running measurement. Preconditions: the build lock is held.
    pub(crate) fn measurement(&self) -> parking_lot::MutexGuard<'_, Measurement> {
        self.measurement.lock()
    }

    /// Whether `addr` lies in ELRANGE.
    pub(crate) fn contains(&self, addr: LinAddr) -> bool {
        addr.0.wrapping_sub(self.base) < self.size
    }

    pub(crate) fn nr_children(&self) -> u32 {
        self.children.load(Ordering::SeqCst)
    }

    /// Counts a child page that becomes valid. Preconditions: the SECS page is locked shared.
    pub(crate) fn add_child(&self) {
        self.children.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a child page that is no longer valid. From here on the SECS can go at any time.
    pub(crate) fn drop_child(&self) {
        self.children.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn snapshot(&self) -> EnclaveState {
        let identity = self.identity().copied().unwrap_or_default();
        let [attributes, xfrm] = self.attributes();
        EnclaveState {
            eid: self.eid,
            base: LinAddr(self.base),
            size: self.size,
            attributes,
            xfrm,
            miscselect: self.miscselect,
            ssaframesize: self.ssaframesize,
            xsave_size: self.xsave_size,
            initialised: self.is_initialised(),
            mrenclave: identity.mrenclave,
            mrsigner: identity.mrsigner,
            isvprodid: identity.isvprodid,
            isvsvn: identity.isvsvn,
            nr_children: self.nr_children(),
            epoch: self.tracker.epoch(),
        }
    }
}

/// What the processor knows of an enclave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EnclaveState {
    /// The processor's number for the enclave, never used twice while the machine is on.
    pub eid: u64,
    /// First address of ELRANGE.
    pub base: LinAddr,
    /// Bytes of ELRANGE.
    pub size: u64,
    /// ATTRIBUTES, INIT included, without XFRM.
    pub attributes: u64,
    /// XFRM.
    pub xfrm: u64,
    /// MISCSELECT.
    pub miscselect: u32,
    /// Pages of an SSA frame.
    pub ssaframesize: u32,
    /// Bytes of the XSAVE area in an SSA frame.
    pub xsave_size: u32,
    /// Whether EINIT was done.
    pub initialised: bool,
    /// The final measurement; zero before EINIT.
    pub mrenclave: [u8; 32],
    /// Digest of the signer's key; zero before EINIT.
    pub mrsigner: [u8; 32],
    /// Product number; zero before EINIT.
    pub isvprodid: u16,
    /// Security version; zero before EINIT.
    pub isvsvn: u16,
    /// Valid EPC pages that the enclave owns.
    pub nr_children: u32,
    /// The current tracking epoch.
    pub epoch: u64,
}

/// All resident enclaves. An SECS page's EPCM entry holds the number of its slot here.
///
/// The lock is held to look up or change a slot only, never across cryptography.
#[derive(Debug, Default)]
pub(crate) struct Residents(RwLock<Slots>);

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Option<Arc<Resident>>>,
    free: Vec<usize>,
}

impl Residents {
    /// Adds an enclave and returns its slot.
    pub(crate) fn insert(&self, resident: Resident) -> u64 {
        let resident = Some(Arc::new(resident));
        let mut table = self.0.write();
        let slot = match table.free.pop() {
            Some(slot) => {
                table.slots[slot] = resident;
                slot
            }
            None => {
                table.slots.push(resident);
                table.slots.len() - 1
            }
        };
        slot as u64
    }

    /// The enclave in `slot`, if it is that of `page`.
    pub(crate) fn get(&self, slot: u64, page: EpcPage) -> Option<Arc<Resident>> {
        let slot = usize::try_from(slot).ok()?;
        self.0.read().slots.get(slot)?.as_ref().filter(|resident| resident.page == page).cloned()
    }

    /// Forgets the enclave in `slot`.
    pub(crate) fn remove(&self, slot: u64) {
        let slot = usize::try_from(slot).expect("slots are handed out by `insert`");
        let mut table = self.0.write();
        if table.slots[slot].take().is_some() {
            table.free.push(slot);
        }
    }
}
