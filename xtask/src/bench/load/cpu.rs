//! How much CPU the whole machine spent, from `/proc/stat` (proc(5)).

use std::time::Instant;

use anyhow::{Context, Result};

/// Ticks a second in `/proc/stat`: the kernel's USER_HZ, 100 on every architecture Rust's std runs Linux on but Alpha.
const USER_HZ: f64 = 100.0;

/// A reading of the first line of `/proc/stat`, in seconds since boot summed over all CPUs, and when it was taken.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Instant,
    total: Total,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Total {
    busy: f64,
    idle: f64,
    stolen: f64,
}

/// What the machine spent between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spent {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// CPU seconds of user, nice, system, irq and softirq together.
    pub busy: f64,
    /// CPU seconds with nothing to do, waiting for a disk included.
    pub idle: f64,
    /// CPU seconds the hypervisor kept for others; in neither of the above.
    pub stolen: f64,
}

impl Reading {
    pub fn now() -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let total = parse(&stat).context("/proc/stat: first line is not `cpu` and ten numbers")?;
        Ok(Self { at: Instant::now(), total })
    }

    /// From this reading until `later`.
    pub fn until(&self, later: &Self) -> Spent {
        Spent {
            seconds: later.at.duration_since(self.at).as_secs_f64(),
            busy: later.total.busy - self.total.busy,
            idle: later.total.idle - self.total.idle,
            stolen: later.total.stolen - self.total.stolen,
        }
    }
}

impl Spent {
    /// As much of it as falls on `seconds`: a reading may come a little later than it should.
    pub fn during(self, seconds: f64) -> Self {
        let share = seconds / self.seconds;
        Self { seconds, busy: self.busy * share, idle: self.idle * share, stolen: self.stolen * share }
    }

    /// Shares of the CPUs' time, in percent: idle (of what the hypervisor left), stolen.
    pub fn idle_percent(&self) -> f64 {
        100.0 * self.idle / (self.busy + self.idle).max(f64::MIN_POSITIVE)
    }

    pub fn stolen_percent(&self) -> f64 {
        100.0 * self.stolen / (self.busy + self.idle + self.stolen).max(f64::MIN_POSITIVE)
    }
}

fn parse(stat: &str) -> Option<Total> {
    let mut words = stat.lines().next()?.split_whitespace();
    if words.next()? != "cpu" {
        return None;
    }
    let ticks: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks[..] else { return None };
    let seconds = |ticks: u64| ticks as f64 / USER_HZ;
    Some(Total {
        busy: seconds(user + nice + system + irq + softirq),
        idle: seconds(idle + iowait),
        stolen: seconds(steal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_iowait_and_steal_are_not_busy() {
        let stat = "cpu  100 20 300 99999 777 4 6 50 11 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse(stat), Some(Total { busy: 4.3, idle: 1007.76, stolen: 0.5 }));
        assert_eq!(parse("intr 1 2 3\n"), None);
    }

    #[test]
    fn idle_is_a_share_of_what_the_hypervisor_left() {
        let spent = Spent { seconds: 1.0, busy: 1.2, idle: 0.4, stolen: 0.4 };
        let half = spent.during(0.5);
        assert_eq!((half.seconds, half.busy), (0.5, 0.6));
        assert!((half.idle_percent() - 25.0).abs() < 1e-9 && (spent.stolen_percent() - 20.0).abs() < 1e-9);
    }
}
