//! What is measured: a name, and how to prepare it. Work joins its floor here with `Case::with_work`.

use anyhow::Result;

use crate::floors::{crypto, paging, round_trip, signal};
use crate::measure::Case;
use crate::raw::Wake;

/// Prepares a case.
type Make = fn() -> Result<Case>;

/// All of them, in the order in which they are reported.
pub(crate) const ALL: [(&str, Make); 8] = [
    ("trap and return by signal", || Ok(Case::floor(signal::trap()?))),
    ("round trip by futex", || Ok(Case::floor(round_trip::shared(Wake::Futex)?))),
    ("round trip by socket", || Ok(Case::floor(round_trip::socket()?))),
    ("round trip by spinning", || Ok(Case::floor(round_trip::shared(Wake::Spin)?))),
    ("AES-128-GCM of a page", || Ok(Case::floor(crypto::encrypt_page()?))),
    ("SHA-256 of an added page", || Ok(Case::floor(crypto::measure_page()))),
    ("map a page", || Ok(Case::floor(paging::map()?))),
    ("map and take back a page", || Ok(Case::floor(paging::map_and_take_back()?))),
];
