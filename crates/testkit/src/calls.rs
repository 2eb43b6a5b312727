//! The ioctls as a program writes them: arguments put into the caller's memory, results read back.

use usgx_driver::{Enclave, Errno, Machine, command};

use crate::caller::SimCaller;

/// Where arguments go in the caller's memory.
pub(crate) const ARGUMENT: u64 = 0x1_0000;
/// Where structures that arguments point to go.
pub(crate) const STRUCTURE: u64 = 0x1_1000;

/// What an SGX2 ioctl said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sgx2Result {
    /// Success, or why not.
    pub outcome: Result<(), Errno>,
    /// The `result` field; 0 for REMOVE_PAGES.
    pub result: u64,
    /// The `count` field.
    pub count: u64,
}

/// A caller about to make ioctls on an enclave.
pub struct Call<'a, M: Machine> {
    /// The enclave.
    pub enclave: &'a Enclave<M>,
    /// The caller.
    pub caller: &'a SimCaller,
}

impl<M: Machine> Call<'_, M> {
    /// An ioctl with these argument fields; returns its outcome, and leaves the argument in memory.
    pub fn raw(&self, command: u32, fields: &[u64]) -> Result<(), Errno> {
        for (i, field) in (0..).zip(fields) {
            self.caller.set(ARGUMENT + i * 8, &field.to_le_bytes());
        }
        self.enclave.ioctl(command, ARGUMENT, self.caller).map(|value| assert_eq!(value, 0))
    }

    /// A field of the last argument, as it is now.
    pub fn field(&self, number: u64) -> u64 {
        self.caller.word(ARGUMENT + number * 8)
    }

    /// CREATE with this SECS.
    pub fn create(&self, secs: &[u8]) -> Result<(), Errno> {
        self.caller.set(STRUCTURE, secs);
        self.raw(command::CREATE, &[STRUCTURE])
    }

    /// ADD_PAGES; returns the outcome and `count`.
    pub fn add_pages(
        &self,
        src: u64,
        offset: u64,
        length: u64,
        secinfo: u64,
        measure: bool,
    ) -> (Result<(), Errno>, u64) {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(&secinfo.to_le_bytes());
        self.caller.set(STRUCTURE, &bytes);
        let fields = [src, offset, length, STRUCTURE, u64::from(measure), 0];
        (self.raw(command::ADD_PAGES, &fields), self.field(5))
    }

    /// INIT with this SIGSTRUCT.
    pub fn init(&self, sigstruct: &[u8]) -> Result<(), Errno> {
        self.caller.set(STRUCTURE, sigstruct);
        self.raw(command::INIT, &[STRUCTURE])
    }

    /// RESTRICT_PERMISSIONS.
    pub fn restrict(&self, offset: u64, length: u64, permissions: u64) -> Sgx2Result {
        let outcome = self.raw(command::RESTRICT_PERMISSIONS, &[offset, length, permissions, 0, 0]);
        Sgx2Result { outcome, result: self.field(3), count: self.field(4) }
    }

    /// MODIFY_TYPES.
    pub fn modify_types(&self, offset: u64, length: u64, page_type: u64) -> Sgx2Result {
        let outcome = self.raw(command::MODIFY_TYPES, &[offset, length, page_type, 0, 0]);
        Sgx2Result { outcome, result: self.field(3), count: self.field(4) }
    }

    /// REMOVE_PAGES.
    pub fn remove_pages(&self, offset: u64, length: u64) -> Sgx2Result {
        let outcome = self.raw(command::REMOVE_PAGES, &[offset, length, 0]);
        Sgx2Result { outcome, result: 0, count: self.field(2) }
    }
}
