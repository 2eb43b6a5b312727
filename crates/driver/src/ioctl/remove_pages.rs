//! REMOVE_PAGES: EREMOVE of trimmed and accepted pages. Source: Linux, arch/x86/kernel/cpu/sgx/ioctl.c.
//!
//! As Linux, this finds out whether the enclave has accepted the trimming by an EMODPR that must fail: an
//! accepted TRIM page gives `#PF`, one that is not accepted yet `SGX_PAGE_NOT_MODIFIABLE`.

use usgx_isa::layout::SecinfoFlags;
use usgx_isa::{Encls, Fault, LeafError};

use super::argument::{Argument, check_range};
use super::sgx2::{PageError, secinfo};
use crate::enclave::Inner;
use crate::errno::Errno;
use crate::event::Event;
use crate::page::PageKind;
use crate::seams::{AddressSpaces, Caller, Machine};
use crate::state::State;

impl<M: Machine> Inner<M> {
    pub(super) fn remove_pages(&self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        self.check_sgx2()?;
        let mut argument = Argument::<3>::read(arg, caller)?;
        let [offset, length, count] = argument.fields;
        let range = check_range(offset, length, self.place().1)?;
        if count != 0 {
            return Err(Errno::EINVAL);
        }
        let progress = self.for_each_page(range, caller, |state, index| self.remove_page(state, index));
        argument.fields[2] = progress.bytes();
        argument.write_back(caller, progress.errno())
    }

    fn remove_page(&self, state: &mut State, index: u64) -> Result<(), PageError> {
        let kernel = &self.kernel;
        let record = state.pages.get(index).ok_or(Errno::EFAULT)?;
        let page = record.place.epc_page().ok_or(Errno::EFAULT)?;
        if record.kind != PageKind::Trim {
            return Err(Errno::EPERM.into());
        }
        let probe = secinfo(SecinfoFlags::R | SecinfoFlags::W | SecinfoFlags::X);
        if !matches!(kernel.hw.emodpr(page, &probe), Err(LeafError::Fault(Fault::Pf(_)))) {
            return Err(Errno::EPERM.into());
        }
        kernel.epc.unmark_reclaimable(page).map_err(|_| PageError::in_reclaim(Errno::EBUSY))?;
        kernel.spaces.zap(self.id, &[(self.addr(index), page)]);
        state.remove(index);
        kernel.release(page);
        self.note(Event::Remove { addr: self.addr(index) });
        Ok(())
    }
}
