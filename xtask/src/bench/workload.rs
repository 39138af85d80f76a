//! What is measured: the list of workloads, and one measurement of one of them through one contender.

use std::net::SocketAddr;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::contender::{Contender, Entry};
use super::figure::{Figure, Sample};
use super::running::Running;
use super::testbed::Testbed;
use super::{copy, echo, idle, latency, limit, pgbench, trace};

/// A kind of load and how many clients make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    #[serde(rename = "workload")]
    pub kind: Kind,
    pub clients: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Sessions that only stand: memory.
    Idle,
    /// The same, more than user space could hold: only what the kernel forwards.
    IdleSpliced,
    /// 100 B request, 200 B reply, one in flight on each connection.
    Echo,
    /// Connect, startup, one request, close.
    Connections,
    /// The same to have as many hand-offs a second as there can be.
    Handoffs,
    /// Requests at a fixed rate while a thousand sessions a second come and go.
    Latency,
    /// Sessions of a few requests, captured at both ends; the answer to the startup fits into a segment.
    Trace,
    /// The same with long answers.
    TraceLong,
    /// `pgbench -S -M simple`.
    PgbenchSimple,
    /// `pgbench -S -M prepared`.
    PgbenchPrepared,
    /// `pgbench -S -C`: a connection for each transaction.
    PgbenchConnect,
    /// COPY TO STDOUT of a table.
    CopyOut,
    /// COPY FROM STDIN of the same rows.
    CopyIn,
    /// The same without PostgreSQL: as many bytes as go through.
    StreamOut,
    StreamIn,
}

impl Kind {
    pub const ALL: [Self; 15] = [
        Self::Idle,
        Self::IdleSpliced,
        Self::Echo,
        Self::Connections,
        Self::Handoffs,
        Self::Latency,
        Self::Trace,
        Self::TraceLong,
        Self::PgbenchSimple,
        Self::PgbenchPrepared,
        Self::PgbenchConnect,
        Self::CopyOut,
        Self::CopyIn,
        Self::StreamOut,
        Self::StreamIn,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::IdleSpliced => "idle-spliced",
            Self::Echo => "echo",
            Self::Connections => "connections",
            Self::Handoffs => "handoffs",
            Self::Latency => "latency",
            Self::Trace => "trace",
            Self::TraceLong => "trace-long",
            Self::PgbenchSimple => "pgbench-simple",
            Self::PgbenchPrepared => "pgbench-prepared",
            Self::PgbenchConnect => "pgbench-connect",
            Self::CopyOut => "copy-out",
            Self::CopyIn => "copy-in",
            Self::StreamOut => "stream-out",
            Self::StreamIn => "stream-in",
        }
    }

    /// Client counts measured.
    fn clients(self) -> &'static [usize] {
        match self {
            Self::Idle => &[10_000],
            Self::IdleSpliced => &[100_000],
            Self::Echo => &[1, 16, 128, 1000],
            Self::Connections => &[16],
            Self::Handoffs => &[64],
            Self::Latency => &[16],
            Self::Trace | Self::TraceLong => &[10_000],
            Self::PgbenchSimple | Self::PgbenchPrepared => &[1, 16, 64],
            Self::PgbenchConnect => &[8],
            Self::CopyOut | Self::CopyIn | Self::StreamOut | Self::StreamIn => &[2],
        }
    }

    /// Unit of the throughput.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Idle | Self::IdleSpliced => "sessions",
            Self::Echo => "requests/s",
            Self::Connections => "connections/s",
            Self::Handoffs => "hand-offs/s",
            Self::Latency | Self::Trace | Self::TraceLong => "sessions/s",
            Self::PgbenchSimple | Self::PgbenchPrepared | Self::PgbenchConnect => "transactions/s",
            Self::CopyOut | Self::CopyIn | Self::StreamOut | Self::StreamIn => "MB/s",
        }
    }

    pub fn is_bulk(self) -> bool {
        matches!(self, Self::CopyOut | Self::CopyIn | Self::StreamOut | Self::StreamIn)
    }

    pub fn needs_postgres(self) -> bool {
        matches!(
            self,
            Self::PgbenchSimple | Self::PgbenchPrepared | Self::PgbenchConnect | Self::CopyOut | Self::CopyIn
        )
    }

    /// What the table shows of it.
    pub fn columns(self) -> &'static [Figure] {
        use Figure::*;
        match self {
            Self::Idle => &[RssBaseBytes, RssBytesPerSession, KernelBytesPerSession],
            Self::IdleSpliced => {
                &[RssBaseBytes, RssBytesPerSession, MapBytesPerSession, BytesPerSession, KernelBytesPerSession]
            }
            Self::Latency => &[QuietP50Us, QuietP99Us, QuietP999Us, P50Us, P99Us, P999Us, CpuUsPerOp, IdlePercent],
            Self::Trace | Self::TraceLong => &[Packets, Retransmissions, OutOfOrder, Resets, Probes, AtTheEnds],
            kind if kind.is_bulk() => &[CpuUsPerOp, IdlePercent],
            _ => &[P50Us, P99Us, CpuUsPerOp, IdlePercent],
        }
    }

    /// Whether it says something about this contender.
    pub fn fits(self, contender: Contender) -> bool {
        let is_trace = matches!(self, Self::Trace | Self::TraceLong);
        let is_for_splices = is_trace || matches!(self, Self::IdleSpliced | Self::Handoffs);
        match contender {
            Contender::HaproxySplice => self.is_bulk(),
            Contender::DirectAgain => !is_for_splices && !self.is_exact(),
            Contender::Sockmap => !is_for_splices,
            // The control run.
            Contender::Relay => !is_for_splices || is_trace,
            // It does not hand off what goes at once.
            Contender::Auto => !is_trace && !matches!(self, Self::Handoffs),
            _ => !is_for_splices || contender.is_spliced(),
        }
    }

    /// Whether its figures are sizes and counts, which no noise blurs.
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Idle | Self::IdleSpliced | Self::Trace | Self::TraceLong)
    }

    /// Sessions for which the kernel's maps must have room where the default does not do: a session's entries stay 15 s
    /// behind its end.
    fn map_sessions(self, clients: usize) -> Option<usize> {
        match self {
            Self::IdleSpliced => Some(clients),
            Self::Connections | Self::Handoffs | Self::PgbenchConnect | Self::Latency => Some(250_000),
            _ => None,
        }
    }

    /// Whether its sessions are there all the time, so that their road can be seen when it is measured.
    fn stands(self) -> bool {
        matches!(
            self,
            Self::Idle
                | Self::IdleSpliced
                | Self::Echo
                | Self::PgbenchSimple
                | Self::PgbenchPrepared
                | Self::StreamOut
                | Self::StreamIn
        )
    }
}

