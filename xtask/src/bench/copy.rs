//! The bulk workloads with psql: a table is copied out, or the same rows in, over and over, by each load process.

use std::thread;

use anyhow::{Context, Result, ensure};

use super::crew::{between, shares};
use super::figure::Sample;
use super::load::window::{nanos, now};
use super::pgbench::conninfo;
use super::testbed::MEMORY;
use super::workload::{Kind, Path, Time, Workload};

/// The rows, on the client host.
const ROWS: &str = "/dev/shm/rows";

/// When one copy began and ended.
struct Copy {
    began: u64,
    ended: u64,
}

pub fn measure(path: Path<'_>, workload: Workload, time: Time) -> Result<Sample> {
    let size = fetch_rows(path)?;
    // The first one warms caches, is not counted, and is the one whose bytes are compared.
    compare(path, workload.kind)?;
    let processes = shares(workload.clients).len();
    let from = now() + nanos(time.warmup);
    let to = from + nanos(time.measured);
    let (spent, copies) = thread::scope(|scope| {
        let loops: Vec<_> = (0..processes)
            .map(|number| {
                scope.spawn(move || {
                    let mut copies = Vec::new();
                    while now() < to {
                        let began = now();
                        path.testbed.client().run(command(path, workload.kind, number))?;
                        copies.push(Copy { began, ended: now() });
                    }
                    anyhow::Ok(copies)
                })
            })
            .collect();
        let spent = between(path, from, to);
        let mut copies = Vec::new();
        for one in loops {
            copies.extend(one.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))??);
        }
        Ok::<_, anyhow::Error>((spent?, copies))
    })?;
    let bytes: f64 = copies.iter().map(|copy| copy.share_within(from, to) * size as f64).sum();
    Ok(Sample::of(bytes / 1e6, &spent))
}

impl Copy {
    /// The part of it that lies within a time, as if its bytes came evenly.
    fn share_within(&self, from: u64, to: u64) -> f64 {
        let within = self.ended.min(to).saturating_sub(self.began.max(from));
        within as f64 / (self.ended - self.began).max(1) as f64
    }
}

fn command(path: Path<'_>, kind: Kind, number: usize) -> Vec<String> {
    let target = conninfo(path.targets());
    let words = match kind {
        Kind::CopyIn => {
            let table = format!("bench_in{number}");
            vec!["-1".to_owned(), "-c".to_owned(), format!("TRUNCATE {table}"), "-c".to_owned(), bring(&table)]
        }
        _ => out("/dev/null"),
    };
    psql(words, target)
}

fn out(file: &str) -> Vec<String> {
    ["-o", file, "-c", "COPY bench_copy TO STDOUT"].map(str::to_owned).to_vec()
}

fn bring(table: &str) -> String {
    format!("\\copy {table} from '{ROWS}'")
}

fn psql(words: Vec<String>, target: String) -> Vec<String> {
    let mut argv = ["psql", "-Xq", "-v", "ON_ERROR_STOP=1"].map(str::to_owned).to_vec();
    argv.extend(words);
    argv.push(target);
    argv
}

/// Copies once through the contender, and compares what has arrived with what was sent.
fn compare(path: Path<'_>, kind: Kind) -> Result<()> {
    let host = path.testbed.client();
    if kind == Kind::CopyIn {
        host.run(command(path, kind, 0))?;
        let sum = |table| {
            path.testbed.sql("bench", &format!("SELECT count(*), sum(hashtextextended(filler, i)) FROM {table}"))
        };
        ensure!(sum("bench_in0")? == sum("bench_copy")?, "COPY FROM STDIN brought other rows than were sent");
        return Ok(());
    }
    let file = format!("{MEMORY}/out");
    host.run(psql(out(&file), conninfo(path.targets())))?;
    host.run(["cmp", &file, ROWS]).context("COPY TO STDOUT brought other bytes than the table has")?;
    host.run(["rm", &file])
}

/// The rows as a file on the client host, made the first time it is asked for, past the contender. Returns its size.
fn fetch_rows(path: Path<'_>) -> Result<u64> {
    let seen = path.testbed.on_client(ROWS);
    if !seen.exists() {
        let part = format!("{ROWS}.part");
        path.testbed.client().run(psql(out(&part), conninfo(&path.testbed.pgbouncers())))?;
        path.testbed.client().run(["mv", &part, ROWS])?;
    }
    Ok(seen.metadata().context("the rows for COPY")?.len())
}

#[cfg(test)]
mod tests {
    use super::Copy;

    #[test]
    fn a_copy_counts_by_the_part_within_the_time() {
        let copy = Copy { began: 100, ended: 200 };
        assert_eq!(copy.share_within(0, 300), 1.0);
        assert_eq!(copy.share_within(150, 300), 0.5);
        assert_eq!(copy.share_within(125, 175), 0.5);
        assert_eq!(copy.share_within(200, 300), 0.0);
    }
}
