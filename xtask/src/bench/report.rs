//! From samples to figures: medians over the rounds, tables for people, JSON for programs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::contender::{Contender, Entry};
use super::figure::{Figure, Sample};
use super::results::{Results, Series};
use super::running::Missing;
use super::stats::{Estimate, MIN_ROUNDS, median};
use super::table::{align, number};
use super::verdict::{Finding, Noise, Verdict};
use super::workload::Workload;

/// Characters of the reason for a failure that fit into a table.
const NOTE: usize = 100;

/// The median figures of one contender under one workload.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub workload: Workload,
    #[serde(flatten)]
    pub entry: Entry,
    /// Measurements the medians are of.
    pub rounds: usize,
    /// Measurements that failed and have no figures.
    pub failed: usize,
    pub unit: &'static str,
    #[serde(flatten)]
    pub figures: BTreeMap<Figure, f64>,
    pub throughput_min: Option<f64>,
    pub throughput_max: Option<f64>,
    /// Throughput as a share of that contender's on the same links in the same round, of the rounds that were not disturbed.
    pub of_direct: Option<Estimate>,
    pub of_haproxy: Option<Estimate>,
    /// CPU for an operation minus that of *direct* on the same links in the same round.
    pub extra_cpu_us_per_op: Option<Estimate>,
    /// Rounds that were disturbed and count in none of the three.
    pub dropped: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A row for each workload and contender that was measured, and for those of `missing` that could not be.
pub fn rows(results: &Results, missing: &[(Entry, Missing)]) -> Vec<Row> {
    let mut rows = Vec::new();
    for workload in results.workloads() {
        let measured = results.entries(workload).into_iter().map(|entry| row(results, workload, entry));
        rows.extend(measured);
        let fits = |(entry, _): &&(Entry, Missing)| workload.kind.fits(entry.contender);
        rows.extend(
            missing
                .iter()
                .filter(fits)
                .map(|(entry, why)| Row { note: Some(why.note().to_owned()), ..row(results, workload, *entry) }),
        );
    }
    rows
}

fn row(results: &Results, workload: Workload, entry: Entry) -> Row {
    let samples: Vec<&Sample> = results.samples(workload, entry).map(|(_, sample)| sample).collect();
    let values = |figure| samples.iter().filter_map(|sample| sample.get(figure)).collect::<Vec<f64>>();
    let mut figures: BTreeMap<Figure, f64> = BTreeMap::new();
    for figure in samples.iter().flat_map(|sample| sample.figures()) {
        figures.extend(median(&values(figure)).map(|median| (figure, median)));
    }
    let against = |of| match entry.contender {
        same if same == of => Series::default(),
        _ => results.share(workload, entry, of),
    };
    let extra_cpu = match entry.contender {
        Contender::Direct => Series::default(),
        _ => results.extra_cpu(workload, entry),
    };
    let throughput = values(Figure::Throughput);
    let failures = results.failures(workload, entry);
    // All of it has been told when it happened, and is in the JSON.
    let note =
        failures.first().map(|first| first.lines().next().unwrap_or_default().chars().take(NOTE).collect::<String>());
    Row {
        workload,
        entry,
        rounds: samples.len(),
        failed: failures.len(),
        unit: workload.kind.unit(),
        figures,
        throughput_min: throughput.iter().copied().reduce(f64::min),
        throughput_max: throughput.iter().copied().reduce(f64::max),
        of_direct: Estimate::of(&against(Contender::Direct).values),
        of_haproxy: Estimate::of(&against(Contender::Haproxy).values),
        extra_cpu_us_per_op: Estimate::of(&extra_cpu.values),
        dropped: extra_cpu.dropped,
        note: note.map(|why| format!("failed: {why}")),
    }
}

/// The figures, a block for each workload.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    for block in rows.chunk_by(|a, b| a.workload == b.workload) {
        let Row { workload, unit, .. } = &block[0];
        out += &format!("\n{workload}\n");
        let columns = workload.kind.columns();
        let compared = block.iter().any(|row| row.figures.contains_key(&Figure::CpuUsPerOp));
        let on_road = block.iter().any(|row| row.figures.contains_key(&Figure::OnRoadPercent));
        let mut head = vec!["contender".to_owned(), (*unit).to_owned()];
        if compared {
            head.extend(["min–max", "of haproxy", "of direct"].map(str::to_owned));
        }
        head.extend(columns.iter().map(|figure| figure.heading().0.to_owned()));
        if compared {
            head.push("over direct".to_owned());
        }
        if on_road {
            head.push(Figure::OnRoadPercent.heading().0.to_owned());
        }
        let cells = |row: &Row| {
            let mut line = vec![row.entry.to_string()];
            if let Some(note) = &row.note {
                line.push(note.clone());
                return line;
            }
            let figure = |figure: &Figure| number(row.figures.get(figure).copied(), figure.heading().1);
            line.push(figure(&Figure::Throughput));
            if compared {
                let spread = row.throughput_min.zip(row.throughput_max).map(|(min, max)| format!("{min:.0}–{max:.0}"));
                line.push(spread.unwrap_or_default());
                line.extend([&row.of_haproxy, &row.of_direct].map(|share| number(share.map(|share| share.median), 2)));
            }
            line.extend(columns.iter().map(figure));
            if compared {
                line.push(number(row.extra_cpu_us_per_op.map(|extra| extra.median), 1));
            }
            if on_road {
                line.push(figure(&Figure::OnRoadPercent));
            }
            line
        };
        out += &align(&head, &block.iter().map(cells).collect::<Vec<_>>(), 1);
    }
    out
}

