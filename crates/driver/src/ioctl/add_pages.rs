//! ADD_PAGES: EADD and EEXTEND, page by page. Source: Linux, arch/x86/kernel/cpu/sgx/ioctl.c.
//!
//! Linux looks up the source page with the enclave locked, after it has found that the address is free. A
//! source page may be a message to a client here, and no lock is held across one. So the address is looked at
//! first, the lock dropped for the source, and taken again for EADD; as only one ioctl runs at a time and no
//! fault adds pages before INIT, the address is still free then, and the errors come in Linux's order.

use alloc::boxed::Box;

use usgx_epc::Reclaim;
use usgx_isa::layout::{PageType, Secinfo};
use usgx_isa::{Encls, EpcPage, LinAddr, Page};

use super::argument::{Argument, check_range};
use crate::enclave::{Inner, Phase};
use crate::errno::Errno;
use crate::event::Event;
use crate::page::{PageKind, Prot};
use crate::paging::LoadError;
use crate::seams::{Caller, Machine};
use crate::state::State;

/// ADD_PAGES.flags: measure the pages (EEXTEND). Other bits are ignored, as on Linux.
const MEASURE: u64 = 1;
/// SECINFO.FLAGS bits that a program may not set: all but R, W, X and the page type.
const SECINFO_RESERVED: u64 = !0xff07;

/// A checked SECINFO.
struct Kind {
    secinfo: Secinfo,
    kind: PageKind,
    max_prot: Prot,
}

impl Kind {
    fn check(bytes: &[u8; 64]) -> Result<Self, Errno> {
        let (flags, reserved) = bytes.split_first_chunk::<8>().expect("a SECINFO has 64 bytes");
        let flags = u64::from_le_bytes(*flags);
        let prot = Prot::from_bits_truncate(flags as u8);
        let kind = match (flags >> 8) as u8 {
            kind if kind == PageType::Reg as u8 => PageKind::Reg,
            kind if kind == PageType::Tcs as u8 => PageKind::Tcs,
            _ => return Err(Errno::EINVAL),
        };
        if prot.contains(Prot::W) && !prot.contains(Prot::R)
            || kind == PageKind::Tcs && !prot.is_empty()
            || flags & SECINFO_RESERVED != 0
            || reserved.iter().any(|byte| *byte != 0)
        {
            return Err(Errno::EINVAL);
        }
        let secinfo = Secinfo::try_copy_from(bytes).expect("a SECINFO has 64 bytes");
        let max_prot = if kind == PageKind::Tcs { Prot::R | Prot::W } else { prot };
        Ok(Self { secinfo, kind, max_prot })
    }
}

/// One page to add.
struct Wish<'a> {
    index: u64,
    kind: &'a Kind,
    /// EEXTEND too.
    measure: bool,
}

impl<M: Machine> Inner<M> {
    pub(super) fn add_pages(&self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        if self.phase() != Phase::Created {
            return Err(Errno::EINVAL);
        }
        let mut argument = Argument::<6>::read(arg, caller)?;
        let [src, offset, length, secinfo, flags, _] = argument.fields;
        if !src.is_multiple_of(4096) {
            return Err(Errno::EINVAL);
        }
        let range = check_range(offset, length, self.place().1)?;
        let mut bytes = [0; 64];
        caller.read(secinfo, &mut bytes)?;
        let kind = Kind::check(&bytes)?;

        let mut contents = Box::<Page>::default();
        let mut result = Ok(());
        let mut done = 0;
        while done < range.count {
            if caller.signal_pending() {
                // After the first page a short count is a success: callers compare it with the length.
                if done == 0 {
                    result = Err(Errno::ERESTARTSYS);
                }
                break;
            }
            let source = |out: &mut Page| {
                let addr = src.checked_add(done * 4096).ok_or(Errno::EFAULT)?;
                Ok(caller.source_page(addr, length - done * 4096, out)?)
            };
            let wish = Wish { index: range.first + done, kind: &kind, measure: flags & MEASURE != 0 };
            result = self.add_page(&wish, &mut contents, source, caller);
            if result.is_err() {
                break;
            }
            done += 1;
        }
        argument.fields[5] = done * 4096;
        argument.write_back(caller, result)
    }

    /// Adds one page, or leaves everything as it was.
    fn add_page(
        &self,
        wish: &Wish<'_>,
        contents: &mut Page,
        source: impl FnOnce(&mut Page) -> Result<(), Errno>,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        let page = self.kernel.epc.alloc(Reclaim::Allowed)?;
        let grown = match self.grow() {
            Ok(grown) => grown,
            Err(error) => {
                self.kernel.epc.free(page);
                return Err(error);
            }
        };
        let result = self.fill(page, wish, contents, source, caller);
        if result.is_err() {
            self.kernel.release(page);
            if grown {
                self.shrink(&mut self.lock());
            }
        }
        result
    }

    fn fill(
        &self,
        page: EpcPage,
        wish: &Wish<'_>,
        contents: &mut Page,
        source: impl FnOnce(&mut Page) -> Result<(), Errno>,
        caller: &dyn Caller,
    ) -> Result<(), Errno> {
        if self.lock().pages.get(wish.index).is_some() {
            return Err(Errno::EBUSY);
        }
        source(contents)?;
        // An enclave that grows slowly may have been idle, and its SECS and VA pages be out.
        let added = self.persist(
            true,
            || caller.signal_pending(),
            |state, supply| {
                let secs = self.load_secs(state, supply)?;
                self.make_room(state, supply)?;
                Ok::<_, LoadError>(self.eadd(state, page, secs, wish, contents))
            },
        );
        added.map_err(LoadError::before_init)?
    }

    /// EADD and EEXTEND. Preconditions: the SECS `secs` is in the EPC, with a slot for one more page.
    fn eadd(
        &self,
        state: &mut State,
        page: EpcPage,
        secs: EpcPage,
        wish: &Wish<'_>,
        contents: &Page,
    ) -> Result<(), Errno> {
        let (hw, addr) = (&self.kernel.hw, self.addr(wish.index));
        hw.eadd(page, secs, LinAddr(addr), contents, &wish.kind.secinfo).map_err(|_| Errno::EIO)?;
        if wish.measure {
            hw.eextend_page(secs, page).map_err(|_| Errno::EIO)?;
        }
        state.add(wish.index, page, wish.kind.max_prot, wish.kind.kind);
        self.list_va_pages(state);
        // From here on it can be evicted, even before INIT.
        self.kernel.epc.mark_reclaimable(page, self.owner, wish.index);
        self.note(Event::Add { addr });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(flags: u64) -> Result<(PageKind, Prot), Errno> {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(&flags.to_le_bytes());
        Kind::check(&bytes).map(|kind| (kind.kind, kind.max_prot))
    }

    #[test]
    fn secinfo_rules() {
        assert_eq!(check(0x203), Ok((PageKind::Reg, Prot::R | Prot::W)));
        assert_eq!(check(0x204), Ok((PageKind::Reg, Prot::X)));
        assert_eq!(check(0x200), Ok((PageKind::Reg, Prot::empty())));
        assert_eq!(check(0x100), Ok((PageKind::Tcs, Prot::R | Prot::W)));
        for flags in [0x002, 0x202, 0x206, 0x101, 0x003, 0x403, 0x503, 0x603, 0x20b, 0x1_0203, 0x223] {
            assert_eq!(check(flags), Err(Errno::EINVAL), "{flags:#x}");
        }
        let mut bytes = [0; 64];
        (bytes[1], bytes[63]) = (2, 1);
        assert!(Kind::check(&bytes).is_err());
    }
}
