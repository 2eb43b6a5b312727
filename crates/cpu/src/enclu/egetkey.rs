//! EGETKEY: keys for the running enclave.
//!
//! Each kind of key is one arm of one `match`, to be read beside the SDM's table "Key Derivation". Source: SDM
//! volume 3D, "EGETKEY" and "Key Request (KEYREQUEST)".

use usgx_isa::{LinAddr, SgxCode};

use super::operand::Mapped;
use super::{EncluError, Translate, check_address};
use crate::bytes::PageBytes;
use crate::fuses::FuseKeys;
use crate::keys::{self, Binding};
use crate::le;
use crate::processor::Processor;
use crate::profile::ATTRIBUTE_KSS;
use crate::secs::{DEBUG, EINITTOKENKEY, INIT, Identity, PROVISIONKEY, Resident};
use crate::tracking::LogicalProcessors;

/// Offsets of KEYREQUEST's fields.
mod at {
    pub(super) const SIZE: usize = 512;
    pub(super) const KEYNAME: usize = 0;
    pub(super) const KEYPOLICY: usize = 2;
    pub(super) const ISVSVN: usize = 4;
    pub(super) const RESERVED1: usize = 6;
    pub(super) const CPUSVN: usize = 8;
    pub(super) const ATTRIBUTEMASK: usize = 24;
    pub(super) const KEYID: usize = 40;
    pub(super) const MISCMASK: usize = 72;
    pub(super) const CONFIGSVN: usize = 76;
    pub(super) const RESERVED2: usize = 78;
}

/// Bits of KEYPOLICY.
mod policy {
    pub(super) const MRENCLAVE: u16 = 1 << 0;
    pub(super) const MRSIGNER: u16 = 1 << 1;
    pub(super) const NOISVPRODID: u16 = 1 << 2;
    pub(super) const CONFIGID: u16 = 1 << 3;
    pub(super) const ISVFAMILYID: u16 = 1 << 4;
    pub(super) const ISVEXTPRODID: u16 = 1 << 5;
    /// Those that need KSS.
    pub(super) const KSS: u16 = NOISVPRODID | CONFIGID | ISVFAMILYID | ISVEXTPRODID;
    pub(super) const ALL: u16 = MRENCLAVE | MRSIGNER | KSS;
}

const REQUEST_ALIGN: u64 = 512;
const KEY_ALIGN: u64 = 16;

/// A KEYREQUEST whose reserved fields are right.
struct Request {
    keyname: u16,
    keypolicy: u16,
    isvsvn: u16,
    cpusvn: [u8; 16],
    attributemask: [u64; 2],
    keyid: [u8; 32],
    miscmask: u32,
    configsvn: u16,
}

/// Runs EGETKEY.
pub(super) fn egetkey<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    enclave: &Resident,
    rbx: LinAddr,
    rcx: LinAddr,
    map: &dyn Translate,
) -> Result<(), EncluError> {
    let identity = enclave.identity().ok_or(EncluError::Gp)?;
    check_address(enclave, rbx, REQUEST_ALIGN)?;
    let request: [u8; at::SIZE] = Mapped::find(cpu, rbx, false, map)?.check(enclave)?.read(cpu);
    check_address(enclave, rcx, KEY_ALIGN)?;
    let output = Mapped::find(cpu, rcx, true, map)?.check(enclave)?;
    let request = Request::parse(&request, enclave.has(ATTRIBUTE_KSS)).ok_or(EncluError::Gp)?;
    let binding = request.bind(cpu.fuses(), enclave, identity)?;
    output.write(cpu, &cpu.fuses().derive(&binding));
    Ok(())
}

impl Request {
    /// Reads a KEYREQUEST; `None` if a field is set that is reserved, or reserved without KSS.
    fn parse(bytes: &[u8; at::SIZE], kss: bool) -> Option<Self> {
        let request = Self {
            keyname: le::get_u16(bytes, at::KEYNAME),
            keypolicy: le::get_u16(bytes, at::KEYPOLICY),
            isvsvn: le::get_u16(bytes, at::ISVSVN),
            cpusvn: le::array(bytes, at::CPUSVN),
            attributemask: [at::ATTRIBUTEMASK, at::ATTRIBUTEMASK + 8]
                .map(|offset| le::get_u64(bytes, offset)),
            keyid: le::array(bytes, at::KEYID),
            miscmask: le::get_u32(bytes, at::MISCMASK),
            configsvn: le::get_u16(bytes, at::CONFIGSVN),
        };
        let good = le::is_zero(&bytes[at::RESERVED1..at::CPUSVN])
            && le::is_zero(&bytes[at::RESERVED2..])
            && request.keypolicy & !policy::ALL == 0
            && (kss || request.keypolicy & policy::KSS == 0 && request.configsvn == 0);
        good.then_some(request)
    }

