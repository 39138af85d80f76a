//! `cargo xtask bench`: pgsplice beside HAProxy, Envoy and nginx in one run, on hosts that are network namespaces.
//!
//! Rounds interleave the contenders, so that a slow minute of the machine hits all of them; figures are medians over
//! the rounds. docs/bench.md says what each figure means.

mod contender;
mod copy;
mod echo;
mod idle;
mod limit;
pub mod load;
mod pgbench;
mod report;
mod testbed;
mod workload;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use contender::Contender;
use load::cpu::Reading;
use report::{Results, Row};
use testbed::Testbed;
use workload::{Time, Workload};

/// What the command line of `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Args {
    /// A smoke run of a minute or two: one round, short measurements, few workloads
    #[arg(long)]
    quick: bool,
    /// Rounds; figures are medians over them [default: 3, quick: 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each measurement, after a warm-up [default: 5, quick: 1.5]
    #[arg(long)]
    seconds: Option<f64>,
    /// Only these: echo for all its client counts, echo-16 for one
    #[arg(long, num_args = 1..)]
    workload: Vec<String>,
    /// Only these
    #[arg(long, num_args = 1.., value_enum)]
    contender: Vec<Contender>,
    /// Also write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Use the release build that is there
    #[arg(long)]
    no_build: bool,
}

/// What `--quick` measures unless `--workload` says otherwise.
const QUICK: [&str; 5] = ["echo-16", "connections", "pgbench-simple-16", "copy-out", "idle"];

/// Measures everything asked for, prints the table and writes the JSON. Fails, and says which, when a workload fails.
pub fn run(args: Args) -> Result<()> {
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 3 });
    let measured = args.seconds.unwrap_or(if args.quick { 1.5 } else { 5.0 });
    ensure!(rounds > 0 && measured > 0.0, "--rounds and --seconds must be above 0");
    let time = Time { warmup: if args.quick { 0.5 } else { 1.0 }, measured };
    let workloads = chosen_workloads(&args)?;
    let contenders = if args.contender.is_empty() { Contender::ALL.to_vec() } else { args.contender.clone() };

    let binaries = binaries(&args, &contenders)?;
    eprintln!("{}", machine()?);
    let testbed = Testbed::up(&binaries).context("cannot make the bench's hosts")?;
    let (ready, missing): (Vec<Contender>, Vec<Contender>) =
        contenders.iter().copied().partition(|contender| contender.is_installed(&testbed));
    for contender in &missing {
        eprintln!("{}: not installed (cargo xtask setup installs it)", contender.name());
    }
    testbed.start_echo()?;
    if workloads.iter().any(|workload| workload.kind.needs_postgres()) {
        testbed.start_postgres()?;
    }

    let mut results = Results::default();
    let began = Instant::now();
    for round in 0..rounds {
        for (number, &workload) in workloads.iter().enumerate() {
            for turn in 0..ready.len() {
                // Another one begins in each round and workload.
                let contender = ready[(turn + round + number) % ready.len()];
                let sample = workload.measure(contender, &testbed, time)?;
                eprintln!(
                    "{:4.0} s  round {}/{rounds}  {workload}, {}: {:.0} {}",
                    began.elapsed().as_secs_f64(),
                    round + 1,
                    contender.name(),
                    sample.throughput,
                    workload.kind.unit()
                );
                results.add(workload, contender, sample);
            }
        }
    }
    drop(testbed);

    let rows = results.rows(&workloads, &contenders, &missing);
    println!("{}", report::table(&rows));
    println!("{rounds} round{}, {measured} s each", if rounds == 1 { "" } else { "s" });
    note_steal(&rows);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn chosen_workloads(args: &Args) -> Result<Vec<Workload>> {
    let mut names: Vec<&str> = args.workload.iter().map(String::as_str).collect();
    if args.quick && names.is_empty() {
        names.extend(QUICK);
    }
    let all = Workload::all()?;
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|workload| workload.is_called(name))) {
        let known: Vec<String> = all.iter().map(|w| format!("{}-{}", w.kind.name(), w.clients)).collect();
        bail!("no workload {unknown:?}; there are {}", known.join(", "));
    }
    let wanted = |workload: &Workload| names.is_empty() || names.iter().any(|name| workload.is_called(name));
    Ok(all.into_iter().filter(wanted).collect())
}

/// Builds what runs on the hosts with optimisation, and says where it is.
fn binaries(args: &Args, contenders: &[Contender]) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is not in a workspace")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    if !args.no_build {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root).args(["build", "--release", "--locked", "-p", "xtask"]);
        if contenders.contains(&Contender::Relay) {
            cargo.args(["-p", "pgsplice"]);
        }
        let status = cargo.status().context("cannot run cargo")?;
        ensure!(status.success(), "the release build failed");
    }
    Ok(target.join("release"))
}

/// What the figures were taken on, with a warning if something else is running.
fn machine() -> Result<String> {
    let (before, cpus) = (Reading::now()?, workload::cpus());
    std::thread::sleep(Duration::from_secs(1));
    let spent = before.until(&Reading::now()?);
    let busy = 100.0 * spent.busy / (spent.seconds * cpus as f64);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    let mut text = format!("Linux {}, {cpus} CPUs", kernel.trim());
    if busy > 5.0 {
        text +=
            &format!("\nwarning: the machine is {busy:.0} % busy before the bench has begun; its figures will be off");
    }
    Ok(text)
}

fn note_steal(rows: &[Row]) {
    let most = rows.iter().filter_map(|row| row.stolen_percent).fold(0.0, f64::max);
    if most >= 2.0 {
        println!("the hypervisor kept up to {most:.1} % of the CPUs' time from this machine; it is not in the figures");
    }
}
