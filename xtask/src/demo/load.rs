//! The load: a number of pgbench, each with one client. pgbench gives a client up when its connection breaks, so each is
//! started again and the break is counted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStderr, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;

use crate::lab::{Host, Lab};

/// Running pgbenches; [`Load::stop`] ends them.
pub struct Load {
    clients: Vec<Arc<Client>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

#[derive(Default)]
struct Client {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    process: Option<Child>,
    /// When pgbench last told its progress, and what: transactions a second, mean latency in ms.
    last: Option<(Instant, f64, f64)>,
    transactions: f64,
    latency_sum: f64,
    errors: BTreeMap<String, usize>,
}

/// The load over the last second.
pub struct Now {
    pub tps: f64,
    /// Mean over the transactions that ended, in milliseconds; None when there was none.
    pub latency: Option<f64>,
}

/// The load over its whole life.
pub struct Total {
    pub transactions: f64,
    pub latency: f64,
    pub errors: BTreeMap<String, usize>,
}

impl Load {
    /// Starts `clients` pgbenches on the lab's client host.
    pub fn start(lab: &Lab, clients: usize, port: u16) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let conninfo = lab.conninfo(lab.proxy(), port);
        let mut load = Self { clients: Vec::new(), threads: Vec::new(), stop };
        for _ in 0..clients {
            let client = Arc::new(Client::default());
            let first = client.spawn(lab.client(), &conninfo)?;
            load.clients.push(client.clone());
            let (host, conninfo, stop) = (lab.client().clone(), conninfo.clone(), load.stop.clone());
            load.threads.push(thread::spawn(move || client.keep_running(first, &host, &conninfo, &stop)));
        }
        Ok(load)
    }

    pub fn now(&self) -> Now {
        let mut now = Now { tps: 0.0, latency: None };
        let mut latency_sum = 0.0;
        for client in &self.clients {
            match client.state.lock().last {
                Some((at, tps, latency)) if at.elapsed() < Duration::from_millis(1500) => {
                    now.tps += tps;
                    latency_sum += tps * latency;
                }
                _ => {}
            }
        }
        if now.tps > 0.0 {
            now.latency = Some(latency_sum / now.tps);
        }
        now
    }

    pub fn total(&self) -> Total {
        let mut total = Total { transactions: 0.0, latency: 0.0, errors: BTreeMap::new() };
        for client in &self.clients {
            let state = client.state.lock();
            total.transactions += state.transactions;
            total.latency += state.latency_sum;
            for (said, count) in &state.errors {
                *total.errors.entry(said.clone()).or_default() += count;
            }
        }
        if total.transactions > 0.0 {
            total.latency /= total.transactions;
        }
        total
    }

    pub fn errors(&self) -> usize {
        self.clients.iter().map(|client| client.state.lock().errors.values().sum::<usize>()).sum()
    }

    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in &self.clients {
            if let Some(process) = &mut client.state.lock().process {
                let _ = process.kill();
            }
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Client {
    fn spawn(&self, host: &Host, conninfo: &str) -> Result<ChildStderr> {
        let mut command =
            host.command(["pgbench", "--no-vacuum", "--client=1", "--progress=1", "--time=86400", conninfo]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().context("cannot run pgbench")?;
        let stderr = process.stderr.take().context("pgbench has no stderr")?;
        self.state.lock().process = Some(process);
        Ok(stderr)
    }

    fn keep_running(&self, first: ChildStderr, host: &Host, conninfo: &str, stop: &AtomicBool) {
        let mut output = Some(first);
        while let Some(stderr) = output.take() {
            let mut progress = Progress::default();
            let mut reason = String::from("pgbench ended without a word");
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                match progress.parse(&line) {
                    Some((transactions, tps, latency)) => {
                        let mut state = self.state.lock();
                        state.transactions += transactions;
                        state.latency_sum += transactions * latency;
                        state.last = Some((Instant::now(), tps, latency));
                    }
                    // The first complaint is the cause, what follows its consequences.
                    None if line.starts_with("pgbench: error: ") && reason.starts_with("pgbench ended") => {
                        reason = plain(&line);
                    }
                    None => {}
                }
            }
            if let Some(mut process) = self.state.lock().process.take() {
                let _ = process.wait();
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            *self.state.lock().errors.entry(reason).or_default() += 1;
            thread::sleep(Duration::from_millis(100));
            output = match self.spawn(host, conninfo) {
                Ok(stderr) => Some(stderr),
                Err(error) => {
                    *self.state.lock().errors.entry(format!("{error:#}")).or_default() += 1;
                    None
                }
            };
        }
    }
}

/// The running time that pgbench told last, in seconds: what lies between two lines was their interval.
#[derive(Default)]
struct Progress(f64);

impl Progress {
    /// `progress: 12.0 s, 345.6 tps, lat 2.893 ms stddev 1.2, 0 failed` as transactions in it, tps, ms.
    fn parse(&mut self, line: &str) -> Option<(f64, f64, f64)> {
        let mut parts = line.strip_prefix("progress: ")?.split(", ");
        let at: f64 = parts.next()?.strip_suffix(" s")?.parse().ok()?;
        let tps: f64 = parts.next()?.strip_suffix(" tps")?.parse().ok()?;
        let latency: f64 = parts.next()?.strip_prefix("lat ")?.split(' ').next()?.parse().ok()?;
        let interval = at - std::mem::replace(&mut self.0, at);
        Some((tps * interval, tps, if latency.is_finite() { latency } else { 0.0 }))
    }
}

/// An error without the parts that differ from client to client.
fn plain(line: &str) -> String {
    let line = line.trim_start_matches("pgbench: error: ");
    let line = line.split_once(": ").filter(|(head, _)| head.contains("client 0")).map_or(line, |(_, rest)| rest);
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::Progress;

    #[test]
    fn pgbench_progress_is_read() {
        let mut progress = Progress(11.0);
        let line = "progress: 13.0 s, 100.0 tps, lat 2.893 ms stddev 1.200, 0 failed";
        assert_eq!(progress.parse(line), Some((200.0, 100.0, 2.893)));
        assert_eq!(
            progress.parse("progress: 14.0 s, 0.0 tps, lat 0.000 ms stddev 0.000, 0 failed"),
            Some((0.0, 0.0, 0.0))
        );
        assert_eq!(progress.parse("pgbench: error: client 0 aborted"), None);
    }
}
