//! How late a replica is, from positions alone: the time since the leader was first heard to have written more than the
//! replica has replayed. No clock of theirs is asked, and an idle leader makes nobody late.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// At one sample a second about an hour; who is later than that is at least that late.
const SAMPLES: usize = 4096;

/// Positions of the leader, each when it was first heard of; both only grow.
#[derive(Debug, Default)]
pub(super) struct WalClock(VecDeque<(u64, Instant)>);

impl WalClock {
    /// The leader said then that it had written this much.
    pub(super) fn heard(&mut self, written: u64, at: Instant) {
        if self.0.back().is_some_and(|(last, _)| *last >= written) {
            return;
        }
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back((written, at));
    }

    /// The highest position heard.
    pub(super) fn last(&self) -> Option<u64> {
        self.0.back().map(|(written, _)| *written)
    }

    /// How late somebody was who said then that he had replayed this much. `None` while nothing is known.
    pub(super) fn age(&self, replayed: u64, at: Instant) -> Option<Duration> {
        self.0.back()?;
        let first_beyond = self.0.partition_point(|(written, _)| *written <= replayed);
        Some(self.0.get(first_beyond).map_or(Duration::ZERO, |(_, heard)| at.saturating_duration_since(*heard)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_replayed_all_is_not_late_and_an_idle_leader_makes_nobody_late() {
        let (mut clock, begun) = (WalClock::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(clock.age(5, at(0)), None);
        clock.heard(100, at(0));
        clock.heard(100, at(9));
        assert_eq!(clock.age(100, at(60)), Some(Duration::ZERO));
        clock.heard(300, at(70));
        clock.heard(200, at(71));
        assert_eq!(clock.age(100, at(72)), Some(Duration::from_secs(2)));
        assert_eq!(clock.age(99, at(72)), Some(Duration::from_secs(72)));
        assert_eq!(clock.age(299, at(69)), Some(Duration::ZERO), "asked before the leader");
        for n in 0..2 * SAMPLES as u64 {
            clock.heard(1000 + n, at(100));
        }
        assert_eq!(clock.0.len(), SAMPLES);
    }
}
