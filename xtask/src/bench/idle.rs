//! What idle sessions cost in memory: the contender's resident memory, its BPF maps and the kernel's, before and with them.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use super::crew::Process;
use super::figure::{Figure, Sample};
use super::load::client::ANSWERED;
use super::load::window::STANDS;
use super::testbed::{CROWD, crowd_clients};
use super::workload::Path;

/// Between the last session and the reading, for buffers and RCU to be given back.
const SETTLE: Duration = Duration::from_secs(2);

/// As many sessions as one client process can hold.
pub fn measure(path: Path<'_>, sessions: usize) -> Result<Sample> {
    hold(path, sessions, || Ok(vec![Process::generator(path, "idle", sessions, 0, &[])?]))
}

/// More than that: each process has its own address.
pub fn measure_crowd(path: Path<'_>, sessions: usize) -> Result<Sample> {
    let start = || {
        let share = sessions / CROWD;
        let with_source = |(number, source): (usize, std::net::IpAddr)| {
            // Each begins at another server.
            Process::generator(path, "idle", share, number * share + number, &["--source", &source.to_string()])
        };
        crowd_clients().enumerate().map(with_source).collect()
    };
    let sample = hold(path, sessions, start)?;
    Ok(match (sample.get(Figure::MapBytesPerSession), sample.get(Figure::RssBytesPerSession)) {
        (Some(maps), Some(rss)) => sample.with(Figure::BytesPerSession, maps + rss),
        _ => sample,
    })
}

fn hold(path: Path<'_>, sessions: usize, start: impl FnOnce() -> Result<Vec<Process>>) -> Result<Sample> {
    let before = Reading::now(path)?;
    let mut processes = start()?;
    processes.iter_mut().try_for_each(|process| process.expect(STANDS))?;
    sleep(SETTLE);
    path.contender.look()?;
    let with = Reading::now(path)?;
    processes.iter_mut().try_for_each(|process| process.say("\n"))?;
    processes.iter_mut().try_for_each(|process| process.expect(ANSWERED))?;
    for process in processes {
        process.finish()?;
    }
    let each = |with: u64, before: u64| (with as f64 - before as f64) / sessions as f64;
    let sample = Sample::default()
        .with(Figure::Throughput, sessions as f64)
        .with(Figure::RssBaseBytes, before.rss as f64)
        .with(Figure::RssBytesPerSession, each(with.rss, before.rss))
        .with(Figure::KernelBytesPerSession, each(with.kernel, before.kernel));
    Ok(if with.maps == 0 { sample } else { sample.with(Figure::MapBytesPerSession, each(with.maps, 0)) })
}

/// In bytes.
struct Reading {
    rss: u64,
    kernel: u64,
    /// All BPF maps that the contender's processes hold open; they are as large as they will ever be.
    maps: u64,
}

impl Reading {
    fn now(path: Path<'_>) -> Result<Self> {
        let (mut rss, mut maps) = (0, BTreeMap::new());
        for pid in path.contender.pids() {
            let status =
                fs::read_to_string(format!("/proc/{pid}/status")).context("the contender's /proc/PID/status")?;
            rss += field(&status, "VmRSS:").context("VmRSS")? * 1024;
            maps.extend(bpf_maps(pid)?);
        }
        let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
        // Sockets live in SUnreclaim; io_uring's and thread stacks' shares in the others.
        let kernel = ["SUnreclaim:", "KernelStack:", "PageTables:"]
            .into_iter()
            .map(|name| field(&meminfo, name).with_context(|| format!("/proc/meminfo has no {name}")))
            .sum::<Result<u64>>()?;
        Ok(Self { rss, kernel: kernel * 1024, maps: maps.values().sum() })
    }
}

/// What each BPF map that a process holds takes, by the map's id (`bpf_map_show_fdinfo` in kernel/bpf/syscall.c).
fn bpf_maps(pid: i32) -> Result<BTreeMap<u64, u64>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("the contender's /proc/PID/fdinfo")? {
        // A descriptor may have been closed since the folder was read.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        if let (Some(id), Some(bytes)) = (field(&text, "map_id:"), field(&text, "memlock:")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps)
}

/// The number of a `Name:   123` line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn a_map_has_its_id_and_size_in_its_descriptor() {
        let text =
            "pos:\t0\nflags:\t02000002\nmap_type:\t1\nkey_size:\t36\nmemlock:\t9438208\nmap_id:\t47\nfrozen:\t0\n";
        assert_eq!((field(text, "map_id:"), field(text, "memlock:")), (Some(47), Some(9_438_208)));
        assert_eq!(field("VmRSS:\t  5120 kB\n", "VmRSS:"), Some(5120));
    }
}
