//! Whether the targets are met, as far as the rounds can tell.

use serde::Serialize;

use super::contender::{Contender, Entry};
use super::figure::{Figure, Sample};
use super::results::{Results, Series};
use super::stats::{Estimate, MIN_ROUNDS, median};
use super::targets::{Goal, TARGETS};
use super::workload::Workload;

/// The CPUs are saturated when they have less than this to idle, in percent.
pub const SATURATED_PERCENT: f64 = 5.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The interval clears the target.
    Met,
    /// The interval lies on the other side of it.
    Missed,
    NotResolved,
}

/// A target, what was found, and what follows.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    #[serde(flatten)]
    pub workload: Workload,
    #[serde(flatten)]
    pub entry: Entry,
    pub target: String,
    /// The figure the target is about; none if it was not measured.
    pub figure: Option<Estimate>,
    pub verdict: Verdict,
    /// What the figure is held against where the target does not say it, and what would resolve what is not resolved.
    pub why: String,
    /// Rounds that were disturbed and do not count.
    pub dropped: usize,
}

/// What two measurements of the same thing differ by in this run.
#[derive(Clone, Debug, Serialize)]
pub struct Noise {
    #[serde(flatten)]
    pub workload: Workload,
    #[serde(flatten)]
    pub entry: Entry,
    /// Throughput of the one as a share of the other's.
    pub throughput: Estimate,
    /// CPU for an operation, the one less the other, in µs.
    pub cpu_us: Option<Estimate>,
    pub dropped: usize,
}

/// Every target whose parties were all measured.
pub fn findings(results: &Results) -> Vec<Finding> {
    let mut all = Vec::new();
    for workload in results.workloads() {
        let entries = results.entries(workload);
        // What is measured elsewhere than at home is there to be compared with.
        for &entry in entries.iter().filter(|entry| entry.links == entry.contender.home()) {
            for target in TARGETS.iter().filter(|target| target.is_for(workload, entry.contender)) {
                let is_there = |contender| entries.contains(&Entry { contender, ..entry });
                if target.goal.opponent().is_none_or(is_there) {
                    all.push(finding(results, workload, entry, target.goal));
                }
            }
        }
    }
    all
}

pub fn noise(results: &Results) -> Vec<Noise> {
    let mut all = Vec::new();
    for workload in results.workloads() {
        for entry in results.entries(workload) {
            if entry.contender != Contender::DirectAgain {
                continue;
            }
            let Series { values, dropped } = results.share(workload, entry, Contender::Direct);
            let Some(throughput) = Estimate::of(&values) else { continue };
            let cpu_us = Estimate::of(&results.extra_cpu(workload, entry).values);
            all.push(Noise { workload, entry, throughput, cpu_us, dropped });
        }
    }
    all
}

fn finding(results: &Results, workload: Workload, entry: Entry, goal: Goal) -> Finding {
    let mut judged = match goal {
        Goal::Throughput { at_least, of } => judge(&results.share(workload, entry, of), at_least, Side::Above),
        Goal::Saturated { at_least, of } => saturated(results, workload, entry, at_least, of),
        Goal::ExtraCpu { at_most, of } => extra_cpu(results, workload, entry, at_most, of),
        Goal::Below { figure, bound } => {
            judge_exact(&results.every(workload, [entry], |[mine]| mine.get(figure)), bound)
        }
        Goal::NoMoreThan { figures, of } => no_more_than(results, workload, entry, figures, of),
    };
    let failures = results.failures(workload, entry);
    if !failures.is_empty() {
        judged.verdict = Verdict::Missed;
        judged.why = format!("{} measurement{} failed", failures.len(), plural(failures.len()));
    }
    let Judged { figure, verdict, why, dropped } = judged;
    Finding { workload, entry, target: goal.to_string(), figure, verdict, why, dropped }
}

fn saturated(results: &Results, workload: Workload, entry: Entry, at_least: f64, of: Contender) -> Judged {
    let mut judged = judge(&results.share(workload, entry, of), at_least, Side::Above);
    for entry in [entry, Entry { contender: of, ..entry }] {
        let idle = results.paired(workload, [entry], |[sample]| sample.get(Figure::IdlePercent));
        if let Some(idle) = median(&idle.values).filter(|idle| *idle >= SATURATED_PERCENT) {
            judged.verdict = Verdict::NotResolved;
            judged.why = format!("{idle:.0} % idle with {}: takes more load", entry.contender.name());
        }
    }
    judged
}

