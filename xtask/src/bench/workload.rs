//! What is measured: the list of workloads, and one measurement of one of them through one contender.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::contender::{Contender, Running};
use super::load::cpu::Spent;
use super::testbed::Testbed;
use super::{copy, echo, idle, limit, pgbench};

/// A kind of load and how many clients make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    pub kind: Kind,
    pub clients: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sessions that only stand: memory.
    Idle,
    /// 100 B request, 200 B reply, one in flight on each connection.
    Echo,
    /// Connect, startup, one request, close.
    Connections,
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
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::Echo,
        Self::Connections,
        Self::PgbenchSimple,
        Self::PgbenchPrepared,
        Self::PgbenchConnect,
        Self::CopyOut,
        Self::CopyIn,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Echo => "echo",
            Self::Connections => "connections",
            Self::PgbenchSimple => "pgbench-simple",
            Self::PgbenchPrepared => "pgbench-prepared",
            Self::PgbenchConnect => "pgbench-connect",
            Self::CopyOut => "copy-out",
            Self::CopyIn => "copy-in",
        }
    }

    /// Client counts measured.
    fn clients(self) -> &'static [usize] {
        match self {
            Self::Idle => &[10_000],
            Self::Echo => &[1, 16, 128, 1000],
            Self::Connections => &[16],
            Self::PgbenchSimple | Self::PgbenchPrepared => &[1, 16, 64],
            Self::PgbenchConnect => &[8],
            Self::CopyOut | Self::CopyIn => &[1],
        }
    }

    /// Unit of the throughput.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Idle => "sessions",
            Self::Echo => "requests/s",
            Self::Connections => "connections/s",
            Self::PgbenchSimple | Self::PgbenchPrepared | Self::PgbenchConnect => "transactions/s",
            Self::CopyOut | Self::CopyIn => "MB/s",
        }
    }

    pub fn needs_postgres(self) -> bool {
        !matches!(self, Self::Idle | Self::Echo | Self::Connections)
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
        name == self.kind.name() || name == format!("{}-{}", self.kind.name(), self.clients)
    }

    /// One measurement through a freshly started contender.
    pub fn measure(&self, contender: Contender, testbed: &Testbed, time: Time) -> Result<Sample> {
        let backends = if self.kind.needs_postgres() { testbed.pgbouncers() } else { testbed.echo_servers() };
        let running = Running::start(contender, testbed, backends)?;
        let path = Path { testbed, contender: &running };
        let sample = match self.kind {
            Kind::Idle => idle::measure(path, self.clients),
            Kind::Echo | Kind::Connections => echo::measure(path, *self, time),
            Kind::PgbenchSimple | Kind::PgbenchPrepared | Kind::PgbenchConnect => pgbench::measure(path, *self, time),
            Kind::CopyOut | Kind::CopyIn => copy::measure(path, self.kind, time),
        };
        let stopped = running.stop(contender);
        // If the contender died, that explains a failed load better than the load's own words.
        stopped.and(sample).with_context(|| format!("{self} through {}", contender.name()))
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

/// One measurement.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// In the kind's unit.
    pub throughput: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// Of the whole machine, for each operation: a request, connection, transaction or megabyte.
    pub cpu_us_per_op: Option<f64>,
    /// Share of the CPUs' time that the hypervisor kept, in percent.
    pub stolen_percent: Option<f64>,
    /// Share of the CPUs' time that programs beside the bench used, in percent.
    pub others_percent: Option<f64>,
    pub memory: Option<Memory>,
}

/// What idle sessions cost, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident memory of the contender's processes before the first session.
    pub rss_base: f64,
    /// Its growth for each session.
    pub rss_per_session: f64,
    /// Growth of the machine's kernel memory for each session, client's and server's sockets included.
    pub kernel_per_session: f64,
}

impl Sample {
    /// From `operations` done in the time and with the CPU of `spent`.
    pub fn of(operations: f64, spent: &Spent, cpus: usize) -> Self {
        Self {
            throughput: operations / spent.seconds,
            cpu_us_per_op: Some(spent.busy * 1e6 / operations),
            stolen_percent: Some(100.0 * spent.stolen / (spent.seconds * cpus as f64)),
            ..Self::default()
        }
    }
}

/// CPUs of this machine.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
