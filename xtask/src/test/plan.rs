//! Which test programs run, by which roads, and in which order.

use anyhow::Result;

use super::program::Program;
use super::run::{AtOnce, Job};

/// Programs that do not care which road a session takes, and the roads by which they are run besides the relay; last,
/// what is left out of them because it takes long and `tests/sockmap` has it smaller.
/// `cancel` has two pgsplices on a host, and an interface has room for one XDP program.
const ROADS: [(&str, &[&str], &[&str]); 3] = [
    ("tc", &["tests/cancel", "tests/copy", "tests/drivers", "tests/regress", "tests/server_side"], &[]),
    ("xdp", &["tests/copy", "tests/drivers", "tests/regress", "tests/server_side"], &[]),
    ("sockmap", &["tests/copy", "tests/session"], &["short_sessions", "ten_thousand"]),
];

/// They ask what happens within tenths of a second: nothing else runs meanwhile. They come first.
const ALONE: [&str; 4] = ["tests/pace", "tests/agent", "proxy/sockmap", "proxy/lib"];

/// Those that take longest, longest first: whoever began one of them last would wait for it at the end. Not beside
/// elections what needs every processor.
const LONG: [&str; 7] = [
    "tests/regress",
    "tests/splice",
    "tests/truth",
    "tests/failover",
    "tests/stores",
    "tests/session",
    "tests/server_side",
];

/// One test that keeps many processes at work.
const HEAVY: [&str; 1] = ["tests/regress"];

/// Every program that has a test this filter leaves, by each of its roads.
pub fn jobs<'p>(programs: &'p [Program], filter: Option<&str>, at_once: AtOnce) -> Result<Vec<Job<'p>>> {
    let relay = [("relay", programs.iter().collect::<Vec<_>>(), &[][..])];
    let others = ROADS.map(|(road, names, left_out)| {
        (road, programs.iter().filter(|program| names.contains(&&*program.name)).collect::<Vec<_>>(), left_out)
    });
    let mut jobs = Vec::new();
    for (road, programs, left_out) in relay.into_iter().chain(others) {
        let chosen = filter.into_iter().map(str::to_owned);
        let skipped = left_out.iter().flat_map(|test| ["--skip".to_owned(), (*test).to_owned()]);
        let arguments: Vec<String> = chosen.chain(skipped).collect();
        for program in programs {
            let tests = program.count(&arguments)?;
            if tests > 0 {
                let threads = tests.min(at_once.0);
                let weight = if HEAVY.contains(&&*program.name) { at_once.0.min(2) } else { 1 };
                let alone = ALONE.contains(&&*program.name);
                jobs.push(Job { program, road, arguments: arguments.clone(), tests, threads, weight, alone });
            }
        }
    }
    jobs.sort_by_key(|job| rank(&job.program.name));
    Ok(jobs)
}

/// What comes first is smallest.
fn rank(name: &str) -> usize {
    let place = |names: &[&str]| names.iter().position(|one| *one == name);
    place(&ALONE).or_else(|| Some(ALONE.len() + place(&LONG)?)).unwrap_or(ALONE.len() + LONG.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_must_be_alone_come_first_then_the_long_ones() {
        let mut names = ["tests/lab", "tests/truth", "proxy/lib", "tests/splice", "tests/copy"];
        names.sort_by_key(|name| rank(name));
        assert_eq!(names, ["proxy/lib", "tests/splice", "tests/truth", "tests/lab", "tests/copy"]);
    }
}
