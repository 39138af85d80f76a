//! From samples to figures: medians over the rounds, a table for people, JSON for programs.

use serde::Serialize;

use super::contender::Contender;
use super::workload::{Sample, Workload};

/// The median figures of one contender under one workload.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub workload: &'static str,
    pub contender: &'static str,
    pub clients: usize,
    /// Measurements the medians are of; 0 when the contender is not installed.
    pub rounds: usize,
    pub throughput: Option<f64>,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub cpu_us_per_op: Option<f64>,
    /// `cpu_us_per_op` minus that of *direct* under the same workload.
    pub extra_cpu_us_per_op: Option<f64>,
    pub unit: &'static str,
    /// Throughput as a share of that contender's in the same round, the median over the rounds.
    pub of_direct: Option<f64>,
    pub of_haproxy: Option<f64>,
    pub throughput_min: Option<f64>,
    pub throughput_max: Option<f64>,
    pub stolen_percent: Option<f64>,
    pub others_percent: Option<f64>,
    pub rss_base_bytes: Option<f64>,
    pub rss_bytes_per_session: Option<f64>,
    pub kernel_bytes_per_session: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
}

/// Everything measured so far.
#[derive(Default)]
pub struct Results(Vec<(Workload, Contender, Vec<Sample>)>);

impl Results {
    pub fn add(&mut self, workload: Workload, contender: Contender, sample: Sample) {
        match self.0.iter_mut().find(|(w, c, _)| (*w, *c) == (workload, contender)) {
            Some((_, _, samples)) => samples.push(sample),
            None => self.0.push((workload, contender, vec![sample])),
        }
    }

    /// A row for each workload and contender, in that order; `missing` are those that could not be started.
    pub fn rows(&self, workloads: &[Workload], contenders: &[Contender], missing: &[Contender]) -> Vec<Row> {
        let mut rows = Vec::new();
        for &workload in workloads {
            let floor = self.row(workload, Contender::Direct).and_then(|row| row.cpu_us_per_op);
            for &contender in contenders {
                let mut row = match self.row(workload, contender) {
                    Some(row) => row,
                    None if missing.contains(&contender) => Row::missing(workload, contender),
                    None => continue,
                };
                if contender != Contender::Direct {
                    row.extra_cpu_us_per_op = row.cpu_us_per_op.zip(floor).map(|(cpu, floor)| round(cpu - floor));
                }
                rows.push(row);
            }
        }
        rows
    }

    fn samples(&self, workload: Workload, contender: Contender) -> Option<&[Sample]> {
        let (_, _, samples) = self.0.iter().find(|(w, c, _)| (*w, *c) == (workload, contender))?;
        Some(samples)
    }

    /// A slow minute hits a whole round, so that ratios within rounds are steadier than a ratio of medians.
    fn share(&self, workload: Workload, contender: Contender, of: Contender) -> Option<f64> {
        let (mine, theirs) = (self.samples(workload, contender)?, self.samples(workload, of)?);
        median(mine.iter().zip(theirs).map(|(mine, theirs)| mine.throughput / theirs.throughput)).map(round)
    }

    fn row(&self, workload: Workload, contender: Contender) -> Option<Row> {
        let samples = self.samples(workload, contender)?;
        let middle = |value: fn(&Sample) -> Option<f64>| median(samples.iter().filter_map(value)).map(round);
        let throughput = samples.iter().map(|sample| sample.throughput);
        Some(Row {
            rounds: samples.len(),
            throughput: middle(|sample| Some(sample.throughput)),
            p50_us: middle(|sample| sample.p50_us),
            p99_us: middle(|sample| sample.p99_us),
            cpu_us_per_op: middle(|sample| sample.cpu_us_per_op),
            of_direct: self.share(workload, contender, Contender::Direct),
            of_haproxy: self.share(workload, contender, Contender::Haproxy),
            throughput_min: throughput.clone().reduce(f64::min).map(round),
            throughput_max: throughput.reduce(f64::max).map(round),
            stolen_percent: middle(|sample| sample.stolen_percent),
            others_percent: middle(|sample| sample.others_percent),
            rss_base_bytes: middle(|sample| sample.memory.map(|memory| memory.rss_base)),
            rss_bytes_per_session: middle(|sample| sample.memory.map(|memory| memory.rss_per_session)),
            kernel_bytes_per_session: middle(|sample| sample.memory.map(|memory| memory.kernel_per_session)),
            note: None,
            ..Row::missing(workload, contender)
        })
    }
}

