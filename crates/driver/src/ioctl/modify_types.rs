//! MODIFY_TYPES: EMODT on a range, to TCS or TRIM. Source: Linux, arch/x86/kernel/cpu/sgx/ioctl.c.
//!
//! Linux records the new type only after a tracking that may fail, and so may end with a record that the
//! processor does not agree with; here the record follows EMODT. And Linux drops the enclave's lock to take
//! the page out of address spaces, so that a fault may map it again; here the lock is kept.

use usgx_isa::Encls;
use usgx_isa::layout::{PageType, SecinfoFlags};

use super::argument::{Argument, check_range};
use super::sgx2::{PageError, Progress, secinfo};
use crate::enclave::Inner;
use crate::errno::Errno;
use crate::page::{PageKind, Prot};
use crate::seams::{AddressSpaces, Caller, Machine};
use crate::state::State;

impl<M: Machine> Inner<M> {
    pub(super) fn modify_types(&self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        self.check_sgx2()?;
        let mut argument = Argument::<5>::read(arg, caller)?;
        let [offset, length, page_type, result, count] = argument.fields;
        let range = check_range(offset, length, self.place().1)?;
        if page_type > 0xff || result != 0 || count != 0 {
            return Err(Errno::EINVAL);
        }
        // The one wrong parameter after which the argument is copied out.
        let progress = match page_type {
            t if t == PageType::Tcs as u64 => self.for_each_page_tracked(range, caller, |state, index| {
                self.modify_type(state, index, PageKind::Tcs)
            }),
            t if t == PageType::Trim as u64 => self.for_each_page_tracked(range, caller, |state, index| {
                self.modify_type(state, index, PageKind::Trim)
            }),
            _ => Progress::none(Errno::EINVAL),
        };
        argument.fields[3] = progress.code();
        argument.fields[4] = progress.bytes();
        argument.write_back(caller, progress.errno())
    }

    fn modify_type(&self, state: &mut State, index: u64, kind: PageKind) -> Result<(), PageError> {
        let record = state.pages.get_mut(index).ok_or(Errno::EFAULT)?;
        let page = record.place.epc_page().ok_or(Errno::EFAULT)?;
        let new_type = match (record.kind, kind) {
            (PageKind::Reg, PageKind::Tcs) => PageType::Tcs,
            (PageKind::Reg | PageKind::Tcs, PageKind::Trim) => PageType::Trim,
            _ => return Err(Errno::EINVAL.into()),
        };
        let to_tcs = kind == PageKind::Tcs;
        if to_tcs {
            if !record.max_prot.contains(Prot::R | Prot::W) {
                return Err(Errno::EPERM.into());
            }
            // Taking it off the list and putting it back as the newest page: no pass may have it now.
            self.kernel.epc.unmark_reclaimable(page).map_err(|_| PageError::in_reclaim(Errno::EAGAIN))?;
        }
        let pages = [(self.addr(index), page)];
        if to_tcs {
            self.kernel.spaces.zap(self.id, &pages);
            self.kernel.epc.mark_reclaimable(page, self.owner, index);
        } else {
            self.kernel.spaces.hide(self.id, &pages);
        }
        self.kernel.hw.emodt(page, &secinfo(SecinfoFlags::from(new_type)))?;
        record.kind = kind;
        if to_tcs {
            record.max_prot = Prot::R | Prot::W;
        }
        Ok(())
    }
}
