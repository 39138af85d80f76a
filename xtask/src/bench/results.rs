//! Everything measured in a run, round by round, and the pairs that comparisons are made of.

use serde::{Deserialize, Serialize};

use super::contender::{Contender, Entry};
use super::figure::{Figure, Sample};
use super::workload::Workload;

/// One measurement, or why there is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    #[serde(flatten)]
    pub workload: Workload,
    #[serde(flatten)]
    pub entry: Entry,
    /// Counted over all runs that were put together.
    pub round: usize,
    pub measured: Measured,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    Sample(Sample),
    /// A lost session, a wrong byte, a road not taken.
    Failed(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    records: Vec<Record>,
    /// Share of the CPUs that the hypervisor and other programs may take from a measurement before it is dropped from
    /// comparisons.
    calm_percent: f64,
}

/// What a comparison is made of: a value for each round that counts, and how many did not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    pub values: Vec<f64>,
    pub dropped: usize,
}

impl Results {
    pub fn new(calm_percent: f64) -> Self {
        Self { records: Vec::new(), calm_percent }
    }

    pub fn add(&mut self, workload: Workload, entry: Entry, round: usize, measured: Measured) {
        self.records.push(Record { workload, entry, round, measured });
    }

    /// Puts the rounds of another run behind these.
    pub fn append(&mut self, other: Self) {
        let first = self.rounds();
        self.records.extend(other.records.into_iter().map(|record| Record { round: first + record.round, ..record }));
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Rounds begun.
    pub fn rounds(&self) -> usize {
        self.records.iter().map(|record| record.round + 1).max().unwrap_or(0)
    }

    /// What was measured, in the order in which it was first.
    pub fn workloads(&self) -> Vec<Workload> {
        let mut all = Vec::new();
        for record in &self.records {
            if !all.contains(&record.workload) {
                all.push(record.workload);
            }
        }
        all
    }

    /// Who was measured under a workload, in the order of the contenders and their links.
    pub fn entries(&self, workload: Workload) -> Vec<Entry> {
        let of_it = self.records.iter().filter(|record| record.workload == workload);
        let mut all: Vec<Entry> = of_it.map(|record| record.entry).collect();
        all.sort_by_key(|entry| (entry.links, entry.contender));
        all.dedup();
        all
    }

    pub fn samples(&self, workload: Workload, entry: Entry) -> impl Iterator<Item = (usize, &Sample)> {
        self.of(workload, entry).filter_map(|record| match &record.measured {
            Measured::Sample(sample) => Some((record.round, sample)),
            Measured::Failed(_) => None,
        })
    }

    pub fn failures(&self, workload: Workload, entry: Entry) -> Vec<&str> {
        let failed = self.of(workload, entry).filter_map(|record| match &record.measured {
            Measured::Sample(_) => None,
            Measured::Failed(why) => Some(why.as_str()),
        });
        failed.collect()
    }

    fn of(&self, workload: Workload, entry: Entry) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| (record.workload, record.entry) == (workload, entry))
    }

    /// For each round in which all of these contenders were measured on the same links: what `compare` makes of their
    /// samples. A round in which one of them was disturbed is dropped.
    pub fn paired<const N: usize>(
        &self,
        workload: Workload,
        entries: [Entry; N],
        compare: impl Fn([&Sample; N]) -> Option<f64>,
    ) -> Series {
        self.series(workload, entries, self.calm_percent, compare)
    }

    /// The same with every round, for figures that no noise blurs.
    pub fn every<const N: usize>(
        &self,
        workload: Workload,
        entries: [Entry; N],
        compare: impl Fn([&Sample; N]) -> Option<f64>,
    ) -> Series {
        self.series(workload, entries, f64::INFINITY, compare)
    }

    fn series<const N: usize>(
        &self,
        workload: Workload,
        entries: [Entry; N],
        calm_percent: f64,
        compare: impl Fn([&Sample; N]) -> Option<f64>,
    ) -> Series {
        let mut series = Series::default();
        for round in 0..self.rounds() {
            let find = |entry| self.samples(workload, entry).find(|(of, _)| *of == round).map(|(_, sample)| sample);
            let found: Option<Vec<&Sample>> = entries.into_iter().map(find).collect();
            let Some(found) = found.and_then(|found| <[&Sample; N]>::try_from(found).ok()) else { continue };
            if found.iter().any(|sample| sample.lost_percent() > calm_percent) {
                series.dropped += 1;
            } else {
                series.values.extend(compare(found));
            }
        }
        series
    }

    /// Throughput as a share of another's.
    pub fn share(&self, workload: Workload, entry: Entry, of: Contender) -> Series {
        let rival = Entry { contender: of, ..entry };
        self.paired(workload, [entry, rival], |[mine, theirs]| {
            Some(mine.get(Figure::Throughput)? / theirs.get(Figure::Throughput)?)
        })
    }

    /// CPU for an operation above *direct*.
    pub fn extra_cpu(&self, workload: Workload, entry: Entry) -> Series {
        let direct = Entry { contender: Contender::Direct, ..entry };
        self.paired(workload, [entry, direct], |[mine, direct]| {
            Some(mine.get(Figure::CpuUsPerOp)? - direct.get(Figure::CpuUsPerOp)?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testbed::Links;
    use super::super::workload::Kind;
    use super::*;

    #[test]
    fn rounds_are_paired_and_disturbed_ones_dropped_and_counted() {
        let workload = Workload { kind: Kind::Echo, clients: 16 };
        let entry = |contender| Entry { contender, links: Links::Veth };
        let sample = |throughput, stolen| {
            let sample = Sample::default().with(Figure::Throughput, throughput).with(Figure::StolenPercent, stolen);
            Measured::Sample(sample)
        };
        let mut results = Results::new(4.0);
        for (round, (mine, stolen)) in [(90.0, 0.0), (80.0, 9.0), (50.0, 3.0)].into_iter().enumerate() {
            results.add(workload, entry(Contender::Direct), round, sample(100.0, 0.0));
            results.add(workload, entry(Contender::Tc), round, sample(mine, stolen));
        }
        results.add(workload, entry(Contender::Direct), 3, sample(100.0, 0.0));
        results.add(workload, entry(Contender::Tc), 3, Measured::Failed("a wrong byte".into()));
        let share = results.share(workload, entry(Contender::Tc), Contender::Direct);
        assert_eq!(share, Series { values: vec![0.9, 0.5], dropped: 1 });
        assert_eq!(results.failures(workload, entry(Contender::Tc)), ["a wrong byte"]);

        let text = serde_json::to_string(&results).unwrap();
        let mut twice: Results = serde_json::from_str(&text).unwrap();
        twice.append(results);
        assert_eq!(twice.rounds(), 8);
        assert_eq!(twice.share(workload, entry(Contender::Tc), Contender::Direct).values, [0.9, 0.5, 0.9, 0.5]);
    }
}
