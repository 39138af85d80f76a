//! `cargo xtask demo`: the data centre under pgbench while its primary moves and dies, with every gap measured.
//!
//! Nothing is hidden: a step that fails fails the command, and the lab is taken down either way.

mod load;
mod probe;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::cluster::FLEET_PORT;
use crate::lab::{Lab, LabSpec, default_id, interrupt, say};
use crate::{build, setup};
use load::Load;
use probe::Prober;

/// What the command line of `cargo xtask demo` takes.
#[derive(clap::Args)]
pub struct Args {
    /// pgbench clients
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Seconds of undisturbed load before, between and after the events
    #[arg(long, default_value_t = 6)]
    steady: u64,
    /// Take this machine as it is: no packages are looked at
    #[arg(long)]
    no_setup: bool,
}

/// Patroni's ttl in the lab, one loop, a promotion; and as long again.
const FAILOVER: Duration = Duration::from_secs(60);

/// One thing that was done to the cluster, and what it did to clients.
struct Event {
    what: String,
    /// From the last write that succeeded before to the first after.
    gap: Duration,
    probe_errors: usize,
    load_errors: usize,
}

pub fn run(args: Args) -> Result<()> {
    let begun = Instant::now();
    if !args.no_setup {
        setup::run(setup::Args::default())?;
    }
    let binaries = build::pgsplice("release")?;
    interrupt::remove_labs_and_exit()?;
    let lab = Lab::up(&LabSpec { binaries, ..LabSpec::full(format!("{}d", default_id())) }, say)?;
    let result = show(&lab, &args);
    if result.is_err() {
        print_logs(&lab);
    }
    drop(lab);
    println!("lab: down, nothing is left of it");
    let (events, transactions, errors) = result?;
    println!("\nsummary, {:.0} s in all", begun.elapsed().as_secs_f64());
    println!("  {transactions} pgbench transactions, {errors} clients of pgbench lost a transaction and began again");
    for event in events {
        println!(
            "  {:<44} no write for {:>5.2} s; {} of the prober's writes failed, {} pgbench clients",
            event.what,
            event.gap.as_secs_f64(),
            event.probe_errors,
            event.load_errors
        );
    }
    Ok(())
}

fn show(lab: &Lab, args: &Args) -> Result<(Vec<Event>, u64, usize)> {
    let conninfo = lab.conninfo(lab.proxy(), FLEET_PORT);
    println!("demo: pgbench -i");
    lab.client().run(["pgbench", "-i", "-q", "-s", "5", &conninfo])?;
    lab.sql(lab.proxy(), FLEET_PORT, "CREATE TABLE probe (at timestamptz)")?;
    let load = Load::start(lab, &conninfo, args.clients)?;
    let prober = Prober::start(lab, &conninfo)?;
    let mut table = Table::new(lab, &load, &prober);
    let steady = Duration::from_secs(args.steady);
    table.show_for("steady", steady)?;

    let mut events = Vec::new();
    let old = lab.leader()?.name().to_owned();
    let members = lab.members()?;
    let new = members.iter().find(|member| member.name != old && member.state == "streaming");
    let new = new.context("no replica is streaming")?.name.clone();
    events.push(table.event(format!("switchover {old} → {new}"), steady, |lab| lab.switchover(&new))?);

    let victim = lab.leader()?.name().to_owned();
    let kill = |lab: &Lab| lab.kill_postgres(lab.host(&victim), true);
    events.push(table.event(format!("kill -9 of {victim}'s PostgreSQL and Patroni"), steady, kill)?);

    let (transactions, errors) = (load.transactions(), load.errors());
    load.stop()?;
    prober.stop()?;
    Ok((events, transactions, errors))
}

/// A line a second.
struct Table<'a> {
    lab: &'a Lab,
    load: &'a Load,
    prober: &'a Prober,
    begun: Instant,
    lines: usize,
    /// When the next line is due.
    next: Instant,
}

impl<'a> Table<'a> {
    fn new(lab: &'a Lab, load: &'a Load, prober: &'a Prober) -> Self {
        let now = Instant::now();
        Self { lab, load, prober, begun: now, lines: 0, next: now }
    }

    fn show_for(&mut self, phase: &str, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.line(phase)?;
        }
        Ok(())
    }

    /// Does it, waits until a write succeeds that began after it and after the gap, and sums up.
    fn event(&mut self, what: String, steady: Duration, act: impl FnOnce(&Lab) -> Result<()> + Send) -> Result<Event> {
        let (probe_errors, load_errors) = (self.prober.errors(), self.load.errors());
        let begun = Instant::now();
        let lab = self.lab;
        std::thread::scope(|scope| -> Result<()> {
            let acting = scope.spawn(move || act(lab));
            while !acting.is_finished() {
                self.line(&what)?;
            }
            acting.join().map_err(|_| anyhow::anyhow!("{what}: it panicked"))?.with_context(|| what.clone())
        })?;
        // A death is noticed by Patroni only when its leader key has run out.
        self.show_for(&what, Duration::from_secs(2))?;
        while !self.prober.is_well() {
            if begun.elapsed() > FAILOVER {
                bail!("{what}: no write for {:.0} s", begun.elapsed().as_secs_f64());
            }
            self.line(&what)?;
        }
        self.show_for("steady", steady)?;
        Ok(Event {
            gap: self.prober.longest_gap_since(begun),
            probe_errors: self.prober.errors() - probe_errors,
            load_errors: self.load.errors() - load_errors,
            what,
        })
    }

    fn line(&mut self, phase: &str) -> Result<()> {
        self.next = (self.next + Duration::from_secs(1)).max(Instant::now());
        std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
        self.load.check()?;
        if self.lines.is_multiple_of(20) {
            println!(
                "\n{:>5}  {:>6}  {:>8}  {:>6}  {:<7}  {:<34}  what",
                "s", "tps", "latency", "errors", "primary", "sessions at"
            );
        }
        self.lines += 1;
        let status: Value = serde_json::from_str(&self.lab.pgsplice(&["status", "--json"])?)?;
        let backends: Value = serde_json::from_str(&self.lab.pgsplice(&["backends", "--pool", "rw", "--json"])?)?;
        let sessions: Vec<String> = backends["backends"]
            .as_array()
            .context("no backends in what pgsplice says")?
            .iter()
            .map(|one| format!("{} {}", one["name"].as_str().unwrap_or("?"), one["sessions"]))
            .collect();
        let (tps, latency) = self.load.last_second();
        println!(
            "{:>5.0}  {tps:>6.0}  {:>5.1} ms  {:>6}  {:<7}  {:<34}  {phase}",
            self.begun.elapsed().as_secs_f64(),
            latency,
            self.load.errors() + self.prober.errors(),
            status["clusters"][0]["primary"].as_str().unwrap_or("none"),
            sessions.join(", "),
        );
        Ok(())
    }
}

/// What may explain a failure, before the lab and its logs are gone.
fn print_logs(lab: &Lab) {
    for host in lab.net.hosts() {
        for service in host.services().unwrap_or_default() {
            eprintln!("--- {} on {}\n{}", service.name(), host.name(), service.log_tail(15));
        }
    }
}
