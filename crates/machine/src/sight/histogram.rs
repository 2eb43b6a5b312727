//! Histograms of durations, with fixed buckets at powers of two: recording is three additions.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets with a bound: up to 1 µs, 2 µs, 4 µs, ... 8.4 s. One more takes what is longer.
pub(crate) const NR_BOUNDS: usize = 24;

/// A live histogram. Relaxed everywhere: these are statistics.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; NR_BOUNDS + 1],
    nanoseconds: AtomicU64,
}

/// The bucket of a duration: the first whose bound is not below it.
fn bucket(duration: Duration) -> usize {
    let micros = duration.as_nanos().div_ceil(1000).max(1);
    (micros.next_power_of_two().trailing_zeros() as usize).min(NR_BOUNDS)
}

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        self.buckets[bucket(duration)].fetch_add(1, Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    pub(crate) fn read(&self) -> Latency {
        let mut buckets: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        buckets.truncate(buckets.iter().rposition(|count| *count != 0).map_or(0, |last| last + 1));
        Latency { buckets, nanoseconds: self.nanoseconds.load(Relaxed) }
    }
}

/// A reading of a histogram.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Latency {
    /// How many took up to 1 µs, up to 2 µs but more than 1, ...; the one after the last bound, how many took longer.
    /// Zeros at the end are left out.
    pub buckets: Vec<u64>,
    /// The sum of all durations.
    pub nanoseconds: u64,
}

impl Latency {
    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The bound of a bucket in seconds; `None` for the last one.
    #[must_use]
    pub fn bound(index: usize) -> Option<f64> {
        (index < NR_BOUNDS).then(|| (1_u64 << index) as f64 / 1e6)
    }

    /// The mean, or 0 if there is nothing.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.checked_div(self.count()).unwrap_or(0))
    }

    /// A bound that this share of all does not exceed; `None` if there is nothing, or no bound that high.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let index = self.buckets.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Self::bound(index).map(Duration::from_secs_f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_first_bucket_that_holds_them() {
        for (nanoseconds, index) in
            [(0, 0), (1, 0), (1000, 0), (1001, 1), (2000, 1), (2001, 2), (4000, 2), (1_000_000, 10)]
        {
            assert_eq!(bucket(Duration::from_nanos(nanoseconds)), index, "{nanoseconds} ns");
            let bound = Latency::bound(index).expect("not the last");
            assert!(nanoseconds as f64 / 1e9 <= bound);
        }
        assert_eq!(bucket(Duration::from_secs(8)), NR_BOUNDS - 1);
        assert_eq!(bucket(Duration::MAX), NR_BOUNDS);
        assert_eq!(Latency::bound(NR_BOUNDS), None);
    }

    #[test]
    fn readings_add_up() {
        let histogram = Histogram::default();
        for micros in [1, 3, 3, 100] {
            histogram.record(Duration::from_micros(micros));
        }
        let latency = histogram.read();
        assert_eq!((latency.count(), latency.nanoseconds), (4, 107_000));
        assert_eq!(latency.quantile(0.5), Some(Duration::from_micros(4)));
        assert_eq!(latency.quantile(0.99), Some(Duration::from_micros(128)));
        assert_eq!(latency.mean(), Duration::from_nanos(26_750));
        assert_eq!((Latency::default().quantile(0.5), Latency::default().mean()), (None, Duration::ZERO));
    }
}
