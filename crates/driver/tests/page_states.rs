//! Any sequence of ioctls, user leaves, accesses and faults on one enclave agrees with a model of page states.
//!
//! The model is the SDM's state diagram of an EPC page (volume 3D, "EPC Page State Diagram" and the leaves' own
//! sections) and the errors that Linux reports for each ioctl, and knows nothing of paging: the EPC is too small for
//! the enclave, and passes come in between, so what differs after an eviction shows as well.

use std::collections::BTreeMap;

use proptest::prelude::*;
use usgx_cpu::EncluError;
use usgx_driver::{Enclave, Errno, FaultOutcome, Prot, command};
use usgx_isa::layout::PageType;
use usgx_isa::{LinAddr, SgxCode};
use usgx_testkit::{Call, Image, Sgx2Result, SimCaller, SimMachine, System, Touch};

const BASE: u64 = 0x7000_0000_0000;
const EPC_PAGES: u32 = 16;
/// Where enclave code keeps SECINFOs. No operation changes it otherwise.
const SCRATCH: u64 = 1;
/// Pages that operations are about: data, some with other permissions, and some that are missing at first.
const FIRST: u64 = 2;
const LAST: u64 = 18;
const SIZE: u64 = 32;

const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;
const PENDING: u64 = 8;
const MODIFIED: u64 = 16;
const PR: u64 = 32;
const TCS: u64 = 0x100;
const REG: u64 = 0x200;
const TRIM: u64 = 0x400;

#[derive(Clone, Debug)]
enum Op {
    Read(u64),
    /// The second is which word: STATE or CSSA and NSSA, if the page ever is a TCS.
    Write(u64, usize, u64),
    Fault(u64, u8),
    Restrict(u64, u64, u64),
    Modify(u64, u64, u64),
    Remove(u64, u64),
    /// EACCEPT of what is outstanding, or of these flags.
    Accept(u64, Option<u64>),
    Extend(u64, u64),
    Copy(u64, u64, u64),
    /// EREPORT into the first, with what the second holds.
    Report(u64, u64),
    /// EGETKEY into this page, of a key that the enclave may not have.
    Key(u64),
    Debug(u64, Option<u64>),
    Map(u64, u64, u8),
    TooLate,
    Pass,
    Evict,
    Enter,
}

fn op() -> impl Strategy<Value = Op> {
    let page = FIRST..=LAST;
    let word = prop_oneof![Just(0), Just(1 << 32), any::<u64>()];
    let page_type = prop_oneof![4 => Just(4u64), 3 => Just(1), 1 => Just(2), 1 => Just(0x100)];
    let flags =
        (prop_oneof![Just(REG), Just(TCS), Just(TRIM)], 0..64u64).prop_map(|(kind, bits)| kind | bits);
    prop_oneof![
        3 => page.clone().prop_map(Op::Read),
        4 => (page.clone(), 0..2usize, word.clone()).prop_map(|(p, at, value)| Op::Write(p, at, value)),
        2 => (page.clone(), 0..8u8).prop_map(|(p, prot)| Op::Fault(p, prot)),
        3 => (page.clone(), 1..5u64, 0..9u64).prop_map(|(p, n, prot)| Op::Restrict(p, n, prot)),
        4 => (page.clone(), 1..5u64, page_type).prop_map(|(p, n, t)| Op::Modify(p, n, t)),
        3 => (page.clone(), 1..5u64).prop_map(|(p, n)| Op::Remove(p, n)),
        6 => page.clone().prop_map(|p| Op::Accept(p, None)),
        2 => (page.clone(), flags.clone()).prop_map(|(p, flags)| Op::Accept(p, Some(flags))),
        3 => (page.clone(), 0..8u64).prop_map(|(p, prot)| Op::Extend(p, REG | prot)),
        2 => (page.clone(), page.clone(), flags).prop_map(|(to, from, flags)| Op::Copy(to, from, flags)),
        2 => (page.clone(), page.clone()).prop_map(|(to, from)| Op::Report(to, from)),
        1 => page.clone().prop_map(Op::Key),
        2 => (page.clone(), prop::option::of(word)).prop_map(|(p, value)| Op::Debug(p, value)),
        1 => (page, 1..20u64, 0..8u8).prop_map(|(p, n, prot)| Op::Map(p, n, prot)),
        1 => Just(Op::TooLate),
        3 => Just(Op::Pass),
        1 => Just(Op::Evict),
        1 => Just(Op::Enter),
    ]
}

