//! Tests of the whole processor, through the API that the machine and the driver use.
//!
//! Measurements and signatures are made by the `sgxs` crate and OpenSSL, which share no code with ours.

mod build;
mod cet;
mod concurrent;
mod conflict;
mod debug;
mod evict;
mod identity;
mod init;
mod profile;
mod random;
mod sgx2;
mod tcs;

use std::collections::HashMap;
use std::sync::LazyLock;

use openssl::bn::BigNum;
use openssl::pkey::Private;
use openssl::rsa::Rsa;
use parking_lot::Mutex;
use sgxs::crypto::SgxRsaOps;
use sgxs::sgxs::{Meas, MeasEAdd, MeasECreate, MeasEExtend, SecinfoTruncated, SgxsWrite};
use sgxs::sigstruct::{EnclaveHash, Signer};
use usgx_isa::code::Operand;
use usgx_isa::layout::{Attributes, AttributesFlags, Einittoken, Secinfo, SecinfoFlags, Sigstruct};
use usgx_isa::{Encls, EpcPage, Fault, LeafError, LinAddr, Page, SgxCode};

use crate::{ArenaBytes, EncluError, FuseKeys, LogicalProcessors, Processor, Profile, Translate, le};

pub(super) type Cpu = Processor<ArenaBytes, Threads>;

pub(super) const BASE: u64 = 0x7f00_0000_0000;
pub(super) const SIZE: u64 = 0x10_0000;
pub(super) const SECS: EpcPage = EpcPage(0);
pub(super) const TCS: EpcPage = EpcPage(1);
pub(super) const SSA: EpcPage = EpcPage(2);
pub(super) const CODE: EpcPage = EpcPage(3);
pub(super) const DATA: EpcPage = EpcPage(4);
pub(super) const VA: EpcPage = EpcPage(5);
/// The first of the pages that [`enclave`] leaves free.
pub(super) const FREE: EpcPage = EpcPage(6);
pub(super) const NR_PAGES: u32 = 32;
pub(super) const OUTSIDE: EpcPage = EpcPage(NR_PAGES);

pub(super) const R: u64 = 1;
pub(super) const W: u64 = 2;
pub(super) const X: u64 = 4;
pub(super) const PENDING: u64 = 8;
pub(super) const MODIFIED: u64 = 16;
pub(super) const PR: u64 = 32;
pub(super) const PT_TCS: u64 = 1 << 8;
pub(super) const PT_REG: u64 = 2 << 8;
pub(super) const PT_VA: u64 = 3 << 8;
pub(super) const PT_TRIM: u64 = 4 << 8;

pub(super) const GP: LeafError = LeafError::Fault(Fault::Gp);
pub(super) const fn pf(operand: Operand) -> LeafError {
    LeafError::Fault(Fault::Pf(operand))
}
pub(super) const fn code(code: SgxCode) -> LeafError {
    LeafError::Code(code)
}

/// Threads that enter and leave when a test says so.
#[derive(Debug, Default)]
pub(super) struct Threads {
    epochs: Mutex<HashMap<u64, u64>>,
    inside: Mutex<Vec<(u64, u64)>>,
}

impl Threads {
    /// A thread enters the enclave.
    pub(super) fn enter(&self, eid: u64) {
        let epoch = self.epochs.lock()[&eid];
        self.inside.lock().push((eid, epoch));
    }

    /// The thread that has been inside the longest leaves; if there is none, nothing happens.
    pub(super) fn leave(&self, eid: u64) {
        let mut inside = self.inside.lock();
        if let Some(first) = inside.iter().position(|(of, _)| *of == eid) {
            inside.remove(first);
        }
    }
}

impl LogicalProcessors for Threads {
    fn oldest_entry(&self, eid: u64) -> Option<u64> {
        self.inside.lock().iter().filter(|(of, _)| *of == eid).map(|(_, epoch)| *epoch).min()
    }

    fn set_epoch(&self, eid: u64, epoch: u64) {
        self.epochs.lock().insert(eid, epoch);
    }
}

/// Page tables: pages by address, all accesses allowed.
#[derive(Clone, Debug, Default)]
pub(super) struct Map(pub(super) HashMap<u64, EpcPage>);

