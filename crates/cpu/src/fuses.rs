//! What is burnt into the package, and stays when the machine is switched off.
//!
//! The machine keeps these secrets in a state directory, so that data sealed by an enclave can be unsealed by
//! the next run. Everything else that is secret (paging key, report key id) is new at every power-on and lives
//! in the processor. Source: SDM volume 3D, "Key and Certificate Derivation".

use std::fmt;

/// First bytes of the stored form; the last one is its version.
const MAGIC: [u8; 8] = *b"USGXFUS\x01";
/// The security version of a new package: opaque to software, and each byte is compared by itself.
const CPUSVN: [u8; 16] = [5, 5, 2, 4, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The secrets and the security version of one processor package.
#[derive(Clone, Eq, PartialEq)]
pub struct FuseKeys {
    /// Key of the derivation function; unique to the package.
    pub root: [u8; 16],
    /// The seal fuses, an input of all keys but PROVISION.
    pub seal: [u8; 32],
    /// The owner epoch (`MSR_SGXOWNER0` and `1`), an input of keys that belong to the machine's owner.
    pub owner_epoch: [u8; 16],
    /// The current CPUSVN.
    pub cpusvn: [u8; 16],
}

impl FuseKeys {
    /// Bytes of the stored form.
    pub const STORED: usize = 8 + 16 + 32 + 16 + 16;

    /// Makes a new package.
    pub fn generate(random: &mut dyn FnMut(&mut [u8])) -> Self {
        let mut keys = Self { root: [0; 16], seal: [0; 32], owner_epoch: [0; 16], cpusvn: CPUSVN };
        random(&mut keys.root);
        random(&mut keys.seal);
        random(&mut keys.owner_epoch);
        keys
    }

    /// The form to store.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::STORED] {
        let mut stored = [0; Self::STORED];
        let parts = [&MAGIC[..], &self.root, &self.seal, &self.owner_epoch, &self.cpusvn];
        stored.copy_from_slice(&parts.concat());
        stored
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// The bytes are not what [`to_bytes`](Self::to_bytes) of this version makes.
    pub fn from_bytes(stored: &[u8]) -> Result<Self, FuseKeysError> {
        let stored: &[u8; Self::STORED] =
            stored.try_into().map_err(|_| FuseKeysError::Length(stored.len()))?;
        let magic: [u8; 8] = crate::le::array(stored, 0);
        if magic != MAGIC {
            return Err(FuseKeysError::Version(magic));
        }
        Ok(Self {
            root: crate::le::array(stored, 8),
            seal: crate::le::array(stored, 24),
            owner_epoch: crate::le::array(stored, 56),
            cpusvn: crate::le::array(stored, 72),
        })
    }
}

/// Without the secrets: logs are kept longer than anybody thinks.
impl fmt::Debug for FuseKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuseKeys").field("cpusvn", &self.cpusvn).finish_non_exhaustive()
    }
}

/// Why stored fuse keys can not be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FuseKeysError {
    /// There are this many bytes.
    Length(usize),
    /// The first bytes are these: another kind of file, or another version.
    Version([u8; 8]),
}

impl fmt::Display for FuseKeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "fuse keys have {} bytes, not {length}", FuseKeys::STORED),
            Self::Version(magic) => {
                write!(
                    f,
                    "fuse keys start with \"{}\", not with \"{}\"",
                    MAGIC.escape_ascii(),
                    magic.escape_ascii()
                )
            }
        }
    }
}

impl std::error::Error for FuseKeysError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> FuseKeys {
        let mut next = 0;
        FuseKeys::generate(&mut |out| {
            for byte in out {
                next += 1;
                *byte = next;
            }
        })
    }

    #[test]
    fn stored_form_round_trips() {
        assert_eq!(FuseKeys::from_bytes(&sample().to_bytes()), Ok(sample()));
    }

    #[test]
    fn wrong_lengths_and_versions_are_refused() {
        let stored = sample().to_bytes();
        assert_eq!(FuseKeys::from_bytes(&stored[1..]), Err(FuseKeysError::Length(87)));
        assert_eq!(FuseKeys::from_bytes(&[]), Err(FuseKeysError::Length(0)));
        for i in 0..8 {
            let mut other = stored;
            other[i] ^= 1;
            assert!(matches!(FuseKeys::from_bytes(&other), Err(FuseKeysError::Version(_))));
        }
    }

    #[test]
    fn debug_output_has_no_secret() {
        assert_eq!(format!("{:?}", sample()), format!("FuseKeys {{ cpusvn: {CPUSVN:?}, .. }}"));
    }
}
