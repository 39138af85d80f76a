//! The state machine of one backend's probes: rise and fall counts, no clock, no sockets.

use super::check::Alive;
use crate::config;
use crate::pool::Health;

/// Where a backend stands between up and down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Track {
    /// The first result decides, so that a start is quick.
    #[default]
    Unknown,
    Up {
        /// Failures since the last success.
        failures: u32,
        /// Answers in a row that there is no connection to spare.
        full: u32,
    },
    Down {
        /// Successes since the last failure.
        successes: u32,
        /// Successes that bring it up.
        needed: u32,
    },
    /// Sessions could not connect; the next result decides.
    Marked,
}

impl Track {
    pub const UP: Self = Self::Up { failures: 0, full: 0 };
    /// Up, and known to be full.
    pub const FULL: Self = Self::Up { failures: 0, full: u32::MAX };

    /// Takes one probe's result; the health to set, if it is known better than before.
    pub fn observe(&mut self, result: Result<Alive, String>, probe: &config::Probe) -> Option<Health> {
        match (&mut *self, result) {
            (Self::Unknown | Self::Marked, Ok(alive)) => self.up(alive),
            (Self::Unknown | Self::Marked, Err(why)) => self.down(probe, why),
            (Self::Up { failures, full }, Ok(Alive::Full { why })) => {
                *failures = 0;
                *full = full.saturating_add(1);
                if *full < probe.fall { None } else { Some(Health::Full { why }) }
            }
            (Self::Up { .. }, Ok(alive)) => self.up(alive),
            (Self::Up { failures, .. }, Err(why)) => {
                *failures += 1;
                if *failures < probe.fall { None } else { self.down(probe, why) }
            }
            (Self::Down { successes, needed }, Ok(alive)) => {
                *successes += 1;
                if *successes < *needed { None } else { self.up(alive) }
            }
            (Self::Down { successes, .. }, Err(why)) => {
                *successes = 0;
                Some(Health::Down { why })
            }
        }
    }

    /// Sessions could not connect.
    pub fn marked_down(&mut self) {
        // Probes that found it down already know better what brings it back.
        if !matches!(self, Self::Down { .. }) {
            *self = Self::Marked;
        }
    }

    /// On its way up or down, or full, which is over as soon as anybody goes: probe at the fast interval.
    pub fn is_changing(&self) -> bool {
        match self {
            Self::Unknown => false,
            Self::Up { failures, full } => *failures > 0 || *full > 0,
            Self::Down { successes, .. } => *successes > 0,
            Self::Marked => true,
        }
    }

    fn up(&mut self, alive: Alive) -> Option<Health> {
        match alive {
            Alive::Works => {
                *self = Self::UP;
                Some(Health::Up)
            }
            Alive::Full { why } => {
                *self = Self::FULL;
                Some(Health::Full { why })
            }
        }
    }

    fn down(&mut self, probe: &config::Probe, why: String) -> Option<Health> {
        *self = Self::Down { successes: 0, needed: probe.rise.max(1) };
        Some(Health::Down { why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Result<Alive, String> = Ok(Alive::Works);

    fn refused() -> Result<Alive, String> {
        Err("connection refused".into())
    }

    fn down() -> Option<Health> {
        Some(Health::Down { why: "connection refused".into() })
    }

    /// rise 2, fall 3
    fn probe() -> config::Probe {
        config::Probe { rise: 2, fall: 3, ..config::Probe::default() }
    }

    #[test]
    fn the_first_result_decides() {
        assert_eq!(Track::default().observe(OK, &probe()), Some(Health::Up));
        assert_eq!(Track::default().observe(refused(), &probe()), down());
    }

    #[test]
    fn it_falls_after_three_failures_in_a_row() {
        let mut track = Track::UP;
        assert_eq!(track.observe(refused(), &probe()), None);
        assert!(track.is_changing());
        assert_eq!(track.observe(refused(), &probe()), None);
        assert_eq!(track.observe(OK, &probe()), Some(Health::Up));
        assert!(!track.is_changing(), "a success between starts the count anew");
        assert_eq!(track.observe(refused(), &probe()), None);
        assert_eq!(track.observe(refused(), &probe()), None);
        assert_eq!(track.observe(refused(), &probe()), down());
        assert!(!track.is_changing());
    }

    #[test]
    fn it_rises_after_two_successes_in_a_row() {
        let mut track = Track::default();
        track.observe(refused(), &probe());
        assert_eq!(track.observe(OK, &probe()), None);
        assert!(track.is_changing());
        assert_eq!(track.observe(refused(), &probe()), down(), "the latest reason is kept");
        assert_eq!(track.observe(OK, &probe()), None);
        assert_eq!(track.observe(OK, &probe()), Some(Health::Up));
    }

    #[test]
    fn the_next_result_decides_over_what_sessions_marked_down() {
        let mut track = Track::UP;
        track.marked_down();
        assert!(track.is_changing(), "it is probed fast");
        assert_eq!(track.observe(OK, &probe()), Some(Health::Up));
        track.marked_down();
        assert_eq!(track.observe(refused(), &probe()), down());
        track.marked_down();
        assert_eq!(track.observe(OK, &probe()), None, "what probes found down rises as usual");
    }

    #[test]
    fn one_that_is_full_is_alive_and_known_to_be_full_until_it_is_asked_again() {
        let full = || Ok(Alive::Full { why: "too many clients".into() });
        let shown = Some(Health::Full { why: "too many clients".into() });
        let mut track = Track::Up { failures: 2, full: 0 };
        for _ in 0..2 {
            assert_eq!(track.observe(full(), &probe()), None, "one answer moves nobody");
            assert!(track.is_changing());
        }
        assert_eq!(track.observe(full(), &probe()), shown);
        assert!(track.is_changing(), "it is asked again soon");
        assert_eq!(track.observe(OK, &probe()), Some(Health::Up));
        assert!(!track.is_changing());
        assert_eq!(track.observe(full(), &probe()), None, "counted anew");
        track.marked_down();
        assert_eq!(track.observe(full(), &probe()), shown);
        assert_eq!(Track::default().observe(full(), &probe()), shown);
    }

    #[test]
    fn zero_counts_mean_one() {
        let probe = config::Probe { rise: 0, fall: 0, ..config::Probe::default() };
        let mut track = Track::UP;
        assert_eq!(track.observe(refused(), &probe), down());
        assert_eq!(track.observe(OK, &probe), Some(Health::Up));
    }
}
