//! The pgbench workloads. What is counted comes from pgbench's own log of transactions (`--log`), so that it covers
//! exactly the time between the two readings of the CPU.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use super::crew::{between, shares};
use super::figure::Sample;
use super::load::histogram::Histogram;
use super::load::window;
use super::testbed::MEMORY;
use super::workload::{Kind, Path, Time, Workload};

/// How much longer pgbench runs than we look, in seconds: its start, and both of our readings lie within.
const SLACK: f64 = 0.7;

pub fn measure(path: Path<'_>, workload: Workload, time: Time) -> Result<Sample> {
    let folder = format!("{MEMORY}/pgbench");
    path.testbed.client().run(["sh", "-c", "rm -rf \"$1\" && mkdir \"$1\"", "sh", &folder])?;
    let began = window::now();
    let children = shares(workload.clients)
        .into_iter()
        .enumerate()
        .map(|(number, (_, clients))| start(path, workload.kind, clients, time, &format!("{folder}/log{number}")))
        .collect::<Result<Vec<_>>>()?;
    let from = began + window::nanos(time.warmup + SLACK / 2.0);
    let to = from + window::nanos(time.measured);
    let spent = between(path, from, to);
    let (from, to) = (wall_clock(from), wall_clock(to));
    for child in children {
        let output = child.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench ended with {}: {errors}", output.status);
        check_summary(&String::from_utf8_lossy(&output.stdout))?;
    }

    let mut latency = Histogram::default();
    for entry in fs::read_dir(path.testbed.on_client(&folder)).context("pgbench's logs")? {
        let log = Log::read(&fs::read_to_string(entry?.path())?)?;
        latency.merge(&log.within(from, to, workload.kind == Kind::PgbenchConnect));
    }
    ensure!(latency.count() > 0, "pgbench logged no transaction in {} s", time.measured);
    Ok(Sample::of(latency.count() as f64, &spent?).with_latency(&latency))
}

/// One of the load processes.
fn start(path: Path<'_>, kind: Kind, clients: usize, time: Time, log: &str) -> Result<Child> {
    let clients = clients.to_string();
    let seconds = (time.warmup + time.measured + SLACK).ceil().to_string();
    let log = format!("--log-prefix={log}");
    let target = conninfo(path.targets());
    let mut argv = vec!["pgbench", "-n", "-S", "-c", &clients, "-j", "1", "-T", &seconds, "-l", &log];
    match kind {
        Kind::PgbenchPrepared => argv.extend(["-M", "prepared"]),
        Kind::PgbenchConnect => argv.push("-C"),
        _ => argv.extend(["-M", "simple"]),
    }
    argv.push(&target);
    let mut command = path.testbed.client().command(argv);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run pgbench")
}

/// libpq's connection string; of several targets each connection takes one at random.
pub fn conninfo(targets: &[SocketAddr]) -> String {
    let hosts: Vec<String> = targets.iter().map(|target| target.ip().to_string()).collect();
    let ports: Vec<String> = targets.iter().map(|target| target.port().to_string()).collect();
    let balance = if targets.len() > 1 { "load_balance_hosts=random" } else { "" };
    format!(
        "host={} port={} user=bench dbname=bench sslmode=disable gssencmode=disable {balance}",
        hosts.join(","),
        ports.join(",")
    )
}

/// A moment of [`window::now`] in microseconds since 1970, as pgbench's log has them.
fn wall_clock(moment: u64) -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    (since + moment).saturating_sub(window::now()) / 1000
}

/// pgbench's own summary must agree that nothing failed and something was done.
fn check_summary(text: &str) -> Result<()> {
    let value = |label: &str| text.lines().find_map(|line| line.strip_prefix(label)).map(str::trim);
    let failed = value("number of failed transactions:").context("pgbench's summary has no failed transactions")?;
    if !failed.starts_with("0 ") {
        bail!("pgbench: number of failed transactions: {failed}");
    }
    let tps = value("tps =").and_then(|rest| rest.split_whitespace().next()).and_then(|tps| tps.parse::<f64>().ok());
    ensure!(tps.is_some_and(|tps| tps > 0.0), "pgbench's summary has no tps above 0:\n{text}");
    Ok(())
}

/// Transactions by client: when each ended and how long it took, both in microseconds.
#[derive(Default)]
struct Log(BTreeMap<u32, Vec<(u64, u64)>>);

impl Log {
    /// One thread's file. A line is: client, transaction, latency in µs, script, epoch s, µs.
    fn read(text: &str) -> Result<Self> {
        let mut log = Self::default();
        for line in text.lines() {
            let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
            let [client, _, latency, _, seconds, micros, ..] = fields[..] else {
                bail!("pgbench's log has a line of another shape: {line}");
            };
            log.0.entry(client as u32).or_default().push((seconds * 1_000_000 + micros, latency));
        }
        Ok(log)
    }

    /// Latencies of the transactions that ended within a time. pgbench leaves out the connecting of `-C`:
    /// with `whole_cycle` it is the time since the same client's transaction before.
    fn within(&self, from: u64, to: u64, whole_cycle: bool) -> Histogram {
        let mut latencies = Histogram::default();
        for transactions in self.0.values() {
            let mut previous = None;
            for &(ended, latency) in transactions {
                let took =
                    if whole_cycle { previous.map(|previous| ended.saturating_sub(previous)) } else { Some(latency) };
                previous = Some(ended);
                if let (true, Some(took)) = ((from..to).contains(&ended), took) {
                    latencies.record(took * 1000);
                }
            }
        }
        latencies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transactions_within_the_time_count() {
        let text = "0 0 200 0 10 500000\n0 1 300 0 11 0\n1 0 400 0 11 999999\n1 1 500 0 12 0\n";
        let log = Log::read(text).unwrap();
        let latency = log.within(11_000_000, 12_000_000, false);
        assert_eq!(latency.count(), 2);
        assert!((latency.percentile_us(50.0).unwrap() / 300.0 - 1.0).abs() < 0.02);
        let cycles = log.within(11_000_000, 12_000_000, true);
        assert_eq!(cycles.count(), 1);
        assert!((cycles.percentile_us(50.0).unwrap() / 500_000.0 - 1.0).abs() < 0.02);
        assert!(Log::read("0 0 failed 0 10 5\n").is_err());
    }

    #[test]
    fn a_summary_with_failures_or_nothing_done_is_an_error() {
        let good = "number of failed transactions: 0 (0.000%)\ntps = 12139.5 (without initial connection time)\n";
        check_summary(good).unwrap();
        assert!(check_summary(&good.replace(": 0 (", ": 3 (")).is_err());
        assert!(check_summary(&good.replace("12139.5", "0.0")).is_err());
    }
}
