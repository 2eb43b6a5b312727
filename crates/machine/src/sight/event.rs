//! Events as they leave the machine: with stable names, after the habits of the kernel's tracing.
//!
//! Inside, a [`Happening`] is plain data of 24 bytes. Names and arguments are given to it when somebody reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use usgx_driver::{After, Event, FaultEnd};

/// What happened, as the ring keeps it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Happening {
    /// To an enclave, with up to two numbers.
    Enclave(&'static Kind, [u64; 2]),
    /// To the reclaimer.
    Reclaim(Reclaim),
}

/// A reclaim pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reclaim {
    Begin,
    End { looked_at: u64, freed: u64 },
}

/// An event's name and those of its arguments.
#[derive(Debug, Eq, PartialEq)]
pub struct Kind {
    /// `sgx:` and the name.
    pub name: &'static str,
    /// When it happens.
    pub help: &'static str,
    /// Names of its arguments.
    args: &'static [&'static str],
}

macro_rules! kinds {
    ($($id:ident = $name:literal [$($arg:literal),*] $help:literal;)+) => {
        $(static $id: Kind = Kind { name: concat!("sgx:", $name), help: $help, args: &[$($arg),*] };)+

        /// All events that there are. Names and arguments are for scripts to rely on.
        pub static KINDS: &[&Kind] = &[$(&$id),+];
    };
}

kinds! {
    OPEN = "sgx_enclave_open" [] "the device is opened";
    CREATE = "sgx_enclave_create" ["base", "size"] "ECREATE";
    INIT = "sgx_enclave_init" [] "EINIT";
    DESTROY = "sgx_enclave_destroy" ["faults", "evictions"] "the last reference is gone";
    ADD = "sgx_epc_add" ["addr"] "EADD";
    AUGMENT = "sgx_epc_augment" ["addr"] "EAUG";
    REMOVE = "sgx_epc_remove" ["addr"] "EREMOVE, at the program's wish";
    REMAP = "sgx_fault_remap" ["addr"] "a fault on a page in the EPC that only had to be mapped";
    FAULT_LOAD = "sgx_fault_load" ["addr"] "a fault on a page that was brought back";
    FAULT_AUGMENT = "sgx_fault_augment" ["addr"] "a fault that added a page";
    RETRY = "sgx_fault_retry" ["addr"] "a fault that the program has to repeat";
    FAILED = "sgx_fault_sigbus" ["addr"] "a fault that ends in SIGBUS";
    LOAD = "sgx_epc_load" ["addr"] "ELDU; the SECS has address 0";
    EVICT = "sgx_epc_evict" ["addr"] "EWB, at once; the SECS has address 0";
    EVICT_TRACKED = "sgx_epc_evict_tracked" ["addr"] "EWB, after an ETRACK";
    EVICT_KICKED = "sgx_epc_evict_kicked" ["addr"] "EWB, after a kick";
    LOSE = "sgx_epc_lose" ["addr"] "a page's contents are lost";
    LOAD_VA = "sgx_va_load" ["va"] "ELDU of a VA page";
    EVICT_VA = "sgx_va_evict" ["va"] "EWB of a VA page";
    LOSE_VA = "sgx_va_lose" ["va"] "a VA page is lost, and with it the pages whose versions it held";
    TRACK = "sgx_etrack" [] "ETRACK";
    KICK = "sgx_kick" [] "the threads inside are made to leave";
    WAIT = "sgx_wait" [] "a fault or an ioctl waits for a page";
    RECLAIM_BEGIN = "sgx_reclaim_begin" [] "a reclaim pass begins";
    RECLAIM_END = "sgx_reclaim_end" ["scanned", "reclaimed"] "a reclaim pass ends";
}

