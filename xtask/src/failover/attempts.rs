//! New connections, one after another, through one way in: when each was made, and where its row was written.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;

use crate::lab::Lab;

/// A way to the primary.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub name: &'static str,
    pub port: u16,
}

/// Running attempts; dropping them ends them.
pub struct Attempts {
    child: Child,
    seen: Arc<Mutex<Vec<Attempt>>>,
}

/// Times are nanoseconds of CLOCK_MONOTONIC, which all namespaces of a machine share.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub begun: u64,
    pub ended: u64,
    /// The timeline that took the row, or what went wrong.
    pub outcome: Result<u32, String>,
}

impl Attempts {
    pub fn start(lab: &Lab, way: Way, every: Duration) -> Result<Self> {
        let (conninfo, every) = (lab.conninfo(lab.proxy(), way.port), every.as_secs_f64().to_string());
        let program = include_str!("connect.py");
        let mut command = lab.client().command(["python3", "-c", program, &conninfo, way.name, &every]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run python3")?;
        let stdout = child.stdout.take().context("the attempts have no output")?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                sink.lock().extend(Attempt::parse(&line));
            }
        });
        Ok(Self { child, seen })
    }

    /// From `event` on: when the first row was taken by a timeline above `old`.
    pub fn first_on_new(&self, event: u64, old: u32) -> Option<u64> {
        let seen = self.seen.lock();
        let new = seen.iter().filter(|one| one.ended > event && one.outcome.as_ref().is_ok_and(|&on| on > old));
        new.map(|one| one.ended).min()
    }

    /// Failures that were begun in this time, with their words.
    pub fn failures(&self, from: u64, to: u64) -> BTreeMap<String, usize> {
        let mut failures = BTreeMap::new();
        for one in self.seen.lock().iter().filter(|one| (from..to).contains(&one.begun)) {
            if let Err(said) = &one.outcome {
                *failures.entry(said.clone()).or_default() += 1;
            }
        }
        failures
    }

    /// The timeline of the last row.
    pub fn timeline(&self) -> u32 {
        self.seen.lock().iter().rev().find_map(|one| one.outcome.clone().ok()).unwrap_or(0)
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Attempt {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        let (what, begun, ended, rest) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let outcome = match what {
            "ok" => Ok(rest.split(' ').nth(1)?.parse().ok()?),
            _ => Err(rest.to_owned()),
        };
        Some(Self { begun: begun.parse().ok()?, ended: ended.parse().ok()?, outcome })
    }
}

/// CLOCK_MONOTONIC now.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the length of the call, and this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_program_are_read() {
        let ok = Attempt::parse("ok 5 9 10.0.0.2 3").unwrap();
        assert_eq!((ok.begun, ok.ended, ok.outcome), (5, 9, Ok(3)));
        let error = Attempt::parse("error 5 9 connection refused").unwrap();
        assert_eq!(error.outcome, Err("connection refused".into()));
        assert!(Attempt::parse("Traceback").is_none());
    }
}
