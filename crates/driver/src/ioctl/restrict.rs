//! RESTRICT_PERMISSIONS: EMODPR on a range. Source: Linux, arch/x86/kernel/cpu/sgx/ioctl.c.

use usgx_isa::Encls;
use usgx_isa::layout::SecinfoFlags;

use super::argument::{Argument, check_range};
use super::sgx2::secinfo;
use crate::enclave::Inner;
use crate::errno::Errno;
use crate::page::{PageKind, Prot};
use crate::seams::{AddressSpaces, Caller, Machine};

impl<M: Machine> Inner<M> {
    pub(super) fn restrict_permissions(&self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        self.check_sgx2()?;
        let mut argument = Argument::<5>::read(arg, caller)?;
        let [offset, length, permissions, result, count] = argument.fields;
        let range = check_range(offset, length, self.place().1)?;
        let prot = u8::try_from(permissions).ok().and_then(Prot::from_bits).ok_or(Errno::EINVAL)?;
        if prot.contains(Prot::W) && !prot.contains(Prot::R) || result != 0 || count != 0 {
            return Err(Errno::EINVAL);
        }
        let secinfo = secinfo(SecinfoFlags::from_bits_truncate(permissions));
        let progress = self.for_each_page_tracked(range, caller, |state, index| {
            let record = state.pages.get(index).ok_or(Errno::EFAULT)?;
            if record.kind != PageKind::Reg {
                return Err(Errno::EINVAL.into());
            }
            let page = record.place.epc_page().ok_or(Errno::EFAULT)?;
            self.kernel.spaces.hide(self.id, &[(self.addr(index), page)]);
            Ok(self.kernel.hw.emodpr(page, &secinfo)?)
        });
        argument.fields[3] = progress.code();
        argument.fields[4] = progress.bytes();
        argument.write_back(caller, progress.errno())
    }
}
