//! A histogram of latencies whose buckets grow with the value, so that a percentile is right to 1.6 % at any scale.

use serde::{Deserialize, Serialize};

/// Buckets a power of two is divided into.
const SUB: u64 = 64;
const SUB_BITS: u32 = SUB.trailing_zeros();

/// Counts of values in nanoseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Histogram {
    /// Grows to the largest bucket seen.
    buckets: Vec<u64>,
    count: u64,
}

impl Histogram {
    pub fn record(&mut self, nanos: u64) {
        let bucket = bucket_of(nanos);
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
    }

    pub fn merge(&mut self, other: &Self) {
        if other.buckets.len() > self.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value in microseconds below which `percent` of the recorded ones lie; `None` while nothing was recorded.
    pub fn percentile_us(&self, percent: f64) -> Option<f64> {
        let rank = ((percent / 100.0 * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if count > 0 && seen >= rank {
                return Some(middle_of(bucket) / 1000.0);
            }
        }
        None
    }
}

fn bucket_of(nanos: u64) -> usize {
    if nanos < SUB {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - SUB_BITS;
    // The top bit is always set, so `nanos >> shift` lies in SUB..2*SUB.
    (u64::from(shift) * SUB + (nanos >> shift)) as usize
}

/// The middle of a bucket in nanoseconds.
fn middle_of(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket as f64;
    }
    let shift = bucket / SUB - 1;
    let low = (bucket - shift * SUB) << shift;
    low as f64 + ((1u64 << shift) as f64 - 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_a_bucket_whose_middle_is_near() {
        for nanos in [0, 1, 63, 64, 65, 127, 128, 1000, 123_456, 987_654_321, u64::from(u32::MAX)] {
            let middle = middle_of(bucket_of(nanos));
            assert!((middle - nanos as f64).abs() <= nanos as f64 / SUB as f64, "{nanos} → {middle}");
        }
    }

    #[test]
    fn percentiles_of_a_ramp_are_the_ramp() {
        let mut ramp = Histogram::default();
        assert_eq!(ramp.percentile_us(50.0), None);
        (1..=10_000u64).for_each(|us| ramp.record(us * 1000));
        let p50 = ramp.percentile_us(50.0).unwrap();
        let p99 = ramp.percentile_us(99.0).unwrap();
        assert!((p50 / 5_000.0 - 1.0).abs() < 0.02, "{p50}");
        assert!((p99 / 9_900.0 - 1.0).abs() < 0.02, "{p99}");
    }

    #[test]
    fn merging_adds_counts() {
        let (mut a, mut b) = (Histogram::default(), Histogram::default());
        a.record(1_000);
        b.record(1_000_000_000);
        a.merge(&b);
        assert_eq!(a.count(), 2);
        assert!(a.percentile_us(100.0).unwrap() > 900_000.0);
    }
}
