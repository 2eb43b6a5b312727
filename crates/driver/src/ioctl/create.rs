//! CREATE: the SECS, the first VA page and the backing store of an enclave. Source: Linux,
//! arch/x86/kernel/cpu/sgx/ioctl.c.

use usgx_epc::Reclaim;
use usgx_isa::layout::Secinfo;
use usgx_isa::{Encls, EpcPage, Page};

use super::argument::Argument;
use crate::enclave::{Inner, Phase};
use crate::errno::Errno;
use crate::event::Event;
use crate::page::Place;
use crate::seams::{AddressSpaces, BackingStore, Caller, Machine};
use crate::state::UNPRIVILEGED;

/// The fields of an SECS that the driver looks at; the processor judges all the others.
struct Claims {
    size: u64,
    base: u64,
    miscselect: u32,
    attributes: u64,
    xfrm: u64,
}

impl Claims {
    fn of(secs: &Page) -> Self {
        let word = |at: usize| u64::from_le_bytes(secs.0[at..at + 8].try_into().expect("eight bytes"));
        Self {
            size: word(0),
            base: word(8),
            miscselect: (word(16) >> 32) as u32,
            attributes: word(48),
            xfrm: word(56),
        }
    }
}

impl<M: Machine> Inner<M> {
    pub(super) fn create(&self, arg: u64, caller: &dyn Caller) -> Result<(), Errno> {
        if self.phase() != Phase::Fresh {
            return Err(Errno::EINVAL);
        }
        let [src] = Argument::<1>::read(arg, caller)?.fields;
        let mut secs = Page::ZERO;
        caller.read(src, &mut secs.0)?;
        let claims = Claims::of(&secs);
        if !claims.size.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        let grown = self.grow()?;
        let result = self.create_backing(&claims, &secs);
        if result.is_err() && grown {
            self.shrink(&mut self.lock());
        }
        result
    }

    fn create_backing(&self, claims: &Claims, secs: &Page) -> Result<(), Errno> {
        self.kernel.store.create(self.id, claims.size)?;
        let result = self.create_secs(secs);
        let page = match result {
            Ok(page) => page,
            Err(error) => {
                self.kernel.store.destroy(self.id);
                return Err(error);
            }
        };
        let mut state = self.lock();
        state.secs = Some(Place::Resident(page));
        state.page_count = 1;
        state.attributes = claims.attributes;
        state.xfrm = claims.xfrm;
        state.miscselect = claims.miscselect;
        // Set, not added to: a PROVISION before CREATE has no effect, as on Linux.
        state.allowed = UNPRIVILEGED;
        drop(state);
        self.set_place(claims.base, claims.size);
        self.kernel.spaces.created(self.id, claims.base, claims.size);
        // Last, so that whoever sees a created enclave sees a complete one.
        self.advance(Phase::Created);
        self.list_va_pages(&mut self.lock());
        self.note(Event::Create { base: claims.base, size: claims.size });
        Ok(())
    }

    fn create_secs(&self, secs: &Page) -> Result<EpcPage, Errno> {
        let page = self.kernel.epc.alloc(Reclaim::Allowed)?;
        if self.kernel.hw.ecreate(page, secs, &Secinfo::default()).is_err() {
            self.kernel.release(page);
            return Err(Errno::EIO);
        }
        Ok(page)
    }
}
