//! The measured time, agreed between the bench and its load processes: a process says that its load stands, and is told
//! when to count. Only what ends between the two moments counts, so that several processes and the reading of the CPU
//! cover the same time.

use std::io::BufRead;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result};

/// What a process prints when its load stands.
pub const STANDS: &str = "stands";

/// CLOCK_MONOTONIC in nanoseconds: the same for every process of the machine.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one timespec through a valid pointer; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sleeps until that moment of [`now`].
pub fn sleep_until(moment: u64) {
    std::thread::sleep(Duration::from_nanos(moment.saturating_sub(now())));
}

pub fn nanos(seconds: f64) -> u64 {
    Duration::from_secs_f64(seconds).as_nanos() as u64
}

/// From and to, in the nanoseconds of [`now`]; before it is agreed nothing counts and nothing is over.
#[derive(Debug)]
pub struct Window {
    from: AtomicU64,
    to: AtomicU64,
}

impl Default for Window {
    fn default() -> Self {
        Self { from: AtomicU64::new(u64::MAX), to: AtomicU64::new(u64::MAX) }
    }
}

impl Window {
    pub fn holds(&self, moment: u64) -> bool {
        self.from.load(Relaxed) <= moment && moment < self.to.load(Relaxed)
    }

    pub fn is_over(&self, moment: u64) -> bool {
        moment >= self.to.load(Relaxed)
    }

    /// The side of the load: says that it stands and waits to be told.
    pub fn agree(&self) -> Result<()> {
        println!("{STANDS}");
        let line = std::io::stdin().lock().lines().next().context("the bench has gone")?.context("stdin")?;
        let (from, to) = parse(&line).with_context(|| format!("not two moments: {line}"))?;
        self.from.store(from, Relaxed);
        self.to.store(to, Relaxed);
        Ok(())
    }

    /// Over at once.
    pub fn close(&self) {
        self.to.store(0, Relaxed);
    }

    /// The side of the bench: the line that [`Self::agree`] waits for.
    pub fn line(from: u64, to: u64) -> String {
        format!("{from} {to}\n")
    }
}

fn parse(line: &str) -> Option<(u64, u64)> {
    let (from, to) = line.trim().split_once(' ')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_counts_or_ends_before_the_time_is_agreed() {
        let window = Window::default();
        assert!(!window.holds(now()) && !window.is_over(now()));
        window.from.store(10, Relaxed);
        window.to.store(20, Relaxed);
        assert!(!window.holds(9) && window.holds(10) && window.holds(19) && !window.holds(20));
        assert!(!window.is_over(19) && window.is_over(20));
    }

    #[test]
    fn the_line_is_read_as_it_is_written() {
        assert_eq!(parse(&Window::line(5, u64::MAX)), Some((5, u64::MAX)));
        assert_eq!(parse("soon"), None);
    }
}