/// What the SDM and the driver know of a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Page {
    /// R, W, X, PENDING, MODIFIED, PR and the type, as in SECINFO.
    flags: u64,
    max_prot: Prot,
    words: [u64; 2],
    /// Whether there is a report, where a TCS has reserved bytes.
    reported: bool,
}

impl Page {
    fn added(flags: u64, first_word: u64) -> Self {
        let max_prot = Prot::from_bits_truncate((flags & 7) as u8);
        Self { flags, max_prot, words: [first_word, 0], reported: false }
    }

    fn has(&self, flags: u64) -> bool {
        self.flags & flags != 0
    }

    fn kind(&self) -> u64 {
        self.flags & 0xff00
    }

    /// Whether enclave code may use it so.
    fn permits(&self, access: u64) -> bool {
        self.kind() == REG && !self.has(PENDING | MODIFIED) && self.has(access)
    }
}

const WORDS: [u64; 2] = [0, 24];
/// Where in a page EREPORT and EGETKEY find zeros, as TARGETINFO and as KEYREQUEST, and where they write.
const OPERAND: u64 = 512;

struct World {
    system: System,
    enclave: Enclave<SimMachine>,
    caller: SimCaller,
    pages: BTreeMap<u64, Page>,
}

fn addr(page: u64) -> u64 {
    BASE + page * 4096
}

fn fault_of(result: Result<(), EncluError>) -> Option<u64> {
    match result {
        Err(EncluError::PageFault { addr, sgx: true, .. }) => Some(addr.page().0),
        _ => None,
    }
}

impl World {
    fn new() -> Self {
        let mut image = Image::data(BASE, 9);
        let mut pages: BTreeMap<u64, Page> = (FIRST..=9).map(|i| (i, Page::added(REG | R | W, i))).collect();
        for (index, prot) in (10..).zip([R, R | X, X, 0]) {
            image.push(index, REG | prot, usgx_isa::Page::ZERO, true);
            pages.insert(index, Page::added(REG | prot, 0));
        }
        assert_eq!(image.size, SIZE * 4096);
        let system = System::with_epc_pages(EPC_PAGES);
        let enclave = system.build(&image);
        Self { system, enclave, caller: SimCaller::new(), pages }
    }

