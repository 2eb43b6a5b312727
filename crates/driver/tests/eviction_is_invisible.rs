//! Random programs on a small EPC against a short oracle: paging, shrinking, pages that break, faults of the store and
//! pressure from other enclaves change how long things take and nothing else.

use proptest::prelude::*;
use usgx_driver::{Enclave, Poisoned};
use usgx_isa::EpcPage;
use usgx_testkit::{Call, Image, Operation, SimCaller, SimMachine, System, Touch};

const EPC_PAGES: u32 = 40;
const PAGES: u64 = 48;
const ENCLAVES: usize = 3;
/// EPC pages that may break: what is left is enough for every enclave to work.
const MAX_BROKEN: u64 = 6;

fn base(enclave: usize) -> u64 {
    0x7000_0000_0000 + ((enclave as u64) << 36)
}

#[derive(Clone, Debug)]
enum Op {
    Read { enclave: usize, page: u64 },
    Write { enclave: usize, page: u64, value: u64 },
    Open { enclave: usize },
    Close { enclave: usize },
    Pass,
    Shrink,
    Break { page: u32 },
    FailPut { nth: u64 },
    FailReserve { nth: u64 },
    Enter { enclave: usize },
    Trim { enclave: usize, page: u64 },
    Augment { enclave: usize, page: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let (enclave, page) = (0..ENCLAVES, 1..=PAGES);
    prop_oneof![
        8 => (enclave.clone(), page.clone()).prop_map(|(enclave, page)| Op::Read { enclave, page }),
        8 => (enclave.clone(), page.clone(), any::<u64>())
            .prop_map(|(enclave, page, value)| Op::Write { enclave, page, value }),
        1 => enclave.clone().prop_map(|enclave| Op::Open { enclave }),
        1 => enclave.clone().prop_map(|enclave| Op::Close { enclave }),
        4 => Just(Op::Pass),
        1 => Just(Op::Shrink),
        1 => (0..EPC_PAGES).prop_map(|page| Op::Break { page }),
        1 => (1..20u64).prop_map(|nth| Op::FailPut { nth }),
        1 => (1..20u64).prop_map(|nth| Op::FailReserve { nth }),
        1 => enclave.clone().prop_map(|enclave| Op::Enter { enclave }),
        1 => (enclave.clone(), 2..=PAGES).prop_map(|(enclave, page)| Op::Trim { enclave, page }),
        1 => (enclave, PAGES + 1..=PAGES + 4).prop_map(|(enclave, page)| Op::Augment { enclave, page }),
    ]
}

/// What each page of an enclave should hold; nothing, if there is no such page.
struct Model {
    enclave: Enclave<SimMachine>,
    pages: Vec<Option<u64>>,
}

struct World {
    system: System,
    models: [Option<Model>; ENCLAVES],
    nr_broken: u64,
}

impl World {
    fn new() -> Self {
        let system = System::with_epc_pages(EPC_PAGES);
        Self { system, models: [const { None }; ENCLAVES], nr_broken: 0 }
    }

    fn apply(&mut self, op: &Op) {
        let system = &self.system;
        match *op {
            Op::Open { enclave } => {
                let image = Image::data(base(enclave), PAGES);
                let mut pages: Vec<_> = (0..=PAGES).map(Some).collect();
                pages.resize(PAGES as usize + 5, None);
                self.models[enclave] = None;
                self.models[enclave] = Some(Model { enclave: system.build(&image), pages });
            }
            Op::Close { enclave } => self.models[enclave] = None,
            Op::Pass => {
                system.driver.ksgxd_pass();
            }
            Op::Shrink => {
                system.driver.shrink();
            }
            Op::Break { page } => {
                if self.nr_broken < MAX_BROKEN {
                    let outcome = system.driver.memory_failure(EpcPage(page)).expect("it is in the EPC");
                    self.nr_broken += u64::from(outcome != Poisoned::Known);
                }
            }
            Op::FailPut { nth } => system.store.fail(Operation::Put, nth),
            Op::FailReserve { nth } => system.store.fail(Operation::Reserve, nth),
            Op::Read { enclave, page }
            | Op::Write { enclave, page, .. }
            | Op::Trim { enclave, page }
            | Op::Augment { enclave, page } => {
                if let Some(model) = &mut self.models[enclave] {
                    apply_to_page(system, model, base(enclave), page, op);
                }
            }
            Op::Enter { enclave } => {
                if let Some(model) = &self.models[enclave] {
                    let eid = |secs| system.hw.enclave(secs).expect("it is an SECS").eid;
                    if let Ok(eid) = model.enclave.with_pages(|secs, _| eid(secs)) {
                        system.threads.enter(eid, 1);
                    }
                }
            }
        }
    }
}

fn apply_to_page(system: &System, model: &mut Model, base: u64, page: u64, op: &Op) {
    let (enclave, addr) = (&model.enclave, base + page * 4096);
    let expected = &mut model.pages[page as usize];
    match *op {
        Op::Read { .. } => match *expected {
            Some(value) => assert_eq!(system.read(enclave, addr), Touch::Done(value)),
            None => assert_eq!(system.read(enclave, addr), Touch::Refused),
        },
        Op::Write { value, .. } => {
            if let Some(expected) = expected {
                assert_eq!(system.write(enclave, addr, value), Touch::Done(*expected));
                *expected = value;
            }
        }
        Op::Trim { .. } => {
            if expected.take().is_some() {
                let caller = SimCaller::new();
                let call = Call { enclave, caller: &caller };
                while call.modify_types(page * 4096, 4096, 4).outcome == Err(usgx_driver::Errno::EAGAIN) {
                    system.driver.ksgxd_pass();
                }
                // The scratch page is the first; what EACCEPT needs overwrites it.
                assert_eq!(system.accept(enclave, base + 0x1000, addr, 0x410), Ok(()));
                model.pages[1] = Some(0x410);
                while call.remove_pages(page * 4096, 4096).outcome == Err(usgx_driver::Errno::EAGAIN) {
                    system.driver.ksgxd_pass();
                }
            }
        }
        Op::Augment { .. } => {
            if expected.is_none() {
                *expected = Some(0);
                assert_eq!(system.accept(enclave, base + 0x1000, addr, 0x20b), Ok(()));
                model.pages[1] = Some(0x20b);
            }
        }
        _ => unreachable!("not about a page"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn eviction_is_invisible(ops in prop::collection::vec(op(), 1..150)) {
        let mut world = World::new();
        world.apply(&Op::Open { enclave: 0 });
        for op in &ops {
            world.apply(op);
            world.system.check_invariants();
        }
        world.models = [const { None }; ENCLAVES];
        world.system.check_invariants();
        let stats = world.system.driver.stats();
        assert_eq!((stats.free_pages, stats.poisoned_pages), (u64::from(EPC_PAGES) - world.nr_broken, world.nr_broken));
    }
}
