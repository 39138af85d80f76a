//! How fast sessions leave a demoted node, and come to one that is new in service: not all at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Candidates;

/// What a slow start begins with, of weight and `max_sessions`.
const LEAST: f64 = 0.1;
/// Weights are whole: one of 1 must have room below it.
const FINER: u32 = 10;

/// The cuts under way, by backend.
#[derive(Debug, Default)]
pub(super) struct Paces(BTreeMap<SocketAddr, Pace>);

#[derive(Debug)]
struct Pace {
    begun: Instant,
    /// Most sessions seen there since.
    of: usize,
}

/// Since when each candidate is one; `None`: from the beginning, which needs no slow start.
#[derive(Debug, Default)]
pub(super) struct Ramps {
    since: BTreeMap<SocketAddr, Option<Instant>>,
    has_begun: bool,
}

// === impl Paces ===

impl Paces {
    /// How many of `now` sessions are to be cut at this moment, so that none is left after `spread`.
    pub(super) fn due(&mut self, backend: SocketAddr, sessions: usize, spread: Duration, now: Instant) -> usize {
        let pace = self.0.entry(backend).or_insert(Pace { begun: now, of: sessions });
        pace.of = pace.of.max(sessions);
        let elapsed = now.saturating_duration_since(pace.begun);
        if elapsed >= spread {
            return sessions;
        }
        let left = 1.0 - elapsed.as_secs_f64() / spread.as_secs_f64();
        sessions.saturating_sub((pace.of as f64 * left).floor() as usize)
    }

    /// Keeps those that are still to be cut.
    pub(super) fn forget(&mut self, keep: impl Fn(&SocketAddr) -> bool) {
        self.0.retain(|address, _| keep(address));
    }
}

// === impl Ramps ===

impl Ramps {
    /// Gives those that are new among the candidates a part of their weight and limit. Whether any is on its way.
    pub(super) fn apply(&mut self, candidates: &mut Candidates, slow_start: Duration, now: Instant) -> bool {
        let is = |address: &SocketAddr, candidates: &Candidates| {
            candidates.list.iter().any(|one| one.backend.address == *address)
        };
        self.since.retain(|address, _| is(address, candidates));
        for one in &candidates.list {
            self.since.entry(one.backend.address).or_insert(self.has_begun.then_some(now));
        }
        self.has_begun |= !candidates.list.is_empty();
        let part = |since: &Option<Instant>| {
            let elapsed = since.map_or(slow_start, |since| now.saturating_duration_since(since));
            (elapsed < slow_start).then(|| (elapsed.as_secs_f64() / slow_start.as_secs_f64()).max(LEAST))
        };
        let parts: Vec<_> = candidates.list.iter().map(|one| part(&self.since[&one.backend.address])).collect();
        if parts.iter().all(Option::is_none) {
            return false;
        }
        for (one, part) in candidates.list.iter_mut().zip(parts) {
            let part = part.unwrap_or(1.0);
            if one.weight > 0 {
                one.weight = ((one.weight * FINER) as f64 * part).round().max(1.0) as u32;
            }
            if one.max_sessions > 0 {
                one.max_sessions = (one.max_sessions as f64 * part).ceil() as u32;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pool::{Backend, Candidate};

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 6432).into()
    }

    #[test]
    fn sessions_leave_evenly_and_all_of_them_in_time() {
        let (mut paces, begun, spread) = (Paces::default(), Instant::now(), Duration::from_secs(1));
        let mut sessions = 100;
        for tenth in 0..=10 {
            let due = paces.due(address(1), sessions, spread, begun + spread * tenth / 10);
            assert!((9..=11).contains(&due) || tenth == 0 && due == 0, "{due} after {tenth} tenths");
            sessions -= due;
        }
        assert_eq!(sessions, 0);
        assert_eq!(paces.due(address(2), 7, Duration::ZERO, begun), 7, "at once");
        paces.forget(|_| false);
        assert_eq!(paces.due(address(1), 7, spread, begun + spread * 5), 0, "begun anew");
    }

    #[test]
    fn a_backend_that_comes_back_starts_slowly_and_those_there_from_the_beginning_do_not() {
        let (mut ramps, begun, slow) = (Ramps::default(), Instant::now(), Duration::from_secs(10));
        let of = |last: &[u8]| {
            let one = |last: &u8| Candidate {
                backend: Arc::new(Backend::new("p", "b", address(*last))),
                weight: 1,
                tier: 0,
                max_sessions: 200,
                peer_id: None,
            };
            Candidates { list: last.iter().map(one).collect(), ..Candidates::default() }
        };
        let mut first = of(&[1]);
        assert!(!ramps.apply(&mut first, slow, begun));
        assert_eq!((first.list[0].weight, first.list[0].max_sessions), (1, 200));
        for (seconds, weight, limit) in [(0, 1, 20), (5, 5, 100)] {
            let mut both = of(&[1, 2]);
            assert!(ramps.apply(&mut both, slow, begun + Duration::from_secs(seconds)));
            assert_eq!((both.list[0].weight, both.list[0].max_sessions), (10, 200));
            assert_eq!((both.list[1].weight, both.list[1].max_sessions), (weight, limit), "after {seconds} s");
        }
        assert!(!ramps.apply(&mut of(&[1, 2]), slow, begun + slow));
        ramps.apply(&mut of(&[1]), slow, begun + slow);
        assert!(ramps.apply(&mut of(&[1, 2]), slow, begun + slow * 2), "gone and come again");
        assert!(!ramps.apply(&mut of(&[1, 3]), Duration::ZERO, begun), "off");
    }
}