/// What two measurements of one thing differ by.
pub fn noise_table(noise: &[Noise]) -> String {
    if noise.is_empty() {
        return String::new();
    }
    let head = ["direct against direct", "links", "throughput", "CPU µs/op", "rounds", "dropped"].map(str::to_owned);
    let lines: Vec<Vec<String>> = noise
        .iter()
        .map(|noise| {
            vec![
                noise.workload.name(),
                noise.entry.links.name().to_owned(),
                interval(&noise.throughput, 3),
                noise.cpu_us.as_ref().map_or_else(|| "–".to_owned(), |cpu| interval(cpu, 2)),
                noise.throughput.rounds.to_string(),
                noise.dropped.to_string(),
            ]
        })
        .collect();
    format!("\nNoise\n{}", align(&head, &lines, 2))
}

/// The targets and what became of them.
pub fn verdict_table(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let head = ["target", "contender", "", "figure", "rounds", "verdict", "why"].map(str::to_owned);
    let lines: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| {
            let figure = finding.figure.as_ref();
            // What is per unit of something small needs more digits.
            let digits = figure.map_or(0, |figure| if figure.median.abs() < 100.0 { 3 } else { 0 });
            let rounds = figure.map_or(0, |figure| figure.rounds);
            let dropped = if finding.dropped > 0 { format!(" (−{})", finding.dropped) } else { String::new() };
            vec![
                finding.workload.name(),
                finding.entry.to_string(),
                finding.target.clone(),
                figure.map_or_else(|| "–".to_owned(), |figure| interval(figure, digits)),
                format!("{rounds}{dropped}"),
                match finding.verdict {
                    Verdict::Met => "met",
                    Verdict::Missed => "MISSED",
                    Verdict::NotResolved => "not resolved",
                }
                .to_owned(),
                finding.why.clone(),
            ]
        })
        .collect();
    format!("\nTargets\n{}", align(&head, &lines, 7))
}

/// `0.981 [0.974, 0.990]`, without the interval where there is none.
fn interval(estimate: &Estimate, digits: usize) -> String {
    let Estimate { median, low, high, rounds } = estimate;
    if *rounds < MIN_ROUNDS {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} [{low:.digits$}, {high:.digits$}]")
}

#[cfg(test)]
mod tests {
    use super::super::results::Measured;
    use super::super::testbed::Links;
    use super::super::workload::Kind;
    use super::*;

    #[test]
    fn rows_are_medians_and_comparisons_are_within_rounds_and_links() {
        let workload = Workload { kind: Kind::Echo, clients: 16 };
        let entry = |contender| Entry { contender, links: Links::Veth };
        let mut results = Results::new(4.0);
        let sample = |throughput, cpu| {
            let sample = Sample::default().with(Figure::Throughput, throughput).with(Figure::CpuUsPerOp, cpu);
            Measured::Sample(sample)
        };
        let rounds = [(1.0, 30.0, 50.0), (0.1, 20.0, 90.0), (2.0, 22.0, 60.0)];
        for (round, (speed, direct, haproxy)) in rounds.into_iter().enumerate() {
            results.add(workload, entry(Contender::Direct), round, sample(1000.0 * speed, direct));
            results.add(workload, entry(Contender::Haproxy), round, sample(500.0 * speed, haproxy));
            let elsewhere = Entry { links: Links::Wire, ..entry(Contender::Direct) };
            results.add(workload, elsewhere, round, sample(10.0, 1.0));
        }
        results.add(workload, entry(Contender::Nginx), 0, Measured::Failed("it died\nof age".to_owned()));
        let rows = rows(&results, &[(entry(Contender::Envoy), Missing::NotInstalled)]);
        let names: Vec<String> = rows.iter().map(|row| row.entry.to_string()).collect();
        assert_eq!(names, ["direct", "haproxy", "nginx", "direct (wire)", "envoy"]);
        let median = |estimate: &Option<Estimate>| estimate.map(|estimate| estimate.median);
        assert_eq!((rows[0].figures[&Figure::CpuUsPerOp], median(&rows[0].extra_cpu_us_per_op)), (22.0, None));
        assert_eq!((rows[1].figures[&Figure::CpuUsPerOp], median(&rows[1].extra_cpu_us_per_op)), (60.0, Some(38.0)));
        assert_eq!((median(&rows[1].of_direct), median(&rows[1].of_haproxy)), (Some(0.5), None));
        assert_eq!((median(&rows[0].of_haproxy), rows[2].failed), (Some(2.0), 1));
        let table = table(&rows);
        for part in ["echo, 16 clients", "0.50", "not installed", "failed: it died\n"] {
            assert!(table.contains(part), "{part}: {table}");
        }
    }
}
