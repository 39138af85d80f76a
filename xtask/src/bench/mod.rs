//! `cargo xtask bench`: pgsplice beside HAProxy, Envoy and nginx in one run, on hosts that are network namespaces.
//!
//! Rounds interleave the contenders, so that a slow minute of the machine hits all of them; figures are medians over
//! the rounds, and comparisons are made within rounds. docs/bench.md says what each figure means.

mod contender;
mod copy;
mod crew;
mod echo;
mod figure;
mod idle;
mod latency;
mod limit;
pub mod load;
mod metrics;
mod others;
mod pgbench;
mod plan;
mod report;
mod results;
mod running;
mod stats;
mod table;
mod targets;
mod testbed;
mod trace;
mod verdict;
mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::build;
use contender::{Contender, Entry};
use figure::{Figure, Sample};
use others::Others;
use plan::{Plan, Wishes};
use results::{Measured, Results};
use running::Missing;
use testbed::{Links, Testbed};
use workload::Time;

/// What the command line of `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Args {
    /// A smoke run of a minute or two: one round, short measurements, few workloads and contenders
    #[arg(long)]
    quick: bool,
    /// Rounds; figures are medians over them. A claim of a few per cent takes 20 [default: 7, quick: 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each measurement, after a warm-up [default: 10, quick: 1.5]
    #[arg(long)]
    seconds: Option<f64>,
    /// Only these: echo for all its client counts, echo-16 for one
    #[arg(long, num_args = 1..)]
    workload: Vec<String>,
    /// Only these, and direct
    #[arg(long, num_args = 1.., value_enum)]
    contender: Vec<Contender>,
    /// How much of the CPUs, in percent, the hypervisor and other programs may take from a measurement: one that lost
    /// more is made again while there is patience, and counts in no comparison
    #[arg(long, value_name = "PERCENT", default_value_t = 4.0)]
    calm: f64,
    /// How long to wait, before and again after each disturbed measurement, for other programs to leave the CPU [default: 20, quick: 0]
    #[arg(long, value_name = "SECONDS")]
    patience: Option<f64>,
    /// Also write the figures and every measurement to this file, anew after each round
    #[arg(long)]
    json: Option<PathBuf>,
    /// Go on from the rounds in these files of --json; with --rounds 0 only tell what they say
    #[arg(long, num_args = 1.., value_name = "FILE")]
    from: Vec<PathBuf>,
    /// Use the release build that is there
    #[arg(long)]
    no_build: bool,
}

/// After so many failures a contender is not tried again under that workload.
const FAILURES: usize = 3;

/// Measures everything asked for, prints the tables and writes the JSON. Fails, and says which, when a measurement failed.
pub fn run(args: Args) -> Result<()> {
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 7 });
    let measured = args.seconds.unwrap_or(if args.quick { 1.5 } else { 10.0 });
    let patience = args.patience.unwrap_or(if args.quick { 0.0 } else { 20.0 });
    ensure!(
        measured > 0.0 && patience >= 0.0 && args.calm >= 0.0,
        "--seconds, --patience and --calm must not be below 0"
    );
    ensure!(rounds > 0 || !args.from.is_empty(), "--rounds must be above 0");
    let time = Time { warmup: if args.quick { 0.5 } else { 1.0 }, measured };
    let mut results = Results::new(args.calm);
    for path in &args.from {
        results.append(read(path)?);
    }

    let mut missing = Vec::new();
    if rounds > 0 {
        let wishes = Wishes { workloads: &args.workload, contenders: &args.contender, quick: args.quick };
        let mut plan = Plan::new(rounds, time, &wishes)?;
        let binaries = binaries(&args, &plan)?;
        let testbeds = testbeds(&binaries, &plan)?;
        missing = who_is_missing(&plan, &testbeds)?;
        plan.without(|entry| missing.iter().any(|(missing, _)| *missing == entry));
        measure(&args, patience, &plan, &testbeds, &mut results)?;
    }
    tell(&args, &results, &missing)
}

/// One testbed for each kind of links.
fn testbeds(binaries: &Path, plan: &Plan) -> Result<BTreeMap<Links, Testbed>> {
    let mut testbeds = BTreeMap::new();
    for links in plan.links() {
        let testbed = Testbed::up(binaries, links).context("cannot make the bench's hosts")?;
        let needs_postgres = |(workload, entries): &(workload::Workload, Vec<Entry>)| {
            workload.kind.needs_postgres() && entries.iter().any(|entry| entry.links == links)
        };
        if plan.workloads.iter().any(needs_postgres) {
            testbed.start_postgres()?;
        }
        testbeds.insert(links, testbed);
    }
    Ok(testbeds)
}

fn who_is_missing(plan: &Plan, testbeds: &BTreeMap<Links, Testbed>) -> Result<Vec<(Entry, Missing)>> {
    let mut all = Vec::new();
    for entry in plan.entries() {
        let missing = running::missing(entry.contender, &testbeds[&entry.links])?;
        if let Some(missing) = missing {
            eprintln!("{entry}: {}", missing.note());
            all.push((entry, missing));
        }
    }
    Ok(all)
}

