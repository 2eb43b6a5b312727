//! INIT: the checks on SIGSTRUCT that Linux makes, and EINIT. Source: Linux,
//! arch/x86/kernel/cpu/sgx/ioctl.c.
//!
//! EINIT may be interrupted by a pending event (`SGX_UNMASKED_EVENT`) and is then repeated, at most 1000 times.
//! Linux sleeps 20 ms after each 20; the driver has no clock and lets others run instead.

use alloc::boxed::Box;

use sha2::{Digest, Sha256};
use usgx_epc::Platform;
use usgx_isa::layout::{Einittoken, Sigstruct};
use usgx_isa::{Encls, EpcPage, LeafError, SgxCode};

use super::argument::Argument;
use crate::config::Config;
use crate::enclave::{Inner, Phase};
use crate::errno::Errno;
use crate::event::Event;
use crate::paging::LoadError;
use crate::seams::{Caller, Machine};

/// Rounds of tries, with a rest after each.
const ROUNDS: usize = 50;
/// Tries in a round.
const TRIES: usize = 20;
/// Intel's vendor number; the other that passes is 0.
const VENDOR_INTEL: u32 = 0x8086;

impl<M: Machine> Inner<M> {
    pub(super) fn init(&self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        if self.phase() != Phase::Created {
            return Err(Errno::EINVAL);
        }
        let [src] = Argument::<1>::read(arg, caller)?.fields;
        let mut bytes = [0; Sigstruct::UNPADDED_SIZE];
        caller.read(src, &mut bytes)?;
        let sigstruct: Box<Sigstruct> =
            Sigstruct::try_copy_from(&bytes).map(Box::new).expect("the buffer has a SIGSTRUCT's size");
        if sigstruct.vendor != 0 && sigstruct.vendor != VENDOR_INTEL {
            return Err(Errno::EINVAL);
        }
        let state = self.lock();
        if state.attributes & !state.allowed != 0 {
            return Err(Errno::EACCES);
        }
        check_demands(&sigstruct, &self.kernel.config)?;
        drop(state);
        self.run_einit(&sigstruct, caller)?;
        self.advance(Phase::Initialized);
        self.note(Event::Init);
        Ok(())
    }

    fn run_einit(&self, sigstruct: &Sigstruct, caller: &dyn Caller) -> Result<(), Errno> {
        let hash = launch_hash(&sigstruct.modulus);
        for _round in 0..ROUNDS {
            let result = self.persist(
                true,
                || caller.signal_pending(),
                |state, supply| {
                    let secs = self.load_secs(state, supply)?;
                    Ok::<_, LoadError>(self.try_einit(secs, sigstruct, hash))
                },
            );
            if let Some(result) = result.map_err(LoadError::before_init)? {
                return result;
            }
            if caller.signal_pending() {
                return Err(Errno::ERESTARTSYS);
            }
            self.kernel.platform.yield_now();
        }
        Err(Errno::EPERM)
    }

    /// A round of tries; `None` if events interrupted them all. Precondition: the SECS `secs` is in the EPC.
    fn try_einit(&self, secs: EpcPage, sigstruct: &Sigstruct, hash: [u64; 4]) -> Option<Result<(), Errno>> {
        let token = Einittoken::default();
        for _try in 0..TRIES {
            match self.kernel.hw.einit(secs, sigstruct, &token, hash) {
                Ok(()) => return Some(Ok(())),
                Err(LeafError::Code(SgxCode::UnmaskedEvent)) => {}
                Err(LeafError::Code(_)) => return Some(Err(Errno::EPERM)),
                Err(LeafError::Fault(_)) => return Some(Err(Errno::EIO)),
            }
        }
        None
    }
}

/// Refuses a SIGSTRUCT that demands bits which no enclave on this machine can have.
fn check_demands(sigstruct: &Sigstruct, config: &Config) -> Result<(), Errno> {
    let attributes =
        sigstruct.attributes.flags.bits() & sigstruct.attributemask[0] & config.attributes_reserved;
    let misc = sigstruct.miscselect.bits() & sigstruct.miscmask & config.misc_reserved;
    let xfrm = sigstruct.attributes.xfrm & sigstruct.attributemask[1] & config.xfrm_reserved;
    if attributes != 0 || misc != 0 || xfrm != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// What the launch control MSRs are set to: the signer's hash, so that every signer may launch.
fn launch_hash(modulus: &[u8; 384]) -> [u64; 4] {
    let digest: [u8; 32] = Sha256::digest(modulus).into();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().expect("chunks of eight"));
    }
    words
}
