//! What a hand-off looks like on the wire: sessions by the ten thousand, captured at both ends, where nothing is lost.

mod analysis;
mod pcap;

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::crew::{Process, shares, together};
use super::figure::{Figure, Sample};
use super::load::client::Outcome;
use super::load::window::now;
use super::testbed::MEMORY;
use super::workload::{Kind, Path, Workload};
use crate::lab::{Host, Program, Service, until};
use analysis::{Analysis, Oddity};

/// Sessions at a time of each load process: few, so that no answer is late because the machine is busy.
const AT_ONCE: usize = 4;
/// tcpdump's buffer, in KiB: nothing may be lost in it.
const BUFFER: &str = "65536";
/// How long it may take to start and to end.
const START: Duration = Duration::from_secs(10);
/// It writes at least as often while it has something to write.
const QUIET: Duration = Duration::from_secs(2);
/// Oddities that are told one by one.
const EXAMPLES: usize = 5;

/// Lengths of the answers to the startup, one for each load process, and of the replies after it. The reply that a hand-off
/// holds back is the first of one segment: here always that to the startup, there the first short one after a long one.
const SHORT: ([usize; 2], &[&str]) = ([0, 1_350], &["200", "1350", "200", "200"]);
const LONG: ([usize; 2], &[&str]) = ([20_000, 9_000], &["20000", "200", "9000", "200", "20000"]);

/// Sessions of few requests, one after the other; the figures are sums over both ends.
pub fn measure(path: Path<'_>, workload: Workload) -> Result<Sample> {
    // A sender must not ask again for what is merely late. What is lost it still sends again, after 200 ms.
    path.testbed.probe_tails(false)?;
    let sample = capture(path, workload);
    path.testbed.probe_tails(true)?;
    sample
}

fn capture(path: Path<'_>, workload: Workload) -> Result<Sample> {
    path.contender.look()?;
    let captures = [Capture::start(path.testbed.client())?, Capture::start(path.testbed.backend())?];
    let began = now();
    let outcome = load(path, workload)?;
    let seconds = (now() - began) as f64 / 1e9;
    let mut sample = Sample::default().with(Figure::Throughput, outcome.done as f64 / seconds);
    let mut sums = [0.0; 6];
    for capture in captures {
        let analysis = capture.analyse(outcome.done)?;
        let counts = [Oddity::Retransmission, Oddity::OutOfOrder, Oddity::Reset, Oddity::Probe];
        let [retransmissions, out_of_order, resets, probes] = counts.map(|oddity| analysis.count(oddity));
        let counts = [retransmissions, out_of_order, resets, probes, analysis.at_the_ends(), analysis.packets as usize];
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count as f64);
    }
    let figures = [
        Figure::Retransmissions,
        Figure::OutOfOrder,
        Figure::Resets,
        Figure::Probes,
        Figure::AtTheEnds,
        Figure::Packets,
    ];
    for (figure, sum) in figures.into_iter().zip(sums) {
        sample = sample.with(figure, sum);
    }
    Ok(sample)
}

fn load(path: Path<'_>, workload: Workload) -> Result<Outcome> {
    let (welcomes, replies) = if workload.kind == Kind::TraceLong { LONG } else { SHORT };
    let processes = shares(workload.clients).into_iter().zip(welcomes).map(|((before, sessions), welcome)| {
        let (sessions, welcome) = (sessions.to_string(), welcome.to_string());
        let more = [&["--sessions", &sessions, "--welcome", &welcome, "--reply"], replies].concat();
        Process::generator(path, "churn", AT_ONCE, before, &more)
    });
    let processes = processes.collect::<Result<Vec<_>>>()?;
    let outcomes = processes.into_iter().map(Process::outcome).collect::<Result<Vec<_>>>()?;
    Ok(together(&outcomes))
}

/// A tcpdump at one end.
struct Capture {
    service: Service,
    /// What it writes, as this process reaches it.
    file: PathBuf,
}

impl Capture {
    fn start(host: &Host) -> Result<Self> {
        let (file, snap) = (format!("{MEMORY}/trace.pcap"), pcap::SNAP.to_string());
        // A log of its own: it is read for what this one says.
        let name = format!("tcpdump-{:x}", now());
        let argv = ["tcpdump", "-i", "eth0", "-n", "-Z", "root", "-s", &snap, "-B", BUFFER, "-w", &file, "tcp"];
        let service = host.spawn(Program::new(name, argv))?;
        let capture = Self { service, file: format!("/proc/{}/root{file}", host.holder()).into() };
        until("tcpdump to listen", START, || capture.service.log_tail(5).contains("listening on"))
            .with_context(|| capture.service.log_tail(5))?;
        Ok(capture)
    }

    /// What has been captured lies in a buffer until tcpdump comes to it, and is thrown away when it is told to end.
    fn drain(&self) -> Result<()> {
        let size = || Ok::<u64, std::io::Error>(fs::metadata(&self.file)?.len());
        let mut last = size()?;
        loop {
            sleep(QUIET);
            let now = size()?;
            if now == last {
                return Ok(());
            }
            last = now;
        }
    }

    /// Ends it. It must have seen every packet of `sessions` sessions.
    fn analyse(self, sessions: u64) -> Result<Analysis> {
        self.drain()?;
        self.service.stop(START)?;
        let said = self.service.log_tail(5);
        ensure!(said.contains("\n0 packets dropped by kernel"), "the capture is not whole: {said}");
        let host = self.service.host();
        let file = fs::read(&self.file).with_context(|| format!("the capture {}", self.file.display()))?;
        let analysis = Analysis::of(&pcap::segments(&file)?);
        if analysis.holes > 0 {
            bail!("{} bytes were never seen at {}, though later ones were", analysis.holes, host.name());
        }
        ensure!(analysis.connections >= sessions, "{} of {sessions} sessions at {}", analysis.connections, host.name());
        let odd = analysis.found.iter().filter(|found| found.in_the_middle);
        for found in odd.take(EXAMPLES) {
            let s = found.segment;
            eprintln!(
                "       at {}: {:?} {} → {}, {} bytes, {:.1} ms after the first byte",
                host.name(),
                found.oddity,
                s.from,
                s.to,
                s.length,
                found.after as f64 / 1000.0
            );
        }
        Ok(analysis)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.service.stop(START);
        let _ = fs::remove_file(&self.file);
    }
}