    /// What the requested key is bound to, if the enclave may have it.
    fn bind(&self, fuses: &FuseKeys, enclave: &Resident, identity: &Identity) -> Result<Binding, SgxCode> {
        match self.keyname {
            keys::EINITTOKEN => {
                Self::require(enclave, EINITTOKENKEY)?;
                self.check_versions(fuses, identity)?;
                Ok(Binding {
                    owner_epoch: true,
                    seal_fuses: true,
                    keyid: self.keyid,
                    ..self.versioned(enclave, identity)
                })
            }
            keys::PROVISION => {
                Self::require(enclave, PROVISIONKEY)?;
                self.check_versions(fuses, identity)?;
                Ok(Binding {
                    attributemask: self.attributemask,
                    miscmask: !self.miscmask,
                    ..self.versioned(enclave, identity)
                })
            }
            keys::PROVISION_SEAL => {
                Self::require(enclave, PROVISIONKEY)?;
                self.check_versions(fuses, identity)?;
                self.check_configsvn(enclave)?;
                Ok(Binding { mrsigner: identity.mrsigner, ..self.policed(enclave, identity) })
            }
            keys::REPORT => Ok(Binding {
                attributes: enclave.attributes(),
                miscselect: enclave.miscselect,
                owner_epoch: true,
                seal_fuses: true,
                cpusvn: fuses.cpusvn,
                mrenclave: identity.mrenclave,
                configid: enclave.configid,
                configsvn: enclave.configsvn,
                keyid: self.keyid,
                ..Binding::new(keys::REPORT)
            }),
            keys::SEAL => {
                self.check_versions(fuses, identity)?;
                self.check_configsvn(enclave)?;
                Ok(Binding {
                    owner_epoch: true,
                    mrenclave: self.if_policy(policy::MRENCLAVE, identity.mrenclave),
                    mrsigner: self.if_policy(policy::MRSIGNER, identity.mrsigner),
                    keyid: self.keyid,
                    ..self.policed(enclave, identity)
                })
            }
            _ => Err(SgxCode::InvalidKeyname),
        }
    }

    fn require(enclave: &Resident, attribute: u64) -> Result<(), SgxCode> {
        if enclave.has(attribute) { Ok(()) } else { Err(SgxCode::InvalidAttribute) }
    }

    /// An enclave may ask for the keys of its own and of older versions.
    fn check_versions(&self, fuses: &FuseKeys, identity: &Identity) -> Result<(), SgxCode> {
        if fuses.is_beyond(&self.cpusvn) {
            return Err(SgxCode::InvalidCpusvn);
        }
        if self.isvsvn > identity.isvsvn { Err(SgxCode::InvalidIsvsvn) } else { Ok(()) }
    }

    fn check_configsvn(&self, enclave: &Resident) -> Result<(), SgxCode> {
        if self.configsvn > enclave.configsvn { Err(SgxCode::InvalidIsvsvn) } else { Ok(()) }
    }

    /// What all keys that have a version are bound to; MRSIGNER is for those without a policy.
    fn versioned(&self, enclave: &Resident, identity: &Identity) -> Binding {
        let [flags, xfrm] = enclave.attributes();
        Binding {
            // INIT and DEBUG count whatever the mask says, so a debug enclave never gets a production key.
            attributes: [flags & (self.attributemask[0] | INIT | DEBUG), xfrm & self.attributemask[1]],
            miscselect: enclave.miscselect & self.miscmask,
            cpusvn: self.cpusvn,
            isvsvn: self.isvsvn,
            isvprodid: identity.isvprodid,
            mrsigner: identity.mrsigner,
            ..Binding::new(self.keyname)
        }
    }

    /// What the keys with a policy are bound to, but for MRENCLAVE and MRSIGNER, where they differ.
    fn policed(&self, enclave: &Resident, identity: &Identity) -> Binding {
        let versioned = self.versioned(enclave, identity);
        Binding {
            attributemask: self.attributemask,
            miscmask: !self.miscmask,
            seal_fuses: true,
            isvprodid: if self.keypolicy & policy::NOISVPRODID != 0 { 0 } else { identity.isvprodid },
            isvextprodid: self.if_policy(policy::ISVEXTPRODID, identity.isvextprodid),
            isvfamilyid: self.if_policy(policy::ISVFAMILYID, identity.isvfamilyid),
            mrsigner: [0; 32],
            configid: self.if_policy(policy::CONFIGID, enclave.configid),
            configsvn: if self.keypolicy & policy::CONFIGID != 0 { self.configsvn } else { 0 },
            keypolicy: self.keypolicy,
            ..versioned
        }
    }

    fn if_policy<const N: usize>(&self, bit: u16, value: [u8; N]) -> [u8; N] {
        if self.keypolicy & bit != 0 { value } else { [0; N] }
    }
}
