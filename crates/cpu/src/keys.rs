//! Key derivation: from what a key is bound to, to the key.
//!
//! EGETKEY, EREPORT and EINIT fill in a [`Binding`] by the SDM's table; all keys come from one function of it.
//! The function is not architectural: here it is AES-128-CMAC, under the package's root, over a fixed layout
//! of all inputs, so different inputs never give the same message. Source: SDM volume 3D, "EGETKEY", table
//! "Key Derivation".

use aes::Aes128;
use cmac::{Cmac, Mac};

use crate::fuses::FuseKeys;

/// A derived key.
pub(crate) type Key = [u8; 16];

/// KEYNAME of the EINITTOKEN key.
pub(crate) const EINITTOKEN: u16 = 0;
/// KEYNAME of the provisioning key.
pub(crate) const PROVISION: u16 = 1;
/// KEYNAME of the provisioning seal key.
pub(crate) const PROVISION_SEAL: u16 = 2;
/// KEYNAME of the report key.
pub(crate) const REPORT: u16 = 3;
/// KEYNAME of the seal key.
pub(crate) const SEAL: u16 = 4;

/// What a key is bound to. What a kind of key is not bound to stays zero.
///
/// PADDING is not here: EINIT accepts one padding only, so it is the same constant in every derivation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding {
    pub(crate) keyname: u16,
    pub(crate) attributes: [u64; 2],
    pub(crate) attributemask: [u64; 2],
    pub(crate) miscselect: u32,
    pub(crate) miscmask: u32,
    /// Bound to the machine's owner.
    pub(crate) owner_epoch: bool,
    /// Bound to the seal fuses.
    pub(crate) seal_fuses: bool,
    pub(crate) cpusvn: [u8; 16],
    pub(crate) isvsvn: u16,
    pub(crate) isvprodid: u16,
    pub(crate) isvextprodid: [u8; 16],
    pub(crate) isvfamilyid: [u8; 16],
    pub(crate) mrenclave: [u8; 32],
    pub(crate) mrsigner: [u8; 32],
    pub(crate) configid: [u8; 64],
    pub(crate) configsvn: u16,
    pub(crate) keyid: [u8; 32],
    pub(crate) keypolicy: u16,
}

impl Binding {
    /// A binding to nothing but the name.
    pub(crate) const fn new(keyname: u16) -> Self {
        Self {
            keyname,
            attributes: [0; 2],
            attributemask: [0; 2],
            miscselect: 0,
            miscmask: 0,
            owner_epoch: false,
            seal_fuses: false,
            cpusvn: [0; 16],
            isvsvn: 0,
            isvprodid: 0,
            isvextprodid: [0; 16],
            isvfamilyid: [0; 16],
            mrenclave: [0; 32],
            mrsigner: [0; 32],
            configid: [0; 64],
            configsvn: 0,
            keyid: [0; 32],
            keypolicy: 0,
        }
    }
}

impl FuseKeys {
    /// The key that is bound to `to`.
    pub(crate) fn derive(&self, to: &Binding) -> Key {
        let mut mac = cmac(&self.root);
        mac.update(b"usgx key 1");
        mac.update(&to.keyname.to_le_bytes());
        for word in to.attributes.iter().chain(&to.attributemask) {
            mac.update(&word.to_le_bytes());
        }
        mac.update(&to.miscselect.to_le_bytes());
        mac.update(&to.miscmask.to_le_bytes());
        mac.update(if to.owner_epoch { &self.owner_epoch } else { &[0; 16] });
        mac.update(if to.seal_fuses { &self.seal } else { &[0; 32] });
        mac.update(&to.cpusvn);
        mac.update(&to.isvsvn.to_le_bytes());
        mac.update(&to.isvprodid.to_le_bytes());
        mac.update(&to.isvextprodid);
        mac.update(&to.isvfamilyid);
        mac.update(&to.mrenclave);
        mac.update(&to.mrsigner);
        mac.update(&to.configid);
        mac.update(&to.configsvn.to_le_bytes());
        mac.update(&to.keyid);
        mac.update(&to.keypolicy.to_le_bytes());
        mac.finalize().into_bytes().into()
    }

    /// Whether `requested` is newer than this package in any component. All zero is older than everything.
    pub(crate) fn is_beyond(&self, requested: &[u8; 16]) -> bool {
        requested.iter().zip(&self.cpusvn).any(|(requested, current)| requested > current)
    }
}

/// The MAC of reports and of EINIT tokens: AES-128-CMAC.
pub(crate) fn mac(key: &Key, message: &[u8]) -> [u8; 16] {
    let mut mac = cmac(key);
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn cmac(key: &Key) -> Cmac<Aes128> {
    <Cmac<Aes128> as Mac>::new(key.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4493, section 4, examples 1 to 3.
    #[test]
    fn mac_is_aes_cmac() {
        let key = *b"\x2b\x7e\x15\x16\x28\xae\xd2\xa6\xab\xf7\x15\x88\x09\xcf\x4f\x3c";
        let message =
            hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411")
                .expect("hex");
        for (length, expected) in [
            (0, "bb1d6929e95937287fa37d129b756746"),
            (16, "070a16b46b4d4144f79bdd9dd04a287c"),
            (40, "dfa66747de9ae63030ca32611497c827"),
        ] {
            assert_eq!(hex::encode(mac(&key, &message[..length])), expected);
        }
    }

    #[test]
    fn every_input_changes_the_key() {
        let mut counter = 0u8;
        let fuses = FuseKeys::generate(&mut |out| {
            counter += 1;
            out.fill(counter);
        });
        let changes: [fn(&mut Binding); 20] = [
            |_| (),
            |b| b.keyname = 4,
            |b| b.attributes[0] = 1,
            |b| b.attributes[1] = 1,
            |b| b.attributemask[0] = 1,
            |b| b.attributemask[1] = 1,
            |b| b.miscselect = 1,
            |b| b.miscmask = 1,
            |b| b.owner_epoch = true,
            |b| b.seal_fuses = true,
            |b| b.cpusvn[0] = 1,
            |b| b.isvsvn = 1,
            |b| b.isvprodid = 1,
            |b| b.isvextprodid[0] = 1,
            |b| b.isvfamilyid[0] = 1,
            |b| b.mrenclave[0] = 1,
            |b| b.mrsigner[0] = 1,
            |b| b.configid[0] = 1,
            |b| b.keyid[0] = 1,
            |b| (b.configsvn, b.keypolicy) = (1, 0),
        ];
        let keys: std::collections::HashSet<Key> = changes
            .iter()
            .map(|change| {
                let mut binding = Binding::new(0);
                change(&mut binding);
                fuses.derive(&binding)
            })
            .collect();
        assert_eq!(keys.len(), changes.len());
    }
}
