//! Waiting with a limit: everything the lab waits for says what it was when it does not come.

use std::ops::RangeInclusive;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two looks. A look is often a process that is started for it: the longer it takes, the longer the pause, or
/// those who wait would take the processor from those they wait for.
const PAUSE: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(400);
const PAUSE_PER_LOOK: u32 = 3;

/// Waits until `ready` is true.
pub fn until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let begun = Instant::now();
        if ready() {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("waited {limit:?} for {what}");
        }
        pause_after(begun.elapsed());
    }
}

/// Waits until `attempt` succeeds; its last error is in ours.
pub fn until_ok<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        let begun = Instant::now();
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("waited {limit:?} for {what}"));
            }
            Err(_) => pause_after(begun.elapsed()),
        }
    }
}

fn pause_after(look: Duration) {
    sleep((look * PAUSE_PER_LOOK).clamp(*PAUSE.start(), *PAUSE.end()));
}