    fn call(&self) -> Call<'_, SimMachine> {
        Call { enclave: &self.enclave, caller: &self.caller }
    }

    /// What a program may map the page with.
    fn vma(&self, page: u64) -> Prot {
        self.pages.get(&page).map_or(Prot::R | Prot::W, |page| page.max_prot)
    }

    /// The page, which a fault adds where it is missing (EAUG).
    fn touched(&mut self, page: u64) -> &mut Page {
        self.pages.entry(page).or_insert(Page {
            flags: REG | R | W | PENDING,
            max_prot: Prot::all(),
            words: [0; 2],
            reported: false,
        })
    }

    fn enclu(
        &self,
        flags: u64,
        leaf: impl Fn(&Self, LinAddr, &Leaf<'_>) -> Result<(), EncluError>,
    ) -> Result<(), EncluError> {
        for word in 0..8 {
            let value = if word == 0 { flags } else { 0 };
            let touch = self.system.write(&self.enclave, addr(SCRATCH) + word * 8, value);
            assert!(matches!(touch, Touch::Done(_)), "the scratch page is always there");
        }
        let vma = |addr: u64| self.vma((addr - BASE) / 4096);
        self.system.enclu(&self.enclave, &vma, &|hw, secs, map| {
            leaf(self, LinAddr(addr(SCRATCH)), &Leaf { hw, secs, map })
        })
    }

    /// Runs an SGX2 ioctl on the model: `each` says what becomes of a page, or the errno and the code.
    fn ioctl(
        &mut self,
        first: u64,
        count: u64,
        each: impl Fn(Page) -> Result<Option<Page>, (Errno, u64)>,
    ) -> Sgx2Result {
        for done in 0..count {
            let index = first + done;
            let failed = |(errno, code)| Sgx2Result { outcome: Err(errno), result: code, count: done * 4096 };
            let Some(page) = self.pages.get(&index) else { return failed((Errno::EFAULT, 0)) };
            match each(*page) {
                Ok(Some(page)) => self.pages.insert(index, page),
                Ok(None) => self.pages.remove(&index),
                Err(error) => return failed(error),
            };
        }
        Sgx2Result { outcome: Ok(()), result: 0, count: count * 4096 }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Read(page) => {
                let vma = self.vma(page);
                let touch = self.system.touch(&self.enclave, addr(page), vma, None);
                let page = self.touched(page);
                assert_eq!(touch, if page.permits(R) { Touch::Done(page.words[0]) } else { Touch::Refused });
            }
            Op::Write(page, word, value) => {
                let vma = self.vma(page);
                let touch = self.system.touch(&self.enclave, addr(page) + WORDS[word], vma, Some(value));
                let page = self.touched(page);
                if page.permits(W) {
                    assert_eq!(touch, Touch::Done(std::mem::replace(&mut page.words[word], value)));
                } else {
                    assert_eq!(touch, Touch::Refused);
                }
            }
            Op::Fault(page, prot) => {
                let prot = Prot::from_bits_truncate(prot);
                let outcome = self.enclave.fault(addr(page), prot);
                let may = self.touched(page).max_prot.contains(prot);
                assert_eq!(outcome, if may { FaultOutcome::Mapped } else { FaultOutcome::Sigbus });
            }
            Op::Restrict(first, count, prot) => self.restrict(first, count, prot),
            Op::Modify(first, count, page_type) => self.modify(first, count, page_type),
            Op::Remove(first, count) => {
                let result = self.call().remove_pages(first * 4096, count * 4096);
                let expected = self.ioctl(first, count, |page| match page.kind() {
                    TRIM if !page.has(MODIFIED) => Ok(None),
                    _ => Err((Errno::EPERM, 0)),
                });
                assert_eq!(result, expected);
            }
            Op::Accept(page, flags) => self.accept(page, flags),
            Op::Extend(page, flags) => self.extend(page, flags),
            Op::Copy(to, from, flags) => self.copy(to, from, flags),
            Op::Report(to, from) => self.report(to, from),
            Op::Key(to) => self.key(to),
            Op::Debug(page, value) => self.debug(page, value),
            Op::Map(first, count, prot) => {
                let prot = Prot::from_bits_truncate(prot);
                let inside = first + count <= SIZE;
                let may =
                    self.pages.range(first..first + count).all(|(_, page)| page.max_prot.contains(prot));
                let expected = if inside && may { Ok(()) } else { Err(Errno::EACCES) };
                assert_eq!(self.enclave.mmap(addr(first), count * 4096, prot), expected);
            }
            Op::TooLate => {
                for command in [command::CREATE, command::ADD_PAGES, command::INIT] {
                    assert_eq!(self.call().raw(command, &[0; 6]), Err(Errno::EINVAL));
                }
                assert_eq!(self.call().raw(0xA4FF, &[0; 6]), Err(Errno::ENOTTY));
                assert_eq!(self.call().raw(command::PROVISION, &[6]), Err(Errno::EINVAL), "no such device");
            }
            Op::Pass => {
                self.system.driver.ksgxd_pass();
            }
            Op::Evict => self.system.evict_all(),
            Op::Enter => {
                let eid = |secs| self.system.hw.enclave(secs).expect("it is an SECS").eid;
                if let Ok(eid) = self.enclave.with_pages(|secs, _| eid(secs)) {
                    self.system.threads.enter(eid, 1);
                }
            }
        }
    }

    fn restrict(&mut self, first: u64, count: u64, prot: u64) {
        let result = self.call().restrict(first * 4096, count * 4096, prot);
        if prot > 7 || prot & (R | W) == W {
            assert_eq!(result.outcome, Err(Errno::EINVAL));
            return;
        }
        let expected = self.ioctl(first, count, |page| match page.kind() {
            REG if page.has(PENDING | MODIFIED) => Err((Errno::EFAULT, SgxCode::PageNotModifiable as u64)),
            REG => Ok(Some(Page { flags: page.flags & (!7 | prot) | PR, ..page })),
            _ => Err((Errno::EINVAL, 0)),
        });
        assert_eq!(result, expected);
    }

    fn modify(&mut self, first: u64, count: u64, page_type: u64) {
        let result = self.call().modify_types(first * 4096, count * 4096, page_type);
        let kind = match page_type {
            1 => TCS,
            4 => TRIM,
            _ => {
                assert_eq!(result.outcome, Err(Errno::EINVAL));
                return;
            }
        };
        let rw = Prot::R | Prot::W;
        let expected = self.ioctl(first, count, |page| match (page.kind(), kind) {
            (REG, TCS) if !page.max_prot.contains(rw) => Err((Errno::EPERM, 0)),
            (REG, TCS | TRIM) | (TCS, TRIM) if page.has(PENDING | MODIFIED) => {
                Err((Errno::EFAULT, SgxCode::PageNotModifiable as u64))
            }
            (REG, TCS) => Ok(Some(Page { flags: kind | MODIFIED, max_prot: rw, ..page })),
            (REG | TCS, TRIM) => Ok(Some(Page { flags: kind | MODIFIED, ..page })),
            _ => Err((Errno::EINVAL, 0)),
        });
        assert_eq!(result, expected);
    }

    fn accept(&mut self, index: u64, flags: Option<u64>) {
        let known = self.pages.get(&index).map_or(REG | R | W | PENDING, |page| page.flags);
        let flags = flags.unwrap_or(known);
        let result = self.enclu(flags, |_, scratch, leaf| {
            leaf.hw.eaccept(leaf.secs, scratch, LinAddr(addr(index)), leaf.map)
        });
        let page = self.touched(index);
        let legal = match flags & 0xff00 {
            REG => flags & MODIFIED == 0 && flags & (PENDING | PR) != 0,
            _ => flags & (PENDING | MODIFIED | PR) == MODIFIED,
        };
        let [state, counts] = page.words;
        let is_tcs = state == 0 && counts >> 32 > counts & 0xffff_ffff && !page.reported;
        let expected = if !legal {
            Err(EncluError::Gp)
        } else if (flags ^ page.flags) & !PR != 0 {
            Err(EncluError::Code(SgxCode::PageAttributesMismatch))
        } else if page.kind() == TCS && !is_tcs {
            Err(EncluError::Gp)
        } else {
            page.flags &= !(PENDING | MODIFIED | PR);
            Ok(())
        };
        assert_eq!(result, expected);
    }

    fn extend(&mut self, index: u64, flags: u64) {
        let result = self.enclu(flags, |_, scratch, leaf| {
            leaf.hw.emodpe(leaf.secs, scratch, LinAddr(addr(index)), leaf.map)
        });
        let page = self.touched(index);
        if page.kind() != REG || page.has(PENDING | MODIFIED) {
            assert_eq!(fault_of(result), Some(addr(index)));
        } else if !page.has(R) && flags & (R | W) == W {
            assert_eq!(result, Err(EncluError::Gp));
        } else {
            page.flags |= flags & 7;
            assert_eq!(result, Ok(()));
        }
    }

    fn copy(&mut self, to: u64, from: u64, flags: u64) {
        let result = self.enclu(flags, |_, scratch, leaf| {
            leaf.hw.eacceptcopy(leaf.secs, scratch, LinAddr(addr(to)), LinAddr(addr(from)), leaf.map)
        });
        self.touched(to);
        let source = *self.touched(from);
        let target = self.touched(to);
        if flags & (R | W) == W || flags & 0xff00 != REG {
            assert_eq!(result, Err(EncluError::Gp));
        } else if !source.permits(R) {
            assert_eq!(fault_of(result), Some(addr(from)));
        } else if target.flags & !PR != REG | R | W | PENDING {
            assert_eq!(result, Err(EncluError::Code(SgxCode::PageAttributesMismatch)));
        } else {
            target.flags = target.flags & PR | REG | flags & 7;
            (target.words, target.reported) = (source.words, source.reported);
            assert_eq!(result, Ok(()));
        }
    }

    /// EREPORT looks at what it reads before it looks at what it writes.
    fn report(&mut self, to: u64, from: u64) {
        let result = self.enclu(0, |_, scratch, leaf| {
            let (target, output) = (LinAddr(scratch.0 + OPERAND), LinAddr(addr(to) + OPERAND));
            leaf.hw.ereport(leaf.secs, target, LinAddr(addr(from)), output, leaf.map)
        });
        if !self.touched(from).permits(R) {
            assert_eq!(fault_of(result), Some(addr(from)));
        } else if !self.touched(to).permits(W) {
            assert_eq!(fault_of(result), Some(addr(to)));
        } else {
            self.touched(to).reported = true;
            assert_eq!(result, Ok(()));
        }
    }

    fn key(&mut self, to: u64) {
        let result = self.enclu(0, |_, scratch, leaf| {
            leaf.hw.egetkey(leaf.secs, LinAddr(scratch.0 + OPERAND), LinAddr(addr(to) + OPERAND), leaf.map)
        });
        if self.touched(to).permits(W) {
            assert_eq!(result, Err(EncluError::Code(SgxCode::InvalidAttribute)));
        } else {
            assert_eq!(fault_of(result), Some(addr(to)));
        }
    }

    fn debug(&mut self, index: u64, value: Option<u64>) {
        let vma = self.vma(index);
        let mut bytes = value.unwrap_or(0).to_le_bytes();
        let result = self.enclave.access(addr(index), vma, &mut bytes, value.is_some());
        let Some(page) = self.pages.get_mut(&index) else {
            assert_eq!(result, Err(Errno::EFAULT));
            return;
        };
        // Of a TCS only FLAGS can be written.
        let may = match page.kind() {
            REG => !page.has(PENDING | MODIFIED),
            TCS => !page.has(PENDING | MODIFIED) && value.is_none(),
            _ => false,
        };
        assert_eq!(result, if may { Ok(8) } else { Err(Errno::EIO) });
        match value {
            Some(value) if may => page.words[0] = value,
            None if may => assert_eq!(u64::from_le_bytes(bytes), page.words[0]),
            _ => {}
        }
    }

    /// Compares the EPCM's entries of all pages that are in the EPC with the model.
    fn check_epcm(&self) {
        self.system.check_invariants();
        let _ = self.enclave.with_pages(|secs, look_up| {
            for index in FIRST..SIZE {
                let Some(page) = look_up(addr(index)) else { continue };
                let entry = self.system.hw.epcm(page).expect("what is resident is valid");
                let expected = self.pages.get(&index).expect("no page that should not be");
                let bit = |set, bit| if set { bit } else { 0 };
                let kind = match entry.page_type {
                    PageType::Tcs => TCS,
                    PageType::Reg => REG,
                    PageType::Trim => TRIM,
                    other => panic!("a child page of type {other:?}"),
                };
                let flags = kind
                    | bit(entry.r, R)
                    | bit(entry.w, W)
                    | bit(entry.x, X)
                    | bit(entry.pending, PENDING)
                    | bit(entry.modified, MODIFIED)
                    | bit(entry.pr, PR);
                assert_eq!(flags, expected.flags, "page {index}");
                assert_eq!((entry.linaddr, entry.secs), (LinAddr(addr(index)), Some(secs)), "page {index}");
                assert!(!entry.blocked, "a resident page can be used");
            }
        });
    }

    /// Brings in every page, one by one, and compares.
    fn check_all(&self) {
        for (index, page) in &self.pages {
            assert_eq!(self.enclave.fault(addr(*index), page.max_prot), FaultOutcome::Mapped);
            let resident = self.enclave.with_pages(|_, look_up| look_up(addr(*index)).is_some());
            assert_eq!(resident, Ok(true), "page {index} was just mapped");
            self.check_epcm();
        }
        // With its SECS and all the image's other pages: TCS and scratch.
        assert_eq!(self.enclave.stats().pages, self.pages.len() as u64 + 3);
    }
}

/// What a user leaf is run with.
struct Leaf<'a> {
    hw: &'a usgx_testkit::SimHw,
    secs: usgx_isa::EpcPage,
    map: &'a dyn usgx_cpu::Translate,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_agrees_with_the_state_diagram(ops in prop::collection::vec(op(), 1..150)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
            world.check_epcm();
        }
        world.check_all();
    }
}
