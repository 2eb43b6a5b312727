//! Those of the machine's locks that are taken around others, or with others held, with their places in the lock order.
//!
//! They are checked together with the driver's and the EPC manager's (`usgx_epc::Rank`), whose numbers are below and
//! above these.

use usgx_epc::{OrderedMutex, Rank};

use crate::kernel::platform::HostPlatform;

/// A mutex with a place in the lock order.
pub(crate) type Ordered<T> = OrderedMutex<HostPlatform, T>;

/// `client.registered`: around `view.books`.
pub(crate) const REGISTERED: Rank = Rank::new(20, "client.registered");
/// `view.books`: under `enclave.state`, or none.
pub(crate) const BOOKS: Rank = Rank::new(30, "view.books");
/// Lists of clients and of what they have: look-ups, one at a time.
pub(crate) const LISTS: Rank = Rank::new(40, "a list of clients");
