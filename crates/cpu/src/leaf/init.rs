//! EINIT: is the enclave what its signer signed, and may it be launched?
//!
//! Called by the driver's `SGX_IOC_ENCLAVE_INIT`, and by the driver of a guest. The model has no pending
//! events, so `SGX_UNMASKED_EVENT` never comes from here. Source: SDM volume 3D, "EINIT".

use usgx_isa::code::Operand;
use usgx_isa::layout::{Einittoken, Sigstruct};
use usgx_isa::{EpcPage, Fault, LeafError, PAGE_SIZE, SgxCode};

use crate::bytes::PageBytes;
use crate::fuses::FuseKeys;
use crate::keys::{self, Binding};
use crate::le;
use crate::processor::Processor;
use crate::secs::{DEBUG, EINITTOKENKEY, Identity, Resident};
use crate::sigstruct::Signed;
use crate::tracking::LogicalProcessors;

/// Offsets of EINITTOKEN's fields. Source: SDM volume 3D, table "Layout of EINIT Token Structure".
mod at {
    pub(super) const VALID: usize = 0;
    pub(super) const RESERVED1: usize = 4;
    pub(super) const ATTRIBUTES: usize = 48;
    pub(super) const MRENCLAVE: usize = 64;
    pub(super) const RESERVED2: usize = 96;
    pub(super) const MRSIGNER: usize = 128;
    pub(super) const RESERVED3: usize = 160;
    /// Start of what the MAC does not cover.
    pub(super) const CPUSVNLE: usize = 192;
    pub(super) const ISVPRODIDLE: usize = 208;
    pub(super) const ISVSVNLE: usize = 210;
    pub(super) const RESERVED4: usize = 212;
    pub(super) const MASKEDMISCSELECTLE: usize = 236;
    pub(super) const MASKEDATTRIBUTESLE: usize = 240;
    pub(super) const KEYID: usize = 256;
    pub(super) const MAC: usize = 288;
}

/// Runs EINIT.
pub(super) fn einit<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    secs: EpcPage,
    sigstruct: &Sigstruct,
    token: &Einittoken,
    launch_hash: [u64; 4],
) -> Result<(), LeafError> {
    let entry = cpu.operand(secs, Operand::Target)?;
    let signed = Signed::new(sigstruct);
    signed.check_format(cpu.profile().has_kss())?;
    signed.verify()?;
    let _secs = entry.lock.shared().ok_or(Fault::Gp)?;
    let enclave = cpu.resident(secs).ok_or_else(|| cpu.epcm_fault(Operand::Target))?;
    if signed.has_kss_fields() && !enclave.has(crate::profile::ATTRIBUTE_KSS) {
        return Err(SgxCode::InvalidSigStruct.into());
    }
    let _build = entry.lock.build().ok_or(Fault::Gp)?;
    if enclave.is_initialised() {
        return Err(Fault::Gp.into());
    }

    let identity = Identity {
        mrenclave: enclave.measurement().finish(),
        mrsigner: signed.mrsigner(),
        isvprodid: signed.isvprodid(),
        isvsvn: signed.isvsvn(),
        isvfamilyid: signed.isvfamilyid(),
        isvextprodid: signed.isvextprodid(),
    };
    if identity.mrenclave != signed.enclavehash() {
        return Err(SgxCode::InvalidMeasurement.into());
    }
    let launch_signer = hash_bytes(launch_hash);
    if enclave.has(EINITTOKENKEY) && identity.mrsigner != launch_signer {
        return Err(SgxCode::InvalidAttribute.into());
    }
    check_masked(&enclave, &signed)?;
    check_launch(cpu.fuses(), &enclave, &identity, token, launch_signer)?;

    enclave.set_identity(identity);
    let mut contents = [0; PAGE_SIZE];
    cpu.bytes().read(secs, 0, &mut contents);
    enclave.store(&mut contents);
    cpu.bytes().write(secs, 0, &contents);
    Ok(())
}

/// Compares ATTRIBUTES and MISCSELECT with the signed ones, as far as the signer cares.
fn check_masked(enclave: &Resident, signed: &Signed<'_>) -> Result<(), SgxCode> {
    let attributes = enclave.attributes().into_iter().zip(signed.attributes()).zip(signed.attributemask());
    let mut differences = attributes.map(|((ours, theirs), mask)| (ours ^ theirs) & mask);
    let misc = (enclave.miscselect ^ signed.miscselect()) & signed.miscmask();
    if differences.any(|bits| bits != 0) || misc != 0 { Err(SgxCode::InvalidAttribute) } else { Ok(()) }
}

/// Launch control: the signer in the MSRs may launch, and so may whom that signer's launch enclave let.
fn check_launch(
    fuses: &FuseKeys,
    enclave: &Resident,
    identity: &Identity,
    token: &Einittoken,
    launch_signer: [u8; 32],
) -> Result<(), SgxCode> {
    let token: &[u8] = token.as_ref();
    let valid = le::get_u32(token, at::VALID);
    if valid & 1 == 0 {
        let may_launch = identity.mrsigner == launch_signer;
        return if may_launch { Ok(()) } else { Err(SgxCode::InvalidEinitToken) };
    }
    let attributes_at = |offset| [le::get_u64(token, offset), le::get_u64(token, offset + 8)];
    let launcher_attributes: [u64; 2] = attributes_at(at::MASKEDATTRIBUTESLE);
    if launcher_attributes[0] & DEBUG != 0 && !enclave.has(DEBUG) {
        return Err(SgxCode::InvalidEinitToken);
    }
    let reserved = [
        at::RESERVED1..at::ATTRIBUTES,
        at::RESERVED2..at::MRSIGNER,
        at::RESERVED3..at::CPUSVNLE,
        at::RESERVED4..at::MASKEDMISCSELECTLE,
    ];
    if valid != 1 || reserved.into_iter().any(|range| !le::is_zero(&token[range])) {
        return Err(SgxCode::InvalidEinitToken);
    }
    let cpusvn = le::array(token, at::CPUSVNLE);
    if fuses.is_beyond(&cpusvn) {
        return Err(SgxCode::InvalidCpusvn);
    }
    let key = fuses.derive(&Binding {
        isvprodid: le::get_u16(token, at::ISVPRODIDLE),
        isvsvn: le::get_u16(token, at::ISVSVNLE),
        owner_epoch: true,
        seal_fuses: true,
        attributes: launcher_attributes,
        miscselect: le::get_u32(token, at::MASKEDMISCSELECTLE),
        mrsigner: launch_signer,
        keyid: le::array(token, at::KEYID),
        cpusvn,
        ..Binding::new(keys::EINITTOKEN)
    });
    if keys::mac(&key, &token[..at::CPUSVNLE]) != le::array(token, at::MAC) {
        return Err(SgxCode::InvalidEinitToken);
    }
    let [mrenclave, mrsigner]: [[u8; 32]; 2] =
        [at::MRENCLAVE, at::MRSIGNER].map(|offset| le::array(token, offset));
    if mrenclave != identity.mrenclave || mrsigner != identity.mrsigner {
        return Err(SgxCode::InvalidMeasurement);
    }
    // The SDM's flow names a code here that its table does not have; this is the likely one.
    if attributes_at(at::ATTRIBUTES) != enclave.attributes() {
        return Err(SgxCode::InvalidAttribute);
    }
    Ok(())
}

/// The digest that `IA32_SGXLEPUBKEYHASH0..3` hold.
fn hash_bytes(words: [u64; 4]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (out, word) in bytes.chunks_exact_mut(8).zip(words) {
        out.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
