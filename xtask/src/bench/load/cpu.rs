//! How much CPU the whole machine spent, from `/proc/stat` (proc(5)).

use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Ticks a second in `/proc/stat`: the kernel's USER_HZ, 100 on every architecture Rust's std runs Linux on but Alpha.
const USER_HZ: f64 = 100.0;

/// A reading of the first line of `/proc/stat`, in seconds since boot summed over all CPUs, and when it was taken.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Instant,
    busy: f64,
    stolen: f64,
}

/// What the machine spent between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// CPU seconds of user, nice, system, irq and softirq together.
    pub busy: f64,
    /// CPU seconds the hypervisor kept for others; not in `busy`.
    pub stolen: f64,
}

impl Reading {
    pub fn now() -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let (busy, stolen) = parse(&stat).context("/proc/stat: first line is not `cpu` and ten numbers")?;
        Ok(Self { at: Instant::now(), busy, stolen })
    }

    /// From this reading until `later`.
    pub fn until(&self, later: &Self) -> Spent {
        Spent {
            seconds: later.at.duration_since(self.at).as_secs_f64(),
            busy: later.busy - self.busy,
            stolen: later.stolen - self.stolen,
        }
    }
}

fn parse(stat: &str) -> Option<(f64, f64)> {
    let mut words = stat.lines().next()?.split_whitespace();
    if words.next()? != "cpu" {
        return None;
    }
    let ticks: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else { return None };
    Some(((user + nice + system + irq + softirq) as f64 / USER_HZ, steal as f64 / USER_HZ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn idle_iowait_and_steal_are_not_busy() {
        let stat = "cpu  100 20 300 99999 777 4 6 50 11 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(super::parse(stat), Some((4.3, 0.5)));
        assert_eq!(super::parse("intr 1 2 3\n"), None);
    }
}
