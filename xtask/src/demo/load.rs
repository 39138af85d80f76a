//! pgbench, a process a client: one whose transaction fails ends, and is started again and counted.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

use crate::lab::Lab;

pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    transactions: AtomicU64,
    errors: AtomicUsize,
    /// Since the last look: transactions, and the sum of their latencies in ms.
    second: Mutex<(f64, f64)>,
    /// pgbench cannot be run at all.
    broken: Mutex<Option<String>>,
    /// Of the processes that run, to end them by.
    pids: Mutex<Vec<i32>>,
}

impl Load {
    pub fn start(lab: &Lab, conninfo: &str, clients: usize) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let workers = (0..clients)
            .map(|_| {
                let (shared, host, conninfo) = (shared.clone(), lab.client().clone(), conninfo.to_owned());
                std::thread::spawn(move || {
                    while !shared.stop.load(Relaxed) {
                        let command = host.command(["pgbench", "-n", "-c", "1", "-T", "3600", "-P", "1", &conninfo]);
                        if let Err(error) = one(command, &shared) {
                            *shared.broken.lock() = Some(format!("pgbench: {error:#}"));
                            return;
                        }
                    }
                })
            })
            .collect();
        Ok(Self { shared, workers })
    }

    pub fn transactions(&self) -> u64 {
        self.shared.transactions.load(Relaxed)
    }

    /// pgbench clients that lost a transaction, or could not connect.
    pub fn errors(&self) -> usize {
        self.shared.errors.load(Relaxed)
    }

    /// Transactions since the last look, and their mean latency in ms.
    pub fn last_second(&self) -> (f64, f64) {
        let (transactions, latencies) = std::mem::take(&mut *self.shared.second.lock());
        (transactions, if transactions > 0.0 { latencies / transactions } else { 0.0 })
    }

    pub fn check(&self) -> Result<()> {
        match &*self.shared.broken.lock() {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    }

    pub fn stop(self) -> Result<()> {
        self.check()?;
        self.shared.end();
        for worker in self.workers {
            worker.join().map_err(|_| anyhow::anyhow!("a pgbench thread panicked"))?;
        }
        Ok(())
    }
}

impl Shared {
    fn end(&self) {
        self.stop.store(true, Relaxed);
        // SAFETY: plain system calls; a pid is in the list only until its process was waited for.
        self.pids.lock().iter().for_each(|&pid| unsafe {
            libc::kill(pid, libc::SIGTERM);
        });
    }
}

/// One pgbench from start to end.
fn one(mut command: Command, shared: &Shared) -> Result<()> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start it")?;
    let pid = child.id() as i32;
    shared.pids.lock().push(pid);
    if shared.stop.load(Relaxed) {
        child.kill()?;
    }
    let output = child.stderr.take().context("it has no output")?;
    for line in BufReader::new(output).lines() {
        if let Some((tps, latency)) = progress(&line?) {
            shared.transactions.fetch_add(tps.round() as u64, Relaxed);
            let mut second = shared.second.lock();
            *second = (second.0 + tps, second.1 + tps * latency);
        }
    }
    shared.pids.lock().retain(|other| *other != pid);
    child.wait()?;
    if !shared.stop.load(Relaxed) {
        shared.errors.fetch_add(1, Relaxed);
        // A cluster without a primary refuses at once where nothing waits: do not ask in a tight loop.
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// `progress: 3.0 s, 812.3 tps, lat 4.915 ms stddev 1.2, 0 failed`: transactions in that second and mean latency in ms.
fn progress(line: &str) -> Option<(f64, f64)> {
    let mut parts = line.strip_prefix("progress: ")?.split(", ");
    let tps = parts.nth(1)?.strip_suffix(" tps")?.parse().ok()?;
    let latency = parts.next()?.strip_prefix("lat ")?.split(' ').next()?.parse().ok()?;
    Some((tps, latency))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_progress_line_is_read() {
        let line = "progress: 3.0 s, 812.3 tps, lat 4.915 ms stddev 1.201, 0 failed";
        assert_eq!(progress(line), Some((812.3, 4.915)));
        assert_eq!(progress("pgbench (17.11)"), None);
    }
}
