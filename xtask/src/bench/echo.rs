//! The workloads of our own load generator that just run: requests, connections, streams.

use anyhow::Result;

use super::crew::{Crew, together};
use super::figure::Sample;
use super::workload::{Kind, Path, Time, Workload};

pub fn measure(path: Path<'_>, workload: Workload, time: Time) -> Result<Sample> {
    let pattern = match workload.kind {
        Kind::StreamOut => "stream-out",
        Kind::StreamIn => "stream-in",
        Kind::Connections | Kind::Handoffs => "churn",
        _ => "echo",
    };
    let (outcomes, spent) = Crew::spread(path, pattern, workload.clients, &[])?.count(path, time)?;
    let outcome = together(&outcomes);
    let is_stream = matches!(workload.kind, Kind::StreamOut | Kind::StreamIn);
    let unit = if is_stream { 1e6 } else { 1.0 };
    Ok(Sample::of(outcome.done as f64 / unit, &spent).with_latency(&outcome.latency))
}