impl Workload {
    /// Every workload; the count of idle sessions is what the limit on open files allows.
    pub fn all() -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for kind in Kind::ALL {
            for &clients in kind.clients() {
                let clients = if kind == Kind::Idle { limit::sessions(clients)? } else { clients };
                all.push(Self { kind, clients });
            }
        }
        Ok(all)
    }

    /// Whether `name` asks for it: `echo` is all client counts, `echo-16` one.
    pub fn is_called(&self, name: &str) -> bool {
        name == self.kind.name() || name == self.name()
    }

    pub fn name(&self) -> String {
        format!("{}-{}", self.kind.name(), self.clients)
    }

    /// One measurement through a freshly started contender.
    pub fn measure(&self, entry: Entry, testbed: &Testbed, time: Time) -> Result<Sample> {
        let crowd = (self.kind == Kind::IdleSpliced).then(|| testbed.start_crowd()).transpose()?;
        let backends = match self.kind {
            kind if kind.needs_postgres() => testbed.pgbouncers(),
            Kind::IdleSpliced => testbed.crowd_servers(),
            _ => testbed.echo_servers(),
        };
        let maps = self.kind.map_sessions(self.clients);
        let running = Running::start(entry.contender, testbed, &backends, maps)?;
        let path = Path { testbed, contender: &running };
        let sample = self.load(path, time);
        let sample = sample.and_then(|sample| running.with_road(sample, self.kind.stands().then_some(self.clients)));
        let stopped = running.stop();
        drop(crowd);
        // If the contender died, that explains a failed load better than the load's own words.
        stopped.and(sample)
    }

    fn load(&self, path: Path<'_>, time: Time) -> Result<Sample> {
        match self.kind {
            Kind::Idle => idle::measure(path, self.clients),
            Kind::IdleSpliced => idle::measure_crowd(path, self.clients),
            Kind::Echo | Kind::Connections | Kind::Handoffs | Kind::StreamOut | Kind::StreamIn => {
                echo::measure(path, *self, time)
            }
            Kind::Latency => latency::measure(path, self.clients, time),
            Kind::Trace | Kind::TraceLong => trace::measure(path, *self),
            Kind::PgbenchSimple | Kind::PgbenchPrepared | Kind::PgbenchConnect => pgbench::measure(path, *self, time),
            Kind::CopyOut | Kind::CopyIn => copy::measure(path, *self, time),
        }
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} client{}", self.kind.name(), self.clients, if self.clients == 1 { "" } else { "s" })
    }
}

/// The way from the client host to the backends.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    pub testbed: &'a Testbed,
    pub contender: &'a Running,
}

impl Path<'_> {
    pub fn targets(&self) -> &[SocketAddr] {
        &self.contender.targets
    }
}

/// How long to load, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    pub warmup: f64,
    pub measured: f64,
}

/// CPUs of this machine.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
