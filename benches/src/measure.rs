//! Taking turns: floor and work alternate, so that whatever slows the computer down hits both.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::statistics::median;

/// Something that can be done so many times, one after the other; returns how long that took, without what had to be
/// prepared for it.
pub(crate) type Activity = Box<dyn FnMut(u32) -> Result<Duration>>;

/// An activity that needs no preparation.
pub(crate) fn timed(mut activity: impl FnMut(u32) -> Result<()> + 'static) -> Activity {
    Box::new(move |times| {
        let start = Instant::now();
        activity(times)?;
        Ok(start.elapsed())
    })
}

/// Some of a kind, each in its turn: for what depends on where in memory it happens to lie.
pub(crate) fn in_turn(mut activities: Vec<Activity>) -> Activity {
    let mut turns = 0;
    Box::new(move |times| {
        turns += 1;
        let place = turns % activities.len();
        activities[place](times)
    })
}

/// A floor, and the work that stands on it.
pub(crate) struct Case {
    floor: Activity,
    work: Option<Activity>,
    bound: Option<f64>,
}

/// How long to measure.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// A turn repeats its activity until it takes this long.
    turn: Duration,
    /// Whether to work on small input.
    pub(crate) is_small: bool,
}

/// What came out.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    /// `ns`; or `bytes` where memory is measured, and `times` where speed-ups are: then the fields say those where their
    /// names say nanoseconds, and the ratio of speed-ups is floor by work.
    pub(crate) unit: &'static str,
    /// Nanoseconds of the work, once; none if only a floor was measured.
    pub(crate) value_ns: Option<f64>,
    /// Nanoseconds of the floor, once.
    pub(crate) floor_ns: f64,
    /// Median of the rounds' ratios, and its 95 % interval.
    pub(crate) ratio: Option<f64>,
    pub(crate) ratio_low: Option<f64>,
    pub(crate) ratio_high: Option<f64>,
    /// What the ratio may be at most.
    pub(crate) bound: Option<f64>,
}

impl Effort {
    /// For numbers that one can quote.
    pub(crate) const FULL: Self = Self { rounds: 25, turn: Duration::from_millis(5), is_small: false };
    /// To see that everything still runs.
    pub(crate) const SMOKE: Self = Self { rounds: 1, turn: Duration::ZERO, is_small: true };
}

impl Case {
    /// A floor alone.
    pub(crate) fn floor(floor: Activity) -> Self {
        Self { floor, work: None, bound: None }
    }

    /// Work on top of this floor, and how many times the floor it may take.
    pub(crate) fn with_work(self, work: Activity, bound: f64) -> Self {
        Self { work: Some(work), bound: Some(bound), ..self }
    }

    /// Measures it.
    pub(crate) fn measure(&mut self, name: &str, effort: Effort) -> Result<Measured> {
        let floor_times = repetitions(&mut self.floor, effort.turn)?;
        let work_times = self.work.as_mut().map(|work| repetitions(work, effort.turn)).transpose()?;
        let (mut floors, mut works, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..effort.rounds {
            // Who goes first changes from round to round.
            let floor_first = round % 2 == 0;
            let mut floor = floor_first.then(|| turn(&mut self.floor, floor_times)).transpose()?;
            let work =
                self.work.as_mut().zip(work_times).map(|(work, times)| turn(work, times)).transpose()?;
            if floor.is_none() {
                floor = Some(turn(&mut self.floor, floor_times)?);
            }
            floors.extend(floor);
            works.extend(work);
            ratios.extend(work.zip(floor).map(|(work, floor)| work / floor));
        }
        let ratio = median(&ratios);
        Ok(Measured {
            name: name.to_owned(),
            unit: "ns",
            value_ns: median(&works).map(|median| median.middle),
            floor_ns: median(&floors).context("no rounds")?.middle,
            ratio: ratio.map(|ratio| ratio.middle),
            ratio_low: ratio.map(|ratio| ratio.low),
            ratio_high: ratio.map(|ratio| ratio.high),
            bound: self.bound,
        })
    }
}

impl Measured {
    /// Some bytes, against a floor in bytes.
    pub(crate) fn bytes(name: &str, value: f64, floor: f64, bound: f64) -> Self {
        let ratio = Some(value / floor);
        Self {
            name: name.to_owned(),
            unit: "bytes",
            value_ns: Some(value),
            floor_ns: floor,
            ratio,
            ratio_low: ratio,
            ratio_high: ratio,
            bound: Some(bound),
        }
    }

    /// Whether the ratio is beyond its bound.
    pub(crate) fn exceeds_bound(&self) -> bool {
        self.ratio.zip(self.bound).is_some_and(|(ratio, bound)| ratio > bound)
    }
}

/// How many times fill a turn. Also warms up.
fn repetitions(activity: &mut Activity, turn_time: Duration) -> Result<u32> {
    let mut times = 1_u32;
    loop {
        let nanoseconds = turn(activity, times)? * f64::from(times);
        if nanoseconds >= turn_time.as_nanos() as f64 || times >= 1 << 24 {
            return Ok(times);
        }
        times *= 2;
    }
}

/// Nanoseconds for each of so many times.
fn turn(activity: &mut Activity, times: u32) -> Result<f64> {
    Ok(activity(times)?.as_nanos() as f64 / f64::from(times))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(duration: Duration) -> Activity {
        timed(move |times| {
            for _ in 0..times {
                let start = Instant::now();
                while start.elapsed() < duration {}
            }
            Ok(())
        })
    }

    #[test]
    fn work_that_takes_three_times_its_floor_has_the_ratio_three() {
        let (floor, work) = (spin(Duration::from_micros(20)), spin(Duration::from_micros(60)));
        let mut case = Case { floor, work: Some(work), bound: Some(1.5) };
        let effort = Effort { rounds: 21, turn: Duration::from_micros(200), is_small: true };
        let measured = case.measure("spin", effort).unwrap();
        let ratio = measured.ratio.unwrap();
        assert!((2.0..4.5).contains(&ratio), "{measured:?}");
        assert!(measured.exceeds_bound(), "{measured:?}");
    }

    #[test]
    fn a_floor_alone_has_no_ratio() {
        let measured = Case::floor(spin(Duration::ZERO)).measure("nothing", Effort::SMOKE).unwrap();
        assert_eq!((measured.value_ns, measured.ratio), (None, None));
        assert!(!measured.exceeds_bound());
    }

    #[test]
    fn an_error_ends_the_measurement() {
        let broken: Activity = Box::new(|_| anyhow::bail!("broken"));
        assert!(Case::floor(broken).measure("broken", Effort::SMOKE).is_err());
    }
}