fn measure(
    args: &Args,
    patience: f64,
    plan: &Plan,
    testbeds: &BTreeMap<Links, Testbed>,
    results: &mut Results,
) -> Result<()> {
    eprintln!("about {:.0} minutes on a quiet machine", (plan.seconds() / 60.0).ceil());
    let began = Instant::now();
    let first = results.rounds();
    for round in 0..plan.rounds {
        for (number, (workload, entries)) in plan.workloads.iter().enumerate() {
            for turn in 0..entries.len() {
                // Another one begins in each round and workload.
                let entry = entries[(turn + round + number) % entries.len()];
                if results.failures(*workload, entry).len() >= FAILURES {
                    continue;
                }
                let patience = if workload.kind.is_exact() { 0.0 } else { patience };
                let work = || workload.measure(entry, &testbeds[&entry.links], plan.time);
                let measured = match undisturbed(patience, args.calm, work) {
                    Ok(sample) => Measured::Sample(sample),
                    Err(error) => Measured::Failed(format!("{error:#}")),
                };
                let said = match &measured {
                    Measured::Sample(sample) => {
                        let figure = sample.get(Figure::Throughput).unwrap_or_default();
                        format!("{figure:.0} {}", workload.kind.unit())
                    }
                    Measured::Failed(why) => format!("FAILED: {why}"),
                };
                let seconds = began.elapsed().as_secs_f64();
                eprintln!("{seconds:4.0} s  round {}/{}  {workload}, {entry}: {said}", round + 1, plan.rounds);
                results.add(*workload, entry, first + round, measured);
            }
        }
        if let Some(path) = &args.json {
            write(path, results, &[])?;
        }
    }
    Ok(())
}

/// Builds what runs on the hosts with optimisation, and says where it is.
fn binaries(args: &Args, plan: &Plan) -> Result<PathBuf> {
    if !args.no_build {
        build::cargo(&["build", "--release", "--locked", "-p", "xtask"])?;
        if plan.entries().iter().any(|entry| entry.contender.road().is_some()) {
            build::pgsplice("release")?;
        }
    }
    Ok(build::target().join("release"))
}

/// Measures again while something disturbs it and there is patience left, and keeps the calmest.
fn undisturbed(patience: f64, calm: f64, measure: impl Fn() -> Result<Sample>) -> Result<Sample> {
    let deadline = Instant::now() + Duration::from_secs_f64(patience);
    let mut calmest: Option<Sample> = None;
    loop {
        others::wait_until_calm(deadline, calm);
        let before = Others::now();
        let sample = measure()?;
        let sample = sample.with(Figure::OthersPercent, before.percent_since());
        if calmest.as_ref().is_none_or(|calmest| sample.lost_percent() < calmest.lost_percent()) {
            calmest = Some(sample);
        }
        let enough = |sample: &mut Sample| sample.lost_percent() <= calm || Instant::now() >= deadline;
        if let Some(calmest) = calmest.take_if(enough) {
            return Ok(calmest);
        }
    }
}

// === what it says ===

/// The file of `--json`.
#[derive(Serialize)]
struct Written<'a> {
    machine: String,
    /// What the intervals are made with.
    seed: u64,
    resamples: usize,
    rows: Vec<report::Row>,
    noise: Vec<verdict::Noise>,
    targets: Vec<verdict::Finding>,
    /// Every measurement: all of the above follows from it.
    results: &'a Results,
}

#[derive(Deserialize)]
struct Read {
    results: Results,
}

fn tell(args: &Args, results: &Results, missing: &[(Entry, Missing)]) -> Result<()> {
    let rows = report::rows(results, missing);
    println!("{}", report::table(&rows));
    let rounds = results.rounds();
    println!("{}; {rounds} round{}", machine()?, if rounds == 1 { "" } else { "s" });
    note_noise(&rows);
    print!("{}", report::noise_table(&verdict::noise(results)));
    print!("{}", report::verdict_table(&verdict::findings(results)));
    if let Some(path) = &args.json {
        write(path, results, missing)?;
    }
    let failed: usize = rows.iter().map(|row| row.failed).sum();
    println!(
        "\n{} measurements, {failed} with a lost session, a wrong byte or another failure",
        results.records().len()
    );
    if failed > 0 {
        let named = rows.iter().filter(|row| row.failed > 0);
        let named: Vec<String> = named.map(|row| format!("{} through {}", row.workload, row.entry)).collect();
        bail!("failed: {}", named.join("; "));
    }
    Ok(())
}

fn write(path: &Path, results: &Results, missing: &[(Entry, Missing)]) -> Result<()> {
    let written = Written {
        machine: machine()?,
        seed: stats::SEED,
        resamples: stats::RESAMPLES,
        rows: report::rows(results, missing),
        noise: verdict::noise(results),
        targets: verdict::findings(results),
        results,
    };
    let text = serde_json::to_string_pretty(&written)?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<Results> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read: Read =
        serde_json::from_slice(&text).with_context(|| format!("{} is no file of --json", path.display()))?;
    Ok(read.results)
}

/// What the figures were taken on.
fn machine() -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    Ok(format!("Linux {}, {} CPUs", kernel.trim(), workload::cpus()))
}

fn note_noise(rows: &[report::Row]) {
    let most = |figure| rows.iter().filter_map(|row| row.figures.get(&figure).copied()).fold(0.0, f64::max);
    let (others, stolen) = (most(Figure::OthersPercent), most(Figure::StolenPercent));
    if others >= 1.0 || stolen >= 1.0 {
        println!(
            "of the CPUs' time other programs took up to {others:.0} % during a workload, the hypervisor up to {stolen:.1} %"
        );
    }
    let dropped: usize = rows.iter().map(|row| row.dropped).max().unwrap_or(0);
    if dropped > 0 {
        println!("up to {dropped} rounds of a comparison were disturbed and do not count in it");
    }
}
