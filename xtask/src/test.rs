//! `cargo xtask test`: every test there is, on real servers, with one line at the end that says how many.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{build, ebpf, setup};

/// What the command line of `cargo xtask test` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Take this machine as it is: no packages are looked at
    #[arg(long)]
    no_setup: bool,
}

/// Tests of `tests/` that do not care which road a session takes, and the roads by which they are run besides the relay;
/// last, what is left out of them because it takes long and `sockmap.rs` has it smaller.
/// `cancel` has two pgsplices on a host, and an interface has room for one XDP program.
const PROOF: [(&str, &[&str], &[&str]); 3] = [
    ("tc", &["cancel", "copy", "drivers", "regress", "server_side"], &[]),
    ("xdp", &["copy", "drivers", "regress", "server_side"], &[]),
    ("sockmap", &["copy", "session"], &["short_sessions", "ten_thousand"]),
];

/// Tests at once for each CPU: most of their time they wait for elections, time limits and start-ups.
const TESTS_PER_CPU: usize = 2;

#[derive(Default)]
struct Count {
    passed: u32,
    failed: u32,
    ignored: u32,
}

pub fn run(args: Args) -> Result<()> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        bail!("the tests make network namespaces and load BPF programs: run them as root");
    }
    let begun = Instant::now();
    if !args.no_setup {
        setup::run(setup::Args::default())?;
    }
    ebpf::ensure()?;
    // The tests run the binary that lies beside them; of the same build, so that nothing is compiled twice.
    build::cargo(&["build", "--quiet", "--workspace"])?;
    let mut arguments = vec!["test", "--workspace", "--no-fail-fast"];
    if let Some(filter) = &args.filter {
        arguments.extend(["--", filter]);
    }
    let (mut count, mut ended_well) = counted(&arguments, None)?;
    // The same proof by the kernel's roads: real PostgreSQL, real drivers.
    for (road, tests, left_out) in PROOF {
        println!("\n== by {road} ==");
        let mut arguments = vec!["test", "--package", "pgsplice-tests", "--no-fail-fast"];
        arguments.extend(tests.iter().flat_map(|test| ["--test", *test]));
        arguments.push("--");
        arguments.extend(args.filter.as_deref());
        arguments.extend(left_out.iter().flat_map(|test| ["--skip", *test]));
        let (more, well) = counted(&arguments, Some(road))?;
        count.passed += more.passed;
        count.failed += more.failed;
        count.ignored += more.ignored;
        ended_well &= well;
    }
    println!("\ntests: {:.0} s", begun.elapsed().as_secs_f64());
    match count.ignored {
        0 => println!("{} passed, {} failed", count.passed, count.failed),
        ignored => println!("{} passed, {} failed, {ignored} skipped", count.passed, count.failed),
    }
    if count.failed > 0 || !ended_well {
        bail!("not every test passed");
    }
    if count.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Runs cargo with its output shown, and adds up what each test program says at its end.
fn counted(arguments: &[&str], road: Option<&str>) -> Result<(Count, bool)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| (TESTS_PER_CPU * cpus).to_string());
    let mut child = Command::new(cargo)
        .args(arguments)
        .env("RUST_TEST_THREADS", threads)
        .envs(road.map(|road| ("PGSPLICE_TEST_ROAD", road)))
        .current_dir(build::workspace())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut count = Count::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what cargo prints")?;
        println!("{line}");
        if let Some(result) = line.strip_prefix("test result: ") {
            count.add(result);
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    Ok((count, status.success()))
}

impl Count {
    /// `ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s`
    fn add(&mut self, result: &str) {
        let number = |name: &str| {
            let part = result.split([';', '.']).find_map(|part| part.trim().strip_suffix(name))?;
            part.trim().parse::<u32>().ok()
        };
        self.passed += number("passed").unwrap_or(0);
        self.failed += number("failed").unwrap_or(0);
        self.ignored += number("ignored").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let mut count = Count::default();
        count.add("ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s");
        count.add("FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 10.00s");
        assert_eq!((count.passed, count.failed, count.ignored), (14, 3, 1));
    }
}
