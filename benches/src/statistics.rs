//! Medians and their intervals, without an assumption about how times are distributed: they are skewed, and
//! neighbours on the computer make outliers.

/// A median and the interval that holds the true one with a probability of at least 95 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Median {
    pub(crate) middle: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The median of some samples; `None` if there are none.
///
/// The interval lies between two order statistics: each sample is below the true median with probability 1/2,
/// so how many are is binomial. Fewer than 6 samples cannot give 95 %, and get their whole range.
pub(crate) fn median(samples: &[f64]) -> Option<Median> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    let last = count.checked_sub(1)?;
    let outside = samples_outside(count);
    Some(Median {
        middle: (sorted[last / 2] + sorted[count / 2]) / 2.0,
        low: sorted[outside],
        high: sorted[last - outside],
    })
}

/// The most samples that can be left out at each end with at most 2.5 % of the probability.
fn samples_outside(count: usize) -> usize {
    let (mut probability, mut cumulated) = (0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX)), 0.0);
    for k in 0..count / 2 {
        cumulated += probability;
        if cumulated > 0.025 {
            return k.saturating_sub(1);
        }
        probability *= (count - k) as f64 / (k + 1) as f64;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(count: u32) -> Vec<f64> {
        (1..=count).rev().map(f64::from).collect()
    }

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn odd_and_even_counts() {
        assert_eq!(median(&samples(1)).unwrap(), Median { middle: 1.0, low: 1.0, high: 1.0 });
        assert_eq!(median(&samples(5)).unwrap().middle, 3.0);
        assert_eq!(median(&samples(6)).unwrap().middle, 3.5);
    }

    #[test]
    fn intervals_are_those_of_the_tables() {
        // From tables for the sign test at 95 %: the l-th smallest and l-th largest of n samples.
        for (count, order) in [(5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (25, 8), (30, 10), (50, 18)]
        {
            let found = median(&samples(count)).unwrap();
            assert_eq!(
                (found.low, found.high),
                (f64::from(order), f64::from(count - order + 1)),
                "n = {count}"
            );
        }
    }

    #[test]
    fn an_outlier_does_not_matter() {
        let mut values = samples(21);
        values[0] = 1e9;
        assert_eq!(median(&values).unwrap().middle, 11.0);
        assert!(median(&values).unwrap().high < 22.0);
    }
}
