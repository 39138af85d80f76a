//! The numbers a measurement may have, and the measurement itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::load::cpu::Spent;
use super::load::histogram::Histogram;

/// A number of a measurement, by its key in the JSON. docs/bench.md says what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Operations a second, in the workload's unit.
    Throughput,
    P50Us,
    P99Us,
    P999Us,
    /// The same sessions before anything disturbed them.
    QuietP50Us,
    QuietP99Us,
    QuietP999Us,
    /// CPU of the whole machine for an operation.
    CpuUsPerOp,
    /// Share of the CPUs' time with nothing to do, in percent of what the hypervisor left.
    IdlePercent,
    /// Share of the CPUs' time that the hypervisor kept.
    StolenPercent,
    /// Share of the CPUs' time that programs beside the bench used.
    OthersPercent,
    /// Sessions of the contender that took the road it stands for.
    OnRoadPercent,
    /// Resident memory of the contender's processes before the first session.
    RssBaseBytes,
    /// Its growth for each session.
    RssBytesPerSession,
    /// Growth of the machine's kernel memory for each session, client's and server's sockets included.
    KernelBytesPerSession,
    /// The BPF maps of the contender.
    MapBytesPerSession,
    /// Maps and growth of resident memory together.
    BytesPerSession,
    /// What was seen on the wire at both ends, from the welcome to the last reply.
    Retransmissions,
    OutOfOrder,
    Resets,
    Probes,
    /// The same four together, before and after that.
    AtTheEnds,
    /// Packets captured.
    Packets,
}

impl Figure {
    /// As the head of a column, and how many digits it is worth behind the point.
    pub fn heading(self) -> (&'static str, usize) {
        match self {
            Self::Throughput => ("throughput", 0),
            Self::P50Us => ("p50 µs", 0),
            Self::P99Us => ("p99 µs", 0),
            Self::P999Us => ("p99.9 µs", 0),
            Self::QuietP50Us => ("quiet p50", 0),
            Self::QuietP99Us => ("quiet p99", 0),
            Self::QuietP999Us => ("quiet p99.9", 0),
            Self::CpuUsPerOp => ("CPU µs/op", 1),
            Self::IdlePercent => ("idle %", 0),
            Self::StolenPercent => ("stolen %", 1),
            Self::OthersPercent => ("others %", 1),
            Self::OnRoadPercent => ("on road %", 0),
            Self::RssBaseBytes => ("own bytes", 0),
            Self::RssBytesPerSession => ("own bytes/session", 0),
            Self::KernelBytesPerSession => ("kernel bytes/session", 0),
            Self::MapBytesPerSession => ("map bytes/session", 0),
            Self::BytesPerSession => ("bytes/session", 0),
            Self::Retransmissions => ("retransmissions", 0),
            Self::OutOfOrder => ("out of order", 0),
            Self::Resets => ("resets", 0),
            Self::Probes => ("probes", 0),
            Self::AtTheEnds => ("at the ends", 0),
            Self::Packets => ("packets", 0),
        }
    }
}

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample(BTreeMap<Figure, f64>);

impl Sample {
    /// From `done` operations within the time and with the CPU of `spent`.
    pub fn of(done: f64, spent: &Spent) -> Self {
        Self::default()
            .with(Figure::Throughput, done / spent.seconds)
            .with(Figure::CpuUsPerOp, spent.busy * 1e6 / done)
            .with(Figure::IdlePercent, spent.idle_percent())
            .with(Figure::StolenPercent, spent.stolen_percent())
    }

    pub fn with(mut self, figure: Figure, value: f64) -> Self {
        self.0.insert(figure, value);
        self
    }

    /// The percentiles of a workload's operations.
    pub fn with_latency(self, latency: &Histogram) -> Self {
        self.with_percentiles(latency, [(Figure::P50Us, 50.0), (Figure::P99Us, 99.0), (Figure::P999Us, 99.9)])
    }

    pub fn with_percentiles<const N: usize>(mut self, latency: &Histogram, which: [(Figure, f64); N]) -> Self {
        for (figure, percent) in which {
            self.0.extend(latency.percentile_us(percent).map(|value| (figure, value)));
        }
        self
    }

    pub fn get(&self, figure: Figure) -> Option<f64> {
        self.0.get(&figure).copied()
    }

    pub fn figures(&self) -> impl Iterator<Item = Figure> {
        self.0.keys().copied()
    }

    /// Share of the CPUs' time, in percent, that neither the bench nor nobody had.
    pub fn lost_percent(&self) -> f64 {
        self.get(Figure::StolenPercent).unwrap_or(0.0) + self.get(Figure::OthersPercent).unwrap_or(0.0)
    }
}
