//! What standing sessions feel while others come, are handed over, and go.

use anyhow::{Result, ensure};

use super::crew::{Crew, Process, between};
use super::figure::{Figure, Sample};
use super::load::window;
use super::workload::{Path, Time};

/// Sessions a second that come and go.
const SESSIONS: f64 = 1000.0;
/// Threads that make them: each has time for a session of this many milliseconds.
const MAKERS: usize = 32;
/// Requests a second on all standing sessions together.
const REQUESTS: &str = "1600";
/// Share of [`SESSIONS`] without which the figures are of something else.
const ENOUGH: f64 = 0.95;

/// First the standing sessions alone, then with the others beside them.
pub fn measure(path: Path<'_>, standing: usize, time: Time) -> Result<Sample> {
    let paced = || Process::generator(path, "paced", standing, 0, &["--rate", REQUESTS]);
    let (quiet, _) = Crew::new(vec![paced()?])?.count(path, Time { measured: time.measured / 2.0, ..time })?;

    let rate = SESSIONS.to_string();
    let makers = Process::generator(path, "churn", MAKERS, standing, &["--rate", &rate])?;
    let mut crew = Crew::new(vec![paced()?, makers])?;
    let from = window::now() + window::nanos(time.warmup);
    let to = from + window::nanos(time.measured);
    crew.tell(from, to)?;
    let spent = between(path, from, to);
    let outcomes = crew.outcomes()?;
    let [beside, others] = outcomes.as_slice() else { return Ok(Sample::default()) };
    let rate = others.done as f64 / time.measured;
    ensure!(rate >= ENOUGH * SESSIONS, "only {rate:.0} sessions a second came and went, of {SESSIONS}");
    let quiet_figures = [(Figure::QuietP50Us, 50.0), (Figure::QuietP99Us, 99.0), (Figure::QuietP999Us, 99.9)];
    Ok(Sample::of(others.done as f64, &spent?)
        .with_percentiles(&quiet[0].latency, quiet_figures)
        .with_latency(&beside.latency))
}
