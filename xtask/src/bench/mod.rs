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
mod others;
mod pgbench;
mod report;
mod testbed;
mod workload;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use contender::Contender;
use others::Others;
use report::{Results, Row};
use testbed::Testbed;
use workload::{Sample, Time, Workload};

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
    /// How long to wait, before and again after each disturbed measurement, for other programs to leave the CPU [default: 20, quick: 0]
    #[arg(long, value_name = "SECONDS")]
    patience: Option<f64>,
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
    let patience = args.patience.unwrap_or(if args.quick { 0.0 } else { 20.0 });
    ensure!(patience >= 0.0, "--patience must not be below 0");
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
                let sample = undisturbed(patience, || workload.measure(contender, &testbed, time))?;
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
    note_noise(&rows);
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

/// Measures again while other programs disturb it and there is patience left, and keeps the calmest.
fn undisturbed(patience: f64, measure: impl Fn() -> Result<Sample>) -> Result<Sample> {
    let deadline = Instant::now() + Duration::from_secs_f64(patience);
    let mut calmest: Option<Sample> = None;
    loop {
        others::wait_until_calm(deadline);
        let before = Others::now();
        let mut sample = measure()?;
        let percent = before.percent_since();
        sample.others_percent = Some(percent);
        if calmest.as_ref().and_then(|calmest| calmest.others_percent).is_none_or(|least| percent < least) {
            calmest = Some(sample);
        }
        if let Some(calmest) = calmest.take_if(|_| percent <= others::CALM_PERCENT || Instant::now() >= deadline) {
            return Ok(calmest);
        }
    }
}

/// What the figures were taken on.
fn machine() -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    Ok(format!("Linux {}, {} CPUs", kernel.trim(), workload::cpus()))
}

fn note_noise(rows: &[Row]) {
    let busiest = rows.iter().filter_map(|row| row.others_percent).fold(0.0, f64::max);
    if busiest > others::CALM_PERCENT {
        println!("other programs used up to {busiest:.0} % of the CPUs during a workload; its figures are off");
    }
    let most = rows.iter().filter_map(|row| row.stolen_percent).fold(0.0, f64::max);
    if most >= 2.0 {
        println!("the hypervisor kept up to {most:.1} % of the CPUs' time from this machine; it is not in the figures");
    }
}
