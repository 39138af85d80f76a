//! The echo and the connections workloads: one run of our own load generator on the client host.

use anyhow::{Context, Result};

use super::load::client::Outcome;
use super::workload::{Kind, Path, Sample, Time, Workload, cpus};

pub fn measure(path: Path<'_>, workload: Workload, time: Time) -> Result<Sample> {
    let pattern = if workload.kind == Kind::Connections { "churn" } else { "echo" };
    let mut argv = vec!["/opt/pgsplice/xtask".to_owned(), "bench-client".to_owned()];
    argv.extend(["--pattern".to_owned(), pattern.to_owned()]);
    argv.extend(["--connections".to_owned(), workload.clients.to_string()]);
    argv.extend(["--warmup".to_owned(), time.warmup.to_string(), "--seconds".to_owned(), time.measured.to_string()]);
    for target in path.targets() {
        argv.extend(["--target".to_owned(), target.to_string()]);
    }
    let said = path.testbed.client().output(argv)?;
    let outcome: Outcome = serde_json::from_str(&said).context("the load generator's result")?;
    let mut sample = Sample::of(outcome.operations as f64, &outcome.spent, cpus());
    sample.p50_us = outcome.latency.percentile_us(50.0);
    sample.p99_us = outcome.latency.percentile_us(99.0);
    Ok(sample)
}