impl Translate for Map {
    fn translate(&self, addr: LinAddr, _write: bool) -> Option<EpcPage> {
        self.0.get(&addr.page().0).copied()
    }
}

/// The page tables of [`enclave`].
pub(super) fn map() -> Map {
    Map([TCS, SSA, CODE, DATA].into_iter().map(|page| (at(page).0, page)).collect())
}

/// Where [`enclave`] puts a page; free pages get the addresses that follow.
pub(super) fn at(page: EpcPage) -> LinAddr {
    LinAddr(BASE + u64::from(page.0 - 1) * 0x1000)
}

/// Chance that is the same every time.
pub(super) fn random(seed: u64) -> impl FnMut(&mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |out: &mut [u8]| {
        for byte in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 24) as u8;
        }
    }
}

pub(super) fn fuses(seed: u64) -> FuseKeys {
    FuseKeys::generate(&mut random(seed))
}

pub(super) fn profile(name: &str) -> Profile {
    Profile::by_name(name).expect("known profile")
}

pub(super) fn power_on(profile: Profile, fuses: FuseKeys, seed: u64) -> Cpu {
    Processor::new(profile, fuses, NR_PAGES, ArenaBytes::new(NR_PAGES), Threads::default(), &mut random(seed))
}

pub(super) fn cpu() -> Cpu {
    power_on(Profile::default(), fuses(1), 2)
}

pub(super) fn secinfo(flags: u64) -> Secinfo {
    let mut bytes = [0; 64];
    le::put(&mut bytes, 0, &flags.to_le_bytes());
    Secinfo::try_copy_from(&bytes).expect("64 bytes")
}

/// A source SECS that ECREATE accepts, with 64-bit ATTRIBUTES `flags` added.
pub(super) fn secs_page(flags: u64) -> Page {
    let mut page = Page::ZERO;
    le::put(&mut page.0, 0, &SIZE.to_le_bytes());
    le::put(&mut page.0, 8, &BASE.to_le_bytes());
    le::put(&mut page.0, 16, &1u32.to_le_bytes());
    le::put(&mut page.0, 48, &(flags | 4).to_le_bytes());
    le::put(&mut page.0, 56, &3u64.to_le_bytes());
    page
}

pub(super) fn tcs_page() -> Page {
    let mut page = Page::ZERO;
    le::put(&mut page.0, 16, &(at(SSA).0 - BASE).to_le_bytes());
    le::put(&mut page.0, 28, &2u32.to_le_bytes());
    le::put(&mut page.0, 32, &(at(CODE).0 - BASE).to_le_bytes());
    page
}

pub(super) fn filled(byte: u8) -> Page {
    Page([byte; 4096])
}

/// The pages of [`enclave`], with SECINFO flags and contents.
pub(super) fn pages() -> [(EpcPage, u64, Page); 4] {
    [
        (TCS, PT_TCS, tcs_page()),
        (SSA, PT_REG | R | W, Page::ZERO),
        (CODE, PT_REG | R | X, filled(0xcc)),
        (DATA, PT_REG | R | W, filled(0xda)),
    ]
}

/// ECREATE, EADD and EEXTEND of a small enclave, and EPA of a VA page.
pub(super) fn build(cpu: &Cpu, flags: u64) {
    cpu.ecreate(SECS, &secs_page(flags), &secinfo(0)).expect("ECREATE");
    for (page, flags, contents) in pages() {
        cpu.eadd(page, SECS, at(page), &contents, &secinfo(flags)).expect("EADD");
        for offset in (0..4096).step_by(256) {
            cpu.eextend(SECS, page, offset).expect("EEXTEND");
        }
    }
    cpu.epa(VA).expect("EPA");
}

/// The same as an SGXS stream, measured by the `sgxs` crate.
pub(super) fn expected_mrenclave() -> [u8; 32] {
    let mut stream = Vec::new();
    let mut write = |meas: Meas| stream.write_meas(&meas).expect("a vector takes it");
    write(Meas::ECreate(MeasECreate { ssaframesize: 1, size: SIZE }));
    for (page, flags, contents) in pages() {
        let offset = at(page).0 - BASE;
        let secinfo = SecinfoTruncated { flags: SecinfoFlags::from_bits_truncate(flags) };
        write(Meas::EAdd(MeasEAdd { offset, secinfo }));
        for (chunk, data) in (0u64..).zip(contents.0.chunks_exact(256)) {
            let header = MeasEExtend { offset: offset + chunk * 256 };
            write(Meas::EExtend { header, data: data.try_into().expect("256 bytes") });
        }
    }
    EnclaveHash::from_stream::<_, openssl::hash::Hasher>(&mut &stream[..]).expect("a canonical stream").hash()
}

