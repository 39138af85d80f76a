//! Medians and how sure they are: 95 % bootstrap intervals, with a fixed seed, so that the same rounds give the same
//! interval again.

use serde::Serialize;

/// Rounds without which there is no 95 % interval: of fewer, even their extremes hold the true median less often
/// (1 − 2 · 2⁻ⁿ is 93.8 % for five).
pub const MIN_ROUNDS: usize = 6;
/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 10_000;
/// Where its random numbers begin.
pub const SEED: u64 = 0x7067_7370_6C69_6365;

/// The median of a figure over rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub median: f64,
    /// The 95 % interval; where it is the extremes of less than [`MIN_ROUNDS`] rounds it is none.
    pub low: f64,
    pub high: f64,
    pub rounds: usize,
}

impl Estimate {
    /// Percentile bootstrap of the median; `None` without a value.
    pub fn of(values: &[f64]) -> Option<Self> {
        Self::bootstrap(values, RESAMPLES)
    }

    fn bootstrap(values: &[f64], resamples: usize) -> Option<Self> {
        let median = median(values)?;
        let mut random = SplitMix(SEED);
        let mut resample = vec![0.0; values.len()];
        let mut medians: Vec<f64> = (0..resamples)
            .map(|_| {
                resample.iter_mut().for_each(|value| *value = values[random.below(values.len())]);
                middle(&mut resample)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        let at = |share: f64| medians[((resamples - 1) as f64 * share).round() as usize];
        Some(Self { median, low: at(0.025), high: at(0.975), rounds: values.len() })
    }

    /// Of a figure that is the same whenever it is measured: the worst round speaks for all.
    pub fn exact(values: &[f64]) -> Option<Self> {
        let worst = values.iter().copied().reduce(f64::max)?;
        Some(Self { median: worst, low: worst, high: worst, rounds: values.len() })
    }

    /// How many more rounds would take the interval clear of `threshold`, if the median stays; widths shrink with the
    /// square root of the rounds. `None`: it lies so near that no sensible number would.
    pub fn more_rounds(&self, threshold: f64) -> Option<usize> {
        const SENSIBLE: f64 = 1000.0;
        let distance = (self.median - threshold).abs();
        let width = if self.median > threshold { self.median - self.low } else { self.high - self.median };
        let wanted = self.rounds as f64 * (width / distance).powi(2);
        let wanted = wanted.max(MIN_ROUNDS as f64).max(self.rounds as f64 + 1.0).ceil();
        (wanted <= SENSIBLE).then(|| wanted as usize - self.rounds)
    }
}

/// `None` without a value.
pub fn median(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| middle(&mut values.to_vec()))
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values with a known median and no other structure.
    fn noise(count: usize, seed: u64) -> Vec<f64> {
        let mut random = SplitMix(seed);
        (0..count).map(|_| random.below(2_000_001) as f64 / 1e6 - 1.0).collect()
    }

    #[test]
    fn the_interval_holds_the_true_median_19_times_in_20() {
        let held = (0..200).filter(|&seed| {
            let estimate = Estimate::bootstrap(&noise(15, seed), 500).unwrap();
            (estimate.low..=estimate.high).contains(&0.0)
        });
        let held = held.count();
        assert!((180..=200).contains(&held), "{held} of 200");
    }

    #[test]
    fn the_same_values_give_the_same_interval_and_more_give_a_narrower_one() {
        let width = |count| {
            let estimate = Estimate::of(&noise(count, 3)).unwrap();
            assert_eq!(Some(estimate), Estimate::of(&noise(count, 3)));
            estimate.high - estimate.low
        };
        assert!(width(400) < width(40) / 2.0);
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[2.0]), Some(Estimate { median: 2.0, low: 2.0, high: 2.0, rounds: 1 }));
    }

    #[test]
    fn the_rounds_that_are_missing_follow_from_width_and_distance() {
        let estimate = Estimate { median: 1.0, low: 0.9, high: 1.1, rounds: 10 };
        // Half the width takes four times the rounds.
        assert_eq!(estimate.more_rounds(0.95), Some(30));
        assert_eq!(estimate.more_rounds(1.05), Some(30));
        assert_eq!(estimate.more_rounds(1.0), None);
        let few = Estimate { rounds: 2, ..estimate };
        assert_eq!(few.more_rounds(0.5), Some(MIN_ROUNDS - 2));
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
