//! What idle sessions cost in memory: the contender's resident memory and the kernel's, before and with them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::load::client::{IDLE_ANSWERED, IDLE_STANDS};
use super::workload::{Memory, Path, Sample};

/// Between the last session and the reading, for buffers and RCU to be given back.
const SETTLE: Duration = Duration::from_secs(2);

pub fn measure(path: Path<'_>, sessions: usize) -> Result<Sample> {
    let before = Reading::now(path)?;
    let mut argv = vec!["/opt/pgsplice/xtask".to_owned(), "bench-client".to_owned()];
    argv.extend(["--pattern", "idle", "--connections", &sessions.to_string()].map(str::to_owned));
    for target in path.targets() {
        argv.extend(["--target".to_owned(), target.to_string()]);
    }
    let mut command = path.testbed.client().command(argv);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin of the load generator")?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout of the load generator")?).lines();
    let stands = lines.next().transpose()?;
    let with = if stands.as_deref() == Some(IDLE_STANDS) {
        sleep(SETTLE);
        let with = Reading::now(path)?;
        stdin.write_all(b"\n")?;
        Some(with)
    } else {
        None
    };
    let answered = lines.next().transpose()?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && answered.as_deref() == Some(IDLE_ANSWERED), "the load generator: {errors}");
    let with = with.context("the load generator said nothing")?;
    let each = |with: u64, before: u64| (with as f64 - before as f64) / sessions as f64;
    Ok(Sample {
        throughput: sessions as f64,
        memory: Some(Memory {
            rss_base: before.rss as f64,
            rss_per_session: each(with.rss, before.rss),
            kernel_per_session: each(with.kernel, before.kernel),
        }),
        ..Sample::default()
    })
}

/// In bytes.
struct Reading {
    rss: u64,
    kernel: u64,
}

impl Reading {
    fn now(path: Path<'_>) -> Result<Self> {
        let mut rss = 0;
        for pid in path.contender.pids() {
            let status =
                fs::read_to_string(format!("/proc/{pid}/status")).context("the contender's /proc/PID/status")?;
            rss += field(&status, "VmRSS:").context("VmRSS")?;
        }
        let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        // Sockets live in SUnreclaim; io_uring's and thread stacks' shares in the others.
        let kernel = ["SUnreclaim:", "KernelStack:", "PageTables:"]
            .into_iter()
            .map(|name| field(&meminfo, name).with_context(|| format!("/proc/meminfo has no {name}")))
            .sum::<Result<u64>>()?;
        Ok(Self { rss, kernel })
    }
}

/// The value of a `Name:   123 kB` line, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