pub(super) static KEY: LazyLock<Rsa<Private>> = LazyLock::new(|| {
    let e = BigNum::from_u32(3).expect("bignum");
    Rsa::generate_with_e(3072, &e).expect("RSA key")
});

/// A SIGSTRUCT for the enclave of [`build`], signed by the `sgxs` crate.
pub(super) fn sign(flags: u64, customise: impl FnOnce(&mut Signer)) -> Sigstruct {
    let mut signer = Signer::new(EnclaveHash::new(expected_mrenclave()));
    let known = AttributesFlags::from_bits_truncate(flags | 4);
    signer.attributes_flags(known, !0).attributes_xfrm(3, !0).isvprodid(7).isvsvn(5).date(2026, 1, 1);
    customise(&mut signer);
    signer.sign::<_, openssl::hash::Hasher>(&**KEY).expect("signing")
}

/// Changes a SIGSTRUCT's bytes, and signs it again if asked.
pub(super) fn edit(sig: &Sigstruct, resign: bool, change: impl FnOnce(&mut [u8])) -> Sigstruct {
    let mut bytes = sig.as_ref().to_vec();
    change(&mut bytes);
    let mut sig = Sigstruct::try_copy_from(&bytes).expect("the length stays");
    if resign {
        let (first, second) = sig.signature_data();
        let digest = openssl::sha::sha256(&[first, second].concat());
        let (s, q1, q2) = KEY.sign_sha256_pkcs1v1_5_with_q1_q2(digest).expect("signing");
        let padded = |mut number: Vec<u8>| {
            number.resize(384, 0);
            <[u8; 384]>::try_from(number).expect("384 bytes")
        };
        (sig.signature, sig.q1, sig.q2) = (padded(s), padded(q1), padded(q2));
    }
    sig
}

/// The launch hash that lets [`KEY`] launch.
pub(super) fn launch_hash() -> [u64; 4] {
    let mut modulus = KEY.n().to_vec();
    modulus.reverse();
    let digest = openssl::sha::sha256(&modulus);
    std::array::from_fn(|i| le::get_u64(&digest, i * 8))
}

pub(super) fn einit(cpu: &Cpu, sig: &Sigstruct) -> Result<(), LeafError> {
    cpu.einit(SECS, sig, &Einittoken::default(), launch_hash())
}

/// An initialised enclave: pages [`SECS`] to [`DATA`], with [`VA`] beside it.
pub(super) fn enclave_with(cpu: &Cpu, flags: u64) -> u64 {
    build(cpu, flags);
    einit(cpu, &sign(flags, |_| ())).expect("EINIT");
    cpu.enclave(SECS).expect("an SECS").eid
}

pub(super) fn enclave() -> (Cpu, u64) {
    let cpu = cpu();
    let eid = enclave_with(&cpu, 2);
    (cpu, eid)
}

/// EBLOCK and ETRACK of a child page with nobody inside.
pub(super) fn block_and_track(cpu: &Cpu, page: EpcPage) {
    cpu.eblock(page).expect("EBLOCK");
    cpu.etrack(SECS).expect("ETRACK");
}

pub(super) fn write(cpu: &Cpu, page: EpcPage, offset: usize, bytes: &[u8]) {
    use crate::PageBytes;
    cpu.bytes().write(page, offset, bytes);
}

pub(super) fn read<const N: usize>(cpu: &Cpu, page: EpcPage, offset: usize) -> [u8; N] {
    use crate::PageBytes;
    let mut out = [0; N];
    cpu.bytes().read(page, offset, &mut out);
    out
}

pub(super) fn fault(addr: LinAddr, write: bool, sgx: bool) -> EncluError {
    EncluError::PageFault { addr, write, sgx }
}

pub(super) fn attributes(flags: u64) -> Attributes {
    Attributes { flags: AttributesFlags::from_bits_truncate(flags), xfrm: 3 }
}
