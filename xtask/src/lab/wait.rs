//! Waiting with a limit: everything the lab waits for says what it was when it does not come.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PAUSE: Duration = Duration::from_millis(50);

/// Waits until `ready` is true.
pub fn until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + limit;
    while !ready() {
        if Instant::now() >= end {
            bail!("waited {limit:?} for {what}");
        }
        sleep(PAUSE);
    }
    Ok(())
}

/// Waits until `attempt` succeeds; its last error is in ours.
pub fn until_ok<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("waited {limit:?} for {what}"));
            }
            Err(_) => sleep(PAUSE),
        }
    }
}
