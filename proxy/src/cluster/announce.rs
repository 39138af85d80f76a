//! A planned move of the leadership before it happens: who announces it, and from when on.
//!
//! Patroni's own announcement is its `failover` key (`patroni/ha.py`, `process_manual_failover_from_leader`); that of
//! `pgsplice switchover` is an entry in the agents' registry, which comes first and outlives its writer by a lease.

use std::time::{Duration, SystemTime};

use super::patroni::Failover;

/// The registry's entry of `pgsplice switchover`. No bouncer has such a name.
pub const ENTRY: &str = "@switchover";

/// The leadership is about to leave a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switchover {
    pub from: String,
    /// `None`: Patroni chooses.
    pub to: Option<String>,
    pub by: Announcer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcer {
    Patroni,
    Pgsplice { id: String },
}

/// What stands in [`ENTRY`] (JSON).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Notice {
    /// Of one attempt.
    pub id: String,
    pub leader: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<String>,
}

// === impl Switchover ===

impl From<&Notice> for Switchover {
    fn from(notice: &Notice) -> Self {
        let Notice { id, leader, candidate } = notice.clone();
        Self { from: leader, to: candidate, by: Announcer::Pgsplice { id } }
    }
}

impl Switchover {
    /// What Patroni's key announces for this moment. One without a leader is a manual failover from whoever leads.
    pub fn of_patroni(failover: &Failover, leads: Option<&str>, now: SystemTime) -> Option<Self> {
        if failover.scheduled_at.is_some() && due(failover).is_none_or(|due| due > now) {
            return None;
        }
        let from = failover.leader.as_deref().or(leads)?;
        let to = failover.candidate.clone().filter(|to| to != from);
        if to.is_none() && failover.leader.is_none() {
            // It has arrived where it was to go.
            return None;
        }
        Some(Self { from: from.into(), to, by: Announcer::Patroni })
    }
}

impl std::fmt::Display for Switchover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.to {
            Some(to) => write!(f, "a switchover from {} to {to}", self.from),
            None => write!(f, "a switchover from {}", self.from),
        }
    }
}

/// When a scheduled one begins.
pub fn due(failover: &Failover) -> Option<SystemTime> {
    parse_time(failover.scheduled_at.as_deref()?)
}

/// Python's `datetime.isoformat()` with an offset, as Patroni writes it: `2026-11-26T02:00:00.5+01:00`.
fn parse_time(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_once(['T', ' '])?;
    let zone = rest.find(['+', '-', 'Z'])?;
    let (clock, offset) = rest.split_at(zone);
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.splitn(3, ':');
    let hour: i64 = clock.next()?.parse().ok()?;
    let minute: i64 = clock.next()?.parse().ok()?;
    let seconds: f64 = clock.next().unwrap_or("0").parse().ok()?;
    let is_one = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour);
    if !is_one || !(0..60).contains(&minute) || !(0.0..61.0).contains(&seconds) {
        return None;
    }
    let offset = match offset.strip_prefix(['+', '-']) {
        None => 0,
        Some(digits) => {
            let (hours, minutes) = digits.split_once(':')?;
            let east = hours.parse::<u8>().ok()? as i64 * 3600 + minutes.get(..2)?.parse::<u8>().ok()? as i64 * 60;
            if offset.starts_with('-') { -east } else { east }
        }
    };
    let whole = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 - offset;
    let since = Duration::from_secs(u64::try_from(whole).ok()?) + Duration::from_secs_f64(seconds);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// Days since 1970-01-01 in the Gregorian calendar: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn failover(leader: Option<&str>, candidate: Option<&str>, scheduled_at: Option<&str>) -> Failover {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Failover { leader: own(leader), candidate: own(candidate), scheduled_at: own(scheduled_at) }
    }

    #[test]
    fn times_are_read_as_python_writes_them() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00+00:00", 0),
            ("2026-11-26T02:00:00+01:00", 1_795_654_800),
            ("2026-11-26T01:00:00Z", 1_795_654_800),
            ("2026-11-25T20:30:00-04:30", 1_795_654_800),
            ("2000-02-29T12:00:00+00:00", 951_825_600),
        ] {
            assert_eq!(parse_time(text), Some(at(seconds)), "{text}");
        }
        assert_eq!(parse_time("1970-01-01 00:00:01.500000+00:00"), Some(at(1) + Duration::from_millis(500)));
        for bad in ["", "now", "2026-11-26", "2026-11-26T02:00:00", "2026-13-26T02:00:00Z", "2026-11-26T02:00:99Z"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_announcement_counts_from_its_time_on() {
        let of = |failover: &Failover, leads| Switchover::of_patroni(failover, leads, at(1_795_654_800));
        let to_pg2 = failover(Some("pg1"), Some("pg2"), None);
        let announced = of(&to_pg2, Some("pg1")).unwrap();
        assert_eq!((&*announced.from, announced.to.as_deref()), ("pg1", Some("pg2")));
        assert!(of(&failover(Some("pg1"), None, None), Some("pg1")).is_some(), "Patroni chooses");
        let scheduled = |time| failover(Some("pg1"), Some("pg2"), Some(time));
        assert!(of(&scheduled("2026-11-26T01:00:01Z"), Some("pg1")).is_none());
        assert!(of(&scheduled("2026-11-26T01:00:00Z"), Some("pg1")).is_some());
        assert!(of(&scheduled("some day"), Some("pg1")).is_none());
    }

    #[test]
    fn a_manual_failover_leaves_whoever_leads_and_is_over_on_arrival() {
        let manual = failover(None, Some("pg2"), None);
        let announced = |leads| Switchover::of_patroni(&manual, leads, at(0));
        assert_eq!(announced(Some("pg1")).unwrap().from, "pg1");
        assert_eq!(announced(Some("pg2")), None);
        assert_eq!(announced(None), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-0-9T:+.Z ]{0,40}|.{0,20}") {
            parse_time(&text);
        }
    }
}
