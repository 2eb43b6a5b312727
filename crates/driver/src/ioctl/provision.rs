//! PROVISION: lets the enclave have ATTRIBUTES.PROVISIONKEY. Source: Linux,
//! arch/x86/kernel/cpu/sgx/ioctl.c.

use super::argument::Argument;
use crate::enclave::Inner;
use crate::errno::Errno;
use crate::seams::{Caller, Machine};
use crate::state::PROVISIONKEY;

impl<M: Machine> Inner<M> {
    pub(super) fn provision(&self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        let [fd] = Argument::<1>::read(arg, caller)?.fields;
        if !caller.is_provision_fd(fd as u32 as i32) {
            return Err(Errno::EINVAL);
        }
        self.lock().allowed |= PROVISIONKEY;
        Ok(())
    }
}
