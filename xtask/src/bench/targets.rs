//! What the splice is to reach, as data: each workload, who must reach it, and against whom.

use super::contender::Contender::{self, *};
use super::figure::Figure;
use super::workload::{Kind, Workload};

/// One requirement.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Kinds and client counts.
    pub workloads: &'static [(Kind, usize)],
    /// Whom it is asked of.
    pub contenders: &'static [Contender],
    pub goal: Goal,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Throughput with so many clients, as a share of another's in the same round.
    Throughput { at_least: f64, of: Contender },
    /// The same, and neither may leave the CPUs anything to do.
    Saturated { at_least: f64, of: Contender },
    /// CPU for an operation above *direct*, as a share of what another needs above *direct*, or no more than *direct* and
    /// *direct* differ by.
    ExtraCpu { at_most: f64, of: Contender },
    /// A figure of its own.
    Below { figure: Figure, bound: f64 },
    /// Together no more of these than another has.
    NoMoreThan { figures: &'static [Figure], of: Contender },
}

const SPLICES: &[Contender] = &[Auto, Tc, Xdp];
const ECHOES: &[(Kind, usize)] = &[(Kind::Echo, 16), (Kind::Echo, 128), (Kind::Echo, 1000)];
const PGBENCHES: &[(Kind, usize)] =
    &[(Kind::PgbenchSimple, 16), (Kind::PgbenchSimple, 64), (Kind::PgbenchPrepared, 16), (Kind::PgbenchPrepared, 64)];
const BULK: &[(Kind, usize)] = &[(Kind::CopyOut, 2), (Kind::CopyIn, 2), (Kind::StreamOut, 2), (Kind::StreamIn, 2)];
const CONNECTING: &[(Kind, usize)] = &[(Kind::Connections, 16), (Kind::PgbenchConnect, 8)];

/// All of them, in the order in which they are printed.
pub const TARGETS: &[Target] = &[
    Target { workloads: ECHOES, contenders: SPLICES, goal: Goal::ExtraCpu { at_most: 0.1, of: Haproxy } },
    Target { workloads: ECHOES, contenders: SPLICES, goal: Goal::ExtraCpu { at_most: 0.1, of: Envoy } },
    Target { workloads: ECHOES, contenders: SPLICES, goal: Goal::Saturated { at_least: 0.9, of: Direct } },
    Target { workloads: PGBENCHES, contenders: SPLICES, goal: Goal::Throughput { at_least: 0.97, of: Direct } },
    Target { workloads: PGBENCHES, contenders: SPLICES, goal: Goal::Throughput { at_least: 1.0, of: Haproxy } },
    Target { workloads: PGBENCHES, contenders: SPLICES, goal: Goal::Throughput { at_least: 1.0, of: Envoy } },
    Target { workloads: PGBENCHES, contenders: SPLICES, goal: Goal::Throughput { at_least: 1.0, of: Nginx } },
    // TC on veth is the best road here; XDP there has no big frames, and stands beside it for the record.
    Target { workloads: BULK, contenders: SPLICES, goal: Goal::Throughput { at_least: 0.95, of: Direct } },
    Target { workloads: BULK, contenders: SPLICES, goal: Goal::Throughput { at_least: 1.0, of: HaproxySplice } },
    Target { workloads: BULK, contenders: SPLICES, goal: Goal::Throughput { at_least: 1.0, of: Envoy } },
    Target { workloads: CONNECTING, contenders: &[Relay, Auto], goal: Goal::Throughput { at_least: 1.5, of: Haproxy } },
    Target {
        workloads: &[(Kind::IdleSpliced, 100_000)],
        contenders: SPLICES,
        goal: Goal::Below { figure: Figure::BytesPerSession, bound: 1024.0 },
    },
    Target {
        workloads: &[(Kind::Trace, 10_000), (Kind::TraceLong, 10_000)],
        contenders: &[Tc, Xdp],
        goal: Goal::NoMoreThan { figures: &[Figure::Retransmissions, Figure::OutOfOrder, Figure::Resets], of: Relay },
    },
];

impl Target {
    pub fn is_for(&self, workload: Workload, contender: Contender) -> bool {
        self.workloads.contains(&(workload.kind, workload.clients)) && self.contenders.contains(&contender)
    }
}

impl Goal {
    /// Who else must be measured in the same rounds.
    pub fn opponent(self) -> Option<Contender> {
        match self {
            Self::Throughput { of, .. }
            | Self::Saturated { of, .. }
            | Self::ExtraCpu { of, .. }
            | Self::NoMoreThan { of, .. } => Some(of),
            Self::Below { .. } => None,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Throughput { at_least, of } => write!(f, "throughput ≥ {at_least} of {}", of.name()),
            Self::Saturated { at_least, of } => write!(f, "throughput at saturation ≥ {at_least} of {}", of.name()),
            Self::ExtraCpu { at_most, of } => write!(f, "CPU over direct ≤ {at_most} of {}'s", of.name()),
            Self::Below { figure, bound } => write!(f, "{} < {bound}", figure.heading().0),
            Self::NoMoreThan { figures, of } => {
                let names: Vec<_> = figures.iter().map(|figure| figure.heading().0).collect();
                write!(f, "{}: no more than {}", names.join(" + "), of.name())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_about_a_workload_that_is_measured_with_all_it_needs() {
        let all = Workload::all().unwrap();
        for target in TARGETS {
            for &(kind, clients) in target.workloads {
                assert!(all.contains(&Workload { kind, clients }), "{target:?}");
                let parties = target.contenders.iter().copied().chain(target.goal.opponent());
                parties.for_each(|contender| assert!(kind.fits(contender), "{target:?}: {contender:?}"));
            }
        }
    }
}
