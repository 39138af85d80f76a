//! What a run measures: workloads, contenders on their links, and how often.

use anyhow::{Result, bail};

use super::contender::{Contender, Entry};
use super::targets::TARGETS;
use super::testbed::Links;
use super::workload::{Time, Workload};

/// What `--quick` measures unless `--workload` and `--contender` say otherwise.
const QUICK: [&str; 5] = ["echo-16", "connections", "pgbench-simple-16", "copy-out", "idle"];
const QUICK_CONTENDERS: [Contender; 6] =
    [Contender::Direct, Contender::Relay, Contender::Auto, Contender::Haproxy, Contender::Envoy, Contender::Nginx];

/// About what a measurement takes besides its own time, in seconds: start, end, looking whether the machine is quiet.
const OVERHEAD: f64 = 2.5;

pub struct Plan {
    pub rounds: usize,
    pub time: Time,
    /// Each with those that are measured under it.
    pub workloads: Vec<(Workload, Vec<Entry>)>,
}

/// What was asked for.
pub struct Wishes<'a> {
    pub workloads: &'a [String],
    pub contenders: &'a [Contender],
    pub quick: bool,
}

impl Plan {
    pub fn new(rounds: usize, time: Time, wishes: &Wishes) -> Result<Self> {
        let contenders = match wishes.contenders {
            [] if wishes.quick => &QUICK_CONTENDERS,
            [] => Contender::ALL.as_slice(),
            some => some,
        };
        let workloads = chosen_workloads(wishes)?
            .into_iter()
            .map(|workload| (workload, entries(workload, contenders, wishes.quick)))
            .filter(|(_, entries)| !entries.is_empty())
            .collect();
        Ok(Self { rounds, time, workloads })
    }

    /// Every contender on its links that any workload needs.
    pub fn entries(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.workloads.iter().flat_map(|(_, entries)| entries.iter().copied()).collect();
        all.sort();
        all.dedup();
        all
    }

    pub fn links(&self) -> Vec<Links> {
        let mut all: Vec<Links> = self.entries().into_iter().map(|entry| entry.links).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Leaves out who cannot be measured.
    pub fn without(&mut self, missing: impl Fn(Entry) -> bool) {
        for (_, entries) in &mut self.workloads {
            entries.retain(|entry| !missing(*entry));
        }
        // Comparisons alone are not worth their time.
        self.workloads.retain(|(_, entries)| !entries.is_empty());
    }

    /// About how long it takes on a quiet machine, in seconds.
    pub fn seconds(&self) -> f64 {
        let measurements: usize = self.workloads.iter().map(|(_, entries)| entries.len()).sum();
        (self.rounds * measurements) as f64 * (self.time.warmup + self.time.measured + OVERHEAD)
    }
}

fn chosen_workloads(wishes: &Wishes) -> Result<Vec<Workload>> {
    let mut names: Vec<&str> = wishes.workloads.iter().map(String::as_str).collect();
    if wishes.quick && names.is_empty() {
        names.extend(QUICK);
    }
    let all = Workload::all()?;
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|workload| workload.is_called(name))) {
        let known: Vec<String> = all.iter().map(Workload::name).collect();
        bail!("no workload {unknown:?}; there are {}", known.join(", "));
    }
    let wanted = |workload: &Workload| names.is_empty() || names.iter().any(|name| workload.is_called(name));
    Ok(all.into_iter().filter(wanted).collect())
}

/// On each kind of links that one of `contenders` is at home on: those, *direct*, *direct* again, and whoever the targets
/// compare them with.
fn entries(workload: Workload, contenders: &[Contender], quick: bool) -> Vec<Entry> {
    let chosen: Vec<Contender> =
        contenders.iter().copied().filter(|contender| workload.kind.fits(*contender)).collect();
    let mut all = Vec::new();
    for links in [Links::Veth, Links::Wire, Links::Beside] {
        let at_home: Vec<Contender> = chosen.iter().copied().filter(|contender| contender.home() == links).collect();
        if at_home.is_empty() {
            continue;
        }
        let mut here = at_home.clone();
        here.extend(at_home.iter().flat_map(|contender| rivals(workload, *contender, &chosen)));
        here.extend(
            [Contender::Direct, Contender::DirectAgain]
                .into_iter()
                .filter(|direct| workload.kind.fits(*direct) && !(quick && *direct == Contender::DirectAgain)),
        );
        here.sort();
        here.dedup();
        all.extend(here.into_iter().map(|contender| Entry { contender, links }));
    }
    all
}

/// Those of `chosen` that a contender is compared with.
fn rivals(workload: Workload, contender: Contender, chosen: &[Contender]) -> Vec<Contender> {
    let targets = TARGETS.iter().filter(|target| target.is_for(workload, contender));
    let mut rivals: Vec<Contender> = targets.filter_map(|target| target.goal.opponent()).collect();
    if contender == Contender::Sockmap {
        // No target names it; what it stands against on one host is these.
        rivals.extend([Contender::Relay, Contender::Haproxy]);
    }
    rivals.retain(|rival| chosen.contains(rival));
    rivals
}

#[cfg(test)]
mod tests {
    use super::super::workload::Kind;
    use super::*;

    fn names(workload: Workload, contenders: &[Contender]) -> Vec<String> {
        entries(workload, contenders, false).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn who_is_at_home_elsewhere_brings_direct_and_its_rivals_there() {
        let echo = Workload { kind: Kind::Echo, clients: 16 };
        assert_eq!(names(echo, &[Contender::Haproxy]), ["direct", "direct-again", "haproxy"]);
        assert_eq!(
            names(echo, &[Contender::Xdp, Contender::Haproxy, Contender::Nginx]),
            [
                "direct",
                "direct-again",
                "haproxy",
                "nginx",
                "direct (wire)",
                "direct-again (wire)",
                "xdp (wire)",
                "haproxy (wire)"
            ]
        );
        assert_eq!(names(echo, &[Contender::Xdp]), ["direct (wire)", "direct-again (wire)", "xdp (wire)"]);
        let idle = Workload { kind: Kind::IdleSpliced, clients: 100_000 };
        assert_eq!(names(idle, &Contender::ALL), ["tc", "auto", "xdp (wire)"]);
    }

    #[test]
    fn a_workload_is_chosen_by_its_kind_or_with_its_clients_and_an_unknown_one_is_named() {
        let wishes = |names: &[&str]| -> Result<usize> {
            let workloads: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let wishes = Wishes { workloads: &workloads, contenders: &[], quick: false };
            Ok(chosen_workloads(&wishes)?.len())
        };
        assert_eq!(wishes(&["echo"]).unwrap(), 4);
        assert_eq!(wishes(&["echo-16", "connections"]).unwrap(), 2);
        assert!(wishes(&["eco"]).unwrap_err().to_string().contains("echo-16"));
    }
}