fn extra_cpu(results: &Results, workload: Workload, entry: Entry, at_most: f64, of: Contender) -> Judged {
    let of_all = [Contender::Direct, of].map(|contender| Entry { contender, ..entry });
    let [direct, rival] = of_all;
    let compare = |value: fn(f64, f64, f64, f64) -> f64| {
        results.paired(workload, [entry, direct, rival], |[mine, direct, rival]| {
            let [mine, direct, rival] = [mine, direct, rival].map(|sample| sample.get(Figure::CpuUsPerOp));
            Some(value(mine?, direct?, rival?, at_most))
        })
    };
    let own = compare(|mine, direct, _, _| mine - direct);
    let rivals = compare(|_, direct, rival, _| rival - direct);
    let surplus = compare(|mine, direct, rival, at_most| mine - direct - at_most * (rival - direct));
    // Noise in itself is of use only with an interval.
    let again = results.extra_cpu(workload, Entry { contender: Contender::DirectAgain, ..entry });
    let floor = Estimate::of(&again.values).filter(|noise| noise.rounds >= MIN_ROUNDS);
    let floor = floor.map(|noise| noise.low.abs().max(noise.high.abs()));

    let by_share = judge(&surplus, 0.0, Side::Below);
    let by_floor = floor.map(|floor| judge(&own, floor, Side::Below));
    let verdicts = [Some(by_share.verdict), by_floor.map(|judged| judged.verdict)];
    let verdict = if verdicts.contains(&Some(Verdict::Met)) { Verdict::Met } else { by_share.verdict };
    // What misses the share may still lie within the noise.
    let open = verdict == Verdict::Missed && verdicts.contains(&Some(Verdict::NotResolved));
    let verdict = if open { Verdict::NotResolved } else { verdict };
    let mut why = median(&rivals.values).map_or_else(String::new, |rival| format!("allowed {:.2}", at_most * rival));
    if let Some(floor) = floor {
        why += &format!(", A/A {floor:.2}");
    }
    if verdict == Verdict::NotResolved && !by_share.why.is_empty() {
        why = format!("{}; {why}", by_share.why);
    }
    Judged { figure: Estimate::of(&own.values), verdict, why, dropped: surplus.dropped }
}

fn no_more_than(
    results: &Results,
    workload: Workload,
    entry: Entry,
    figures: &'static [Figure],
    of: Contender,
) -> Judged {
    let rival = Entry { contender: of, ..entry };
    let all = |sample: &Sample| figures.iter().map(|figure| sample.get(*figure)).sum::<Option<f64>>();
    let more = results.every(workload, [entry, rival], |[mine, theirs]| Some(all(mine)? - all(theirs)?));
    let own = results.every(workload, [entry, rival], |[mine, _]| all(mine));
    Judged { figure: Estimate::exact(&own.values), ..judge_exact(&more, 0.0) }
}

/// A finding before it is said what it is about.
struct Judged {
    figure: Option<Estimate>,
    verdict: Verdict,
    why: String,
    dropped: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The figure is to be at least the bound.
    Above,
    /// At most.
    Below,
}

/// Holds an interval against a bound.
fn judge(series: &Series, bound: f64, side: Side) -> Judged {
    let Some(figure) = Estimate::of(&series.values) else { return nothing(series) };
    let (met, missed) = match side {
        Side::Above => (figure.low >= bound, figure.high < bound),
        Side::Below => (figure.high <= bound, figure.low > bound),
    };
    let verdict = match (met, missed) {
        _ if figure.rounds < MIN_ROUNDS => Verdict::NotResolved,
        (true, _) => Verdict::Met,
        (_, true) => Verdict::Missed,
        _ => Verdict::NotResolved,
    };
    let why = match (verdict, figure.more_rounds(bound)) {
        (Verdict::NotResolved, Some(more)) => format!("takes about {more} more round{}", plural(more)),
        (Verdict::NotResolved, None) => "stands at the target: more rounds would not tell".to_owned(),
        _ => String::new(),
    };
    Judged { figure: Some(figure), verdict, why, dropped: series.dropped }
}

/// The same for a figure that no noise blurs, which is to be at most the bound.
fn judge_exact(series: &Series, bound: f64) -> Judged {
    let Some(figure) = Estimate::exact(&series.values) else { return nothing(series) };
    let verdict = if figure.median <= bound { Verdict::Met } else { Verdict::Missed };
    Judged { figure: Some(figure), verdict, why: String::new(), dropped: 0 }
}

