//! Paging cryptography and version array slots.
//!
//! EWB seals a page with AES-128-GCM under a key that lives as long as the machine is on; the 64-bit version in
//! the nonce is never used twice and is kept in a VA slot, so that an old copy can not be loaded again. This
//! file owns key, versions and the rule that a slot is used by one leaf at a time; EPCM state is the leaves'.
//! Source: SDM volume 3D, "EWB" and "ELDB/ELDU".

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use usgx_isa::layout::Pcmd;
use usgx_isa::{LinAddr, PAGE_SIZE, Page, VaSlot};

use crate::le;

/// Bytes of a slot.
pub(crate) const SLOT_SIZE: usize = 8;
/// Slots of a VA page.
pub(crate) const SLOTS: u16 = (PAGE_SIZE / SLOT_SIZE) as u16;
/// Versions are multiples of this: EDBGRD tells whether a slot is in use by all bits but the lowest three.
const VERSION_STEP: u64 = 8;
/// Lists of slots in use.
const NR_LISTS: usize = 16;
/// Offset of PCMD's reserved bytes, which are authenticated.
const PCMD_RESERVED: std::ops::Range<usize> = 72..112;

/// The package's unit for sealing evicted pages.
pub(crate) struct PagingUnit {
    key: LessSafeKey,
    next_version: AtomicU64,
    /// The slots that a leaf is using now. Which list a slot is in depends on its VA page.
    slots_in_use: [SlotsInUse; NR_LISTS],
}

/// As many as there are leaves running, so a few. On a cache line of its own, since processors that use slots of
/// different VA pages have nothing to do with each other.
#[derive(Default)]
#[repr(align(64))]
struct SlotsInUse(Mutex<Vec<VaSlot>>);

/// A VA slot that no other leaf uses until this is dropped.
pub(crate) struct SlotClaim<'a> {
    unit: &'a PagingUnit,
    slot: VaSlot,
}

impl Drop for SlotClaim<'_> {
    fn drop(&mut self) {
        self.unit.in_use(self.slot).lock().retain(|slot| *slot != self.slot);
    }
}

impl PagingUnit {
    /// Makes the unit of a machine that was just switched on.
    pub(crate) fn new(key: [u8; 16]) -> Self {
        let key = UnboundKey::new(&AES_128_GCM, &key).expect("an AES-128 key has 16 bytes");
        Self {
            key: LessSafeKey::new(key),
            next_version: AtomicU64::new(VERSION_STEP),
            slots_in_use: Default::default(),
        }
    }

    fn in_use(&self, slot: VaSlot) -> &Mutex<Vec<VaSlot>> {
        &self.slots_in_use[slot.page.index() % NR_LISTS].0
    }

    /// Claims `slot`, unless another leaf is using it.
    pub(crate) fn claim(&self, slot: VaSlot) -> Option<SlotClaim<'_>> {
        let mut in_use = self.in_use(slot).lock();
        if in_use.contains(&slot) {
            return None;
        }
        in_use.push(slot);
        Some(SlotClaim { unit: self, slot })
    }

    /// Encrypts `contents` in place, puts the MAC into `pcmd`, whose SECINFO is filled in, and returns the new
    /// version of the page.
    pub(crate) fn seal(&self, contents: &mut Page, pcmd: &mut Pcmd, linaddr: LinAddr, eid: u64) -> u64 {
        // At a step each nanosecond this takes 73 years to wrap.
        let version = self.next_version.fetch_add(VERSION_STEP, Ordering::Relaxed);
        let header = Aad::from(header(pcmd, linaddr, eid));
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(version), header, &mut contents.0)
            .expect("a page is far below GCM's limit");
        pcmd.mac.copy_from_slice(tag.as_ref());
        version
    }

    /// Decrypts `contents` in place; `false` if anything is not as [`seal`](Self::seal) left it, and then they are
    /// spoilt.
    pub(crate) fn open(
        &self,
        contents: &mut [u8; PAGE_SIZE],
        pcmd: &Pcmd,
        linaddr: LinAddr,
        eid: u64,
        version: u64,
    ) -> bool {
        let header = Aad::from(header(pcmd, linaddr, eid));
        let tag = Tag::from(pcmd.mac);
        self.key.open_in_place_separate_tag(nonce(version), header, tag, contents, 0..).is_ok()
    }
}

/// What is authenticated beside the contents: owner, address, state, and PCMD's reserved bytes.
fn header(pcmd: &Pcmd, linaddr: LinAddr, eid: u64) -> [u8; 128] {
    let mut header = [0; 128];
    le::put(&mut header, 0, &eid.to_le_bytes());
    le::put(&mut header, 8, &linaddr.0.to_le_bytes());
    le::put(&mut header, 16, pcmd.secinfo.as_ref());
    le::put(&mut header, 80, &pcmd.as_ref()[PCMD_RESERVED]);
    header
}

fn nonce(version: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    le::put(&mut nonce, 4, &version.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