impl Row {
    fn missing(workload: Workload, contender: Contender) -> Self {
        Self {
            workload: workload.kind.name(),
            contender: contender.name(),
            clients: workload.clients,
            rounds: 0,
            throughput: None,
            p50_us: None,
            p99_us: None,
            cpu_us_per_op: None,
            extra_cpu_us_per_op: None,
            unit: workload.kind.unit(),
            of_direct: None,
            of_haproxy: None,
            throughput_min: None,
            throughput_max: None,
            stolen_percent: None,
            others_percent: None,
            rss_base_bytes: None,
            rss_bytes_per_session: None,
            kernel_bytes_per_session: None,
            note: Some("not installed"),
        }
    }
}

/// The table, a block for each workload.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    for block in rows.chunk_by(|a, b| (a.workload, a.clients) == (b.workload, b.clients)) {
        let Row { workload, clients, unit, .. } = block[0];
        let plural = if clients == 1 { "" } else { "s" };
        out += &format!("\n{workload}, {clients} client{plural}\n");
        let memory = block.iter().any(|row| row.rss_bytes_per_session.is_some());
        let lines: Vec<Vec<String>> = block
            .iter()
            .map(|row| match row.note {
                Some(note) => vec![row.contender.to_owned(), note.to_owned()],
                None if memory => memory_cells(row),
                None => cells(row),
            })
            .collect();
        let head: Vec<String> = if memory {
            ["contender", unit, "own memory MB", "own bytes/session", "kernel bytes/session"]
                .map(str::to_owned)
                .to_vec()
        } else {
            ["contender", unit, "min–max", "of haproxy", "of direct", "p50 µs", "p99 µs", "CPU µs/op", "over direct"]
                .map(str::to_owned)
                .to_vec()
        };
        out += &align(&head, &lines);
    }
    out
}

fn cells(row: &Row) -> Vec<String> {
    let spread = row.throughput_min.zip(row.throughput_max).map(|(min, max)| format!("{min:.0}–{max:.0}"));
    let number = |value: Option<f64>, digits: usize| value.map(|value| format!("{value:.digits$}"));
    let cells = [
        number(row.throughput, 0),
        spread,
        number(row.of_haproxy, 2),
        number(row.of_direct, 2),
        number(row.p50_us, 0),
        number(row.p99_us, 0),
        number(row.cpu_us_per_op, 1),
        number(row.extra_cpu_us_per_op, 1),
    ];
    with_name(row, cells)
}

fn memory_cells(row: &Row) -> Vec<String> {
    let number = |value: Option<f64>| value.map(|value| format!("{value:.0}"));
    let base = row.rss_base_bytes.map(|bytes| format!("{:.1}", bytes / 1e6));
    let cells = [number(row.throughput), base, number(row.rss_bytes_per_session), number(row.kernel_bytes_per_session)];
    with_name(row, cells)
}

fn with_name<const N: usize>(row: &Row, cells: [Option<String>; N]) -> Vec<String> {
    let mut line = vec![row.contender.to_owned()];
    line.extend(cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".to_owned())));
    line
}

/// The first column to the left, the others to the right.
fn align(head: &[String], lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        // A note in place of figures may be wider than its column.
        let figures = lines.iter().filter(|line| line.len() == head.len());
        figures.chain([&head.to_vec()]).map(|line| line[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for line in std::iter::once(head).chain(lines.iter().map(Vec::as_slice)) {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            out += &if column == 0 { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") };
        }
        out.push('\n');
    }
    out
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// To two decimals: what lies behind them is noise.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::super::workload::Kind;
    use super::*;

    fn sample(throughput: f64, cpu: f64) -> Sample {
        Sample { throughput, cpu_us_per_op: Some(cpu), ..Sample::default() }
    }

    #[test]
    fn rows_are_medians_and_the_extra_cpu_is_over_direct() {
        let workload = Workload { kind: Kind::Echo, clients: 16 };
        let mut results = Results::default();
        for (speed, direct, haproxy) in [(1.0, 30.0, 50.0), (0.1, 20.0, 90.0), (2.0, 22.0, 60.0)] {
            results.add(workload, Contender::Direct, sample(1000.0 * speed, direct));
            results.add(workload, Contender::Haproxy, sample(500.0 * speed, haproxy));
        }
        let contenders = [Contender::Direct, Contender::Haproxy, Contender::Envoy];
        let rows = results.rows(&[workload], &contenders, &[Contender::Envoy]);
        assert_eq!(rows.len(), 3);
        assert_eq!((rows[0].cpu_us_per_op, rows[0].extra_cpu_us_per_op), (Some(22.0), None));
        assert_eq!((rows[1].cpu_us_per_op, rows[1].extra_cpu_us_per_op), (Some(60.0), Some(38.0)));
        assert_eq!((rows[1].of_direct, rows[1].of_haproxy), (Some(0.5), Some(1.0)));
        assert_eq!((rows[2].rounds, rows[2].note), (0, Some("not installed")));
        let table = table(&rows);
        assert!(
            table.contains("echo, 16 clients") && table.contains("0.50") && table.contains("not installed"),
            "{table}"
        );
    }
}