fn nothing(series: &Series) -> Judged {
    let why = match series.dropped {
        0 => "was not measured in a round with all it takes".to_owned(),
        dropped => format!("{dropped} round{} and all disturbed: takes a quiet machine", plural(dropped)),
    };
    Judged { figure: None, verdict: Verdict::NotResolved, why, dropped: series.dropped }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::super::results::Measured;
    use super::super::testbed::Links;
    use super::super::workload::Kind;
    use super::*;

    const ECHO: Workload = Workload { kind: Kind::Echo, clients: 16 };

    fn on_veth(contender: Contender) -> Entry {
        Entry { contender, links: Links::Veth }
    }

    /// Rounds of one contender: throughput and CPU for an operation.
    fn add(results: &mut Results, contender: Contender, idle: f64, rounds: impl IntoIterator<Item = (f64, f64)>) {
        for (round, (throughput, cpu)) in rounds.into_iter().enumerate() {
            let sample = Sample::default()
                .with(Figure::Throughput, throughput)
                .with(Figure::CpuUsPerOp, cpu)
                .with(Figure::IdlePercent, idle);
            results.add(ECHO, on_veth(contender), round, Measured::Sample(sample));
        }
    }

    /// Eight rounds that differ by up to a per cent.
    fn near(throughput: f64, cpu: f64) -> impl Iterator<Item = (f64, f64)> {
        [0.99, 1.01, 1.0, 0.995, 1.005, 0.998, 1.002, 1.0].into_iter().map(move |f| (throughput * f, cpu / f))
    }

    fn verdict(results: &Results, goal: Goal) -> Finding {
        finding(results, ECHO, on_veth(Contender::Tc), goal)
    }

    const SHARE: Goal = Goal::Saturated { at_least: 0.9, of: Contender::Direct };
    const CPU: Goal = Goal::ExtraCpu { at_most: 0.1, of: Contender::Haproxy };

    #[test]
    fn a_target_is_met_missed_or_open_as_the_interval_lies() {
        for (throughput, idle, expected) in [
            (960.0, 1.0, Verdict::Met),
            (850.0, 1.0, Verdict::Missed),
            (901.0, 1.0, Verdict::NotResolved),
            // With CPU to spare the throughput says nothing.
            (960.0, 12.0, Verdict::NotResolved),
        ] {
            let mut results = Results::new(4.0);
            add(&mut results, Contender::Direct, 1.0, std::iter::repeat_n((1000.0, 20.0), 8));
            add(&mut results, Contender::Tc, idle, near(throughput, 20.0));
            let found = verdict(&results, SHARE);
            assert_eq!(found.verdict, expected, "{throughput}, {idle} % idle: {found:?}");
            assert_eq!(found.why.is_empty(), expected != Verdict::NotResolved, "{found:?}");
            // With so many clients it is what it is.
            if idle > 5.0 {
                let found = verdict(&results, Goal::Throughput { at_least: 0.9, of: Contender::Direct });
                assert_eq!(found.verdict, Verdict::Met, "{found:?}");
            }
        }
    }

    #[test]
    fn few_rounds_tell_nothing_and_say_how_many_would() {
        let mut results = Results::new(4.0);
        add(&mut results, Contender::Direct, 1.0, [(1000.0, 20.0); 3]);
        add(&mut results, Contender::Tc, 1.0, [(990.0, 20.0); 3]);
        let found = verdict(&results, SHARE);
        assert_eq!((found.verdict, found.why.as_str()), (Verdict::NotResolved, "takes about 3 more rounds"));
    }

    #[test]
    fn cpu_over_direct_is_held_against_the_rivals_and_the_noise() {
        let mut results = Results::new(4.0);
        add(&mut results, Contender::Direct, 1.0, near(1000.0, 20.0));
        add(&mut results, Contender::DirectAgain, 1.0, near(1000.0, 20.0).map(|(t, cpu)| (t, cpu + 0.2)));
        add(&mut results, Contender::Haproxy, 1.0, near(500.0, 40.0));
        for (extra, expected) in [(1.0, Verdict::Met), (4.0, Verdict::Missed), (-3.0, Verdict::Met)] {
            let mut results = results.clone();
            add(&mut results, Contender::Tc, 1.0, near(1000.0, 20.0).map(|(t, cpu)| (t, cpu + extra)));
            let found = verdict(&results, CPU);
            assert_eq!(found.verdict, expected, "{extra}: {found:?}");
            assert!(found.why.contains("allowed 2.0") && found.why.contains("A/A 0.2"), "{found:?}");
        }
    }

    #[test]
    fn one_failed_measurement_is_a_missed_target() {
        let mut results = Results::new(4.0);
        add(&mut results, Contender::Direct, 1.0, near(1000.0, 20.0));
        add(&mut results, Contender::Tc, 1.0, near(1000.0, 20.0));
        assert_eq!(verdict(&results, SHARE).verdict, Verdict::Met);
        results.add(ECHO, on_veth(Contender::Tc), 8, Measured::Failed("a wrong byte".into()));
        let found = verdict(&results, SHARE);
        assert_eq!((found.verdict, found.why.as_str()), (Verdict::Missed, "1 measurement failed"));
    }

    #[test]
    fn an_exact_figure_needs_one_round() {
        let mut results = Results::new(4.0);
        for (contender, resets) in [(Contender::Relay, 1.0), (Contender::Tc, 2.0)] {
            let sample = Sample::default().with(Figure::Resets, resets).with(Figure::OthersPercent, 50.0);
            results.add(ECHO, on_veth(contender), 0, Measured::Sample(sample));
        }
        let count = Goal::NoMoreThan { figures: &[Figure::Resets], of: Contender::Relay };
        assert_eq!(verdict(&results, count).verdict, Verdict::Missed);
        let bound = Goal::Below { figure: Figure::Resets, bound: 2.0 };
        assert_eq!(verdict(&results, bound).verdict, Verdict::Met);
    }
}
