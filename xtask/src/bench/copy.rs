//! The bulk workloads: psql copies a table out, and the same rows in, over and over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::load::cpu::{Reading, Spent};
use super::pgbench::conninfo;
use super::testbed::MEMORY;
use super::workload::{Kind, Path, Sample, Time, cpus};

pub fn measure(path: Path<'_>, kind: Kind, time: Time) -> Result<Sample> {
    let file = format!("{MEMORY}/rows");
    let target = conninfo(path.targets());
    let megabytes = fetch_rows(path, &target, &file)? as f64 / 1e6;
    let bring = format!("\\copy bench_in from '{file}'");
    let argv = match kind {
        Kind::CopyIn => vec!["psql", "-Xq1", "-v", "ON_ERROR_STOP=1", "-c", "TRUNCATE bench_in", "-c", &bring, &target],
        _ => {
            vec!["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-c", "COPY bench_copy TO STDOUT", &target]
        }
    };
    let host = path.testbed.client();
    // The first one warms caches and is not counted.
    host.run(&argv)?;
    let end = Instant::now() + Duration::from_secs_f64(time.measured);
    let mut total = Spent { seconds: 0.0, busy: 0.0, stolen: 0.0 };
    let mut copies = 0.0;
    while copies == 0.0 || Instant::now() < end {
        let before = Reading::now()?;
        host.run(&argv)?;
        let spent = before.until(&Reading::now()?);
        total.seconds += spent.seconds;
        total.busy += spent.busy;
        total.stolen += spent.stolen;
        copies += 1.0;
    }
    Ok(Sample::of(copies * megabytes, &total, cpus()))
}

/// The rows as a file on the client host, made the first time it is asked for. Returns its size in bytes.
fn fetch_rows(path: Path<'_>, target: &str, file: &str) -> Result<u64> {
    let seen = path.testbed.on_client(file);
    if !seen.exists() {
        let part = format!("{file}.part");
        let argv = ["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-o", &part, "-c", "COPY bench_copy TO STDOUT", target];
        path.testbed.client().run(argv)?;
        path.testbed.client().run(["mv", &part, file])?;
    }
    Ok(seen.metadata().context("the rows for COPY")?.len())
}
