//! The device's ioctls: one at a time for each enclave, arguments copied in and out, checks in Linux's order.
//!
//! Whatever an argument says is a claim until the check that its type names. Source: Linux,
//! arch/x86/kernel/cpu/sgx/ioctl.c.

use core::sync::atomic::Ordering;

use crate::enclave::{Enclave, Inner};
use crate::errno::Errno;
use crate::seams::{Caller, Machine};

mod add_pages;
mod argument;
mod create;
mod init;
mod modify_types;
mod provision;
mod remove_pages;
mod restrict;
mod sgx2;

/// The ioctl numbers, as a program passes them.
pub mod command {
    /// `SGX_IOC_ENCLAVE_CREATE`
    pub const CREATE: u32 = 0x4008_A400;
    /// `SGX_IOC_ENCLAVE_ADD_PAGES`
    pub const ADD_PAGES: u32 = 0xC030_A401;
    /// `SGX_IOC_ENCLAVE_INIT`
    pub const INIT: u32 = 0x4008_A402;
    /// `SGX_IOC_ENCLAVE_PROVISION`
    pub const PROVISION: u32 = 0x4008_A403;
    /// `SGX_IOC_VEPC_REMOVE_ALL`, of the device of virtual EPCs
    pub const VEPC_REMOVE_ALL: u32 = 0x0000_A404;
    /// `SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS`
    pub const RESTRICT_PERMISSIONS: u32 = 0xC028_A405;
    /// `SGX_IOC_ENCLAVE_MODIFY_TYPES`
    pub const MODIFY_TYPES: u32 = 0xC028_A406;
    /// `SGX_IOC_ENCLAVE_REMOVE_PAGES`
    pub const REMOVE_PAGES: u32 = 0xC018_A407;
}

impl<M: Machine> Enclave<M> {
    /// Carries out an ioctl with command `cmd` and argument `arg`.
    ///
    /// # Errors
    /// As Linux reports them.
    pub fn ioctl(&self, cmd: u32, arg: u64, caller: &dyn Caller) -> Result<u64, Errno> {
        let inner = &*self.0;
        let _running = Running::start(inner)?;
        match cmd {
            command::CREATE => inner.create(arg, caller),
            command::ADD_PAGES => inner.add_pages(arg, caller),
            command::INIT => inner.init(arg, caller),
            command::PROVISION => inner.provision(arg, caller),
            command::RESTRICT_PERMISSIONS => inner.restrict_permissions(arg, caller),
            command::MODIFY_TYPES => inner.modify_types(arg, caller),
            command::REMOVE_PAGES => inner.remove_pages(arg, caller),
            _ => Err(Errno::ENOTTY),
        }
        .map(|()| 0)
    }
}

/// The right to run an ioctl on an enclave, given back when dropped.
struct Running<'a, M: Machine>(&'a Inner<M>);

impl<'a, M: Machine> Running<'a, M> {
    fn start(inner: &'a Inner<M>) -> Result<Self, Errno> {
        // Acquire: pairs with the Release of the ioctl before, whose changes this one builds on.
        if inner.in_ioctl.swap(true, Ordering::Acquire) {
            return Err(Errno::EBUSY);
        }
        Ok(Self(inner))
    }
}

impl<M: Machine> Drop for Running<'_, M> {
    fn drop(&mut self) {
        self.0.in_ioctl.store(false, Ordering::Release);
    }
}