impl Happening {
    /// What the driver says.
    pub(crate) fn of(event: &Event<'_>) -> Self {
        let (kind, args) = match *event {
            Event::Open => (&OPEN, [0; 2]),
            Event::Create { base, size } => (&CREATE, [base, size]),
            Event::Init => (&INIT, [0; 2]),
            Event::Destroy { counts } => (&DESTROY, [counts.epc_faults, counts.evictions]),
            Event::Add { addr } => (&ADD, [addr, 0]),
            Event::Augment { addr } => (&AUGMENT, [addr, 0]),
            Event::Remove { addr } => (&REMOVE, [addr, 0]),
            Event::Fault { addr, end } => {
                let kind = match end {
                    FaultEnd::Remapped => &REMAP,
                    FaultEnd::Loaded => &FAULT_LOAD,
                    FaultEnd::Augmented => &FAULT_AUGMENT,
                    FaultEnd::Retry => &RETRY,
                    FaultEnd::Failed => &FAILED,
                };
                (kind, [addr, 0])
            }
            Event::Load { addr } => (&LOAD, [addr, 0]),
            Event::Evict { addr, after } => {
                let kind = match after {
                    After::Nothing => &EVICT,
                    After::Etrack => &EVICT_TRACKED,
                    After::Kick => &EVICT_KICKED,
                };
                (kind, [addr, 0])
            }
            Event::Lose { addr } => (&LOSE, [addr, 0]),
            Event::LoadVa { va } => (&LOAD_VA, [va, 0]),
            Event::EvictVa { va } => (&EVICT_VA, [va, 0]),
            Event::LoseVa { va } => (&LOSE_VA, [va, 0]),
            Event::Track => (&TRACK, [0; 2]),
            Event::Kick => (&KICK, [0; 2]),
            Event::Wait => (&WAIT, [0; 2]),
        };
        Self::Enclave(kind, args)
    }

    fn parts(self) -> (&'static Kind, [u64; 2]) {
        match self {
            Self::Enclave(kind, args) => (kind, args),
            Self::Reclaim(Reclaim::Begin) => (&RECLAIM_BEGIN, [0; 2]),
            Self::Reclaim(Reclaim::End { looked_at, freed }) => (&RECLAIM_END, [looked_at, freed]),
        }
    }
}

/// An event, as a reader gets it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct EventRecord {
    /// Its number: every event of a machine has one, and they ascend by one.
    pub seq: u64,
    /// Microseconds since the machine was built.
    pub time_us: u64,
    /// Process for whose thread the machine was at work; 0 if for none, as `ksgxd` is.
    pub pid: u32,
    /// `sgx:` and the event's name.
    pub event: String,
    /// Number of the enclave; 0 if it concerns none.
    #[serde(default)]
    pub enclave: u64,
    /// The event's own numbers, each with its name.
    #[serde(default)]
    pub args: BTreeMap<String, u64>,
}

impl EventRecord {
    pub(crate) fn new(seq: u64, time_us: u64, pid: u32, enclave: u64, what: Happening) -> Self {
        let (kind, values) = what.parts();
        let args = kind.args.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value)).collect();
        Self { seq, time_us, pid, event: kind.name.to_owned(), enclave, args }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_after_the_kernels_habit() {
        let names: BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        let plain = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(names.iter().all(|name| {
            name.strip_prefix("sgx:sgx_").or(name.strip_prefix("sgx:")).is_some_and(|n| n.chars().all(plain))
        }));
        assert!(KINDS.iter().all(|kind| kind.args.len() <= 2 && !kind.help.is_empty()));
    }

    #[test]
    fn a_happening_keeps_its_numbers() {
        let what = Happening::of(&Event::Evict { addr: 0x1000, after: After::Kick });
        let record = EventRecord::new(7, 12, 3, 4, what);
        assert_eq!(record.event, "sgx:sgx_epc_evict_kicked");
        assert_eq!(record.args, BTreeMap::from([("addr".to_owned(), 0x1000)]));
        assert!(size_of::<Happening>() <= 32);
    }
}
