//! Tracking: making sure that no thread uses what the EPCM said before.
//!
//! ETRACK starts a cycle; it is complete when every thread that was inside has left once, which a kick brings
//! about. Source: Linux, arch/x86/kernel/cpu/sgx/ioctl.c; SDM volume 3D, "ETRACK".

use usgx_epc::check_none_held;
use usgx_isa::Encls;

use crate::enclave::Inner;
use crate::errno::Errno;
use crate::event::Event;
use crate::seams::{AddressSpaces, Machine};
use crate::state::State;

impl<M: Machine> Inner<M> {
    /// Starts a tracking cycle; says whether the processor agreed.
    pub(crate) fn etrack(&self, state: &mut State) -> bool {
        // Without an SECS no page is in the EPC: nobody is inside and there is nothing to track.
        let Some(secs) = state.secs_page() else { return true };
        self.note(Event::Track);
        let started = self.kernel.hw.etrack(secs).is_ok();
        state.cycles += u64::from(started);
        started
    }

    /// Makes every thread leave once. No lock may be held.
    pub(crate) fn kick(&self) {
        check_none_held::<M::Platform>("a kick");
        self.note(Event::Kick);
        self.kernel.spaces.kick(self.id);
    }

    /// After EMODPR or EMODT: returns when every thread has left the enclave once since then.
    ///
    /// Linux does this for each page of an ioctl, with the enclave locked; once for all of them gives the same
    /// promise when the ioctl returns.
    pub(crate) fn track_changes(&self) -> Result<(), Errno> {
        if let Err(cycle) = self.try_etrack() {
            // That cycle has not ended. A kick ends it.
            self.kick();
            match self.try_etrack() {
                // A reclaim pass was faster. Its cycle began after the changes, and serves as well.
                Err(newer) if newer != cycle => {}
                Err(_) => return Err(Errno::EFAULT),
                Ok(()) => {}
            }
        }
        self.kick();
        Ok(())
    }

    /// Starts a tracking cycle, or says which one is in the way.
    fn try_etrack(&self) -> Result<(), u64> {
        let mut state = self.lock();
        if self.etrack(&mut state) { Ok(()) } else { Err(state.cycles) }
    }
}
