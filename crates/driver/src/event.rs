//! What happens to enclaves, one value for each event: counted, and told to whoever hosts the driver.
//!
//! [`Counts`] is made of events and nothing else, so a listener that counts finds the same numbers. Addresses are
//! linear and page-aligned; the SECS, which has none, is at 0 in them.

use crate::stats::Counts;

/// Something that has happened to an enclave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event<'a> {
    /// The device was opened.
    Open,
    /// ECREATE: the enclave has its place.
    Create {
        /// First address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// EINIT: it can be entered.
    Init,
    /// The last reference is gone, and so are all its pages.
    Destroy {
        /// Everything that was counted for it.
        counts: &'a Counts,
    },
    /// EADD of a page.
    Add {
        /// Where.
        addr: u64,
    },
    /// EAUG of a page.
    Augment {
        /// Where.
        addr: u64,
    },
    /// EREMOVE of a page that the program gave up.
    Remove {
        /// Where.
        addr: u64,
    },
    /// A page fault was handled.
    Fault {
        /// Where.
        addr: u64,
        /// What came of it.
        end: FaultEnd,
    },
    /// ELDU: a page came back.
    Load {
        /// Where.
        addr: u64,
    },
    /// EWB: a page went to the backing store.
    Evict {
        /// Where.
        addr: u64,
        /// What it took.
        after: After,
    },
    /// The contents of a page are lost: the backing store failed, or what it returned was not what was put.
    Lose {
        /// Where.
        addr: u64,
    },
    /// EWB: a VA page went to the backing store.
    EvictVa {
        /// Its number in the enclave.
        va: u64,
    },
    /// ELDU: a VA page came back.
    LoadVa {
        /// Its number in the enclave.
        va: u64,
    },
    /// A VA page is lost, and with it the pages whose versions it held.
    LoseVa {
        /// Its number in the enclave.
        va: u64,
    },
    /// ETRACK: a tracking cycle was asked for.
    Track,
    /// The threads inside are made to leave.
    Kick,
    /// A fault or an ioctl waits for a page that a reclaim pass has, or reclaims for a page of its own.
    Wait,
}

/// What came of a page fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FaultEnd {
    /// The page was in the EPC and only had to be mapped.
    Remapped,
    /// The page was brought back and mapped.
    Loaded,
    /// A new page was added and mapped.
    Augmented,
    /// The program has to try again.
    Retry,
    /// SIGBUS.
    Failed,
}

/// What an EWB took before the processor agreed that nobody uses the page.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum After {
    /// Nothing: tracking was complete.
    Nothing,
    /// An ETRACK.
    Etrack,
    /// A kick of the threads that were inside.
    Kick,
}
