//! `cargo xtask demo`: the whole data centre under load while its primary moves and dies, told line by line, and what it
//! cost those who wrote.

mod load;
pub(crate) mod probe;
mod table;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lab::cluster::{FLEET_PORT, NODE_LOCAL_PORT};
use crate::lab::{self, Host, Lab, LabSpec, interrupt};
use crate::{build, setup};

use load::Load;
use probe::Prober;

/// What the command line of `cargo xtask demo` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Number of pgbench clients
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// pgbench's scale: 100,000 rows each
    #[arg(long, default_value_t = 5)]
    scale: u32,
    /// Seconds of undisturbed load before, between and after the events
    #[arg(long, default_value_t = 8)]
    steady: u64,
    /// Take this machine as it is: no packages are looked at
    #[arg(long)]
    no_setup: bool,
    /// The binary of `cargo build` instead of that of `cargo build --release`
    #[arg(long)]
    debug: bool,
}

/// By then writes must go on after an event: Patroni's ttl of 20 s and twice as much again.
const RECOVERED: Duration = Duration::from_secs(60);

/// What runs during the demo.
struct Demo<'lab> {
    lab: &'lab Lab,
    load: Load,
    /// Through the fleet: its sessions outlive the primary.
    fleet: Prober,
    /// Through the PgBouncer on the primary's own host: its sessions are cut.
    local: Prober,
    /// How long the load runs undisturbed before and after each event.
    steady: Duration,
}

/// Something done to the primary, and the time in which its effect is looked for.
struct Event {
    what: String,
    from: Instant,
    to: Instant,
    /// pgbench clients that lost their connection.
    broken: usize,
}

pub fn run(args: Args) -> Result<()> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        bail!("the demo makes network namespaces: run it as root");
    }
    if !args.no_setup {
        setup::run(setup::Args::default())?;
    }
    let binaries = build::pgsplice(if args.debug { "debug" } else { "release" })?;
    interrupt::remove_labs_and_exit()?;
    let lab = Lab::up(&LabSpec { binaries, ..LabSpec::full(lab::unique_id()) }, lab::say)?;
    let outcome = demonstrate(&lab, &args);
    if outcome.is_err() {
        print_logs(&lab);
    }
    drop(lab);
    println!("lab: down, nothing is left of it");
    outcome
}

fn demonstrate(lab: &Lab, args: &Args) -> Result<()> {
    let begun = Instant::now();
    lab.sql(lab.proxy(), FLEET_PORT, "CREATE TABLE probe (prober text, number bigint, PRIMARY KEY (prober, number))")?;
    let conninfo = lab.conninfo(lab.proxy(), FLEET_PORT);
    lab.client().run(["pgbench", "-q", "-i", "-s", &args.scale.to_string(), &conninfo])?;
    println!("pgbench: scale {} made through pgsplice in {:.1} s", args.scale, begun.elapsed().as_secs_f64());

    let load = Load::start(lab, args.clients, FLEET_PORT)?;
    let fleet = Prober::start(lab, "fleet", FLEET_PORT)?;
    let local = Prober::start(lab, "local", NODE_LOCAL_PORT)?;
    let mut demo = Demo { lab, load, fleet, local, steady: Duration::from_secs(args.steady) };
    let started = Instant::now();
    let events = table::beside(&demo, || demo.play())?;
    let lasted = started.elapsed();
    demo.load.stop();
    demo.fleet.stop()?;
    demo.local.stop()?;
    demo.sum_up(&events, lasted)
}

impl Demo<'_> {
    fn play(&self) -> Result<Vec<Event>> {
        lab::until("the first writes", Duration::from_secs(20), || {
            self.fleet.silence().is_some() && self.local.silence().is_some()
        })?;
        thread::sleep(self.steady);
        let switched = self.switchover().context("the switchover")?;
        let killed = self.kill().context("the death of the primary")?;
        Ok(vec![switched, killed])
    }

    fn switchover(&self) -> Result<Event> {
        let from = self.lab.leader()?;
        let to = self.another(from)?;
        let what = format!("switchover {} to {}", from.name(), to.name());
        table::note(&format!("patronictl switchover: {} hands over to {}", from.name(), to.name()));
        self.event(what, || self.lab.switchover(to.name()))
    }

    fn kill(&self) -> Result<Event> {
        let victim = self.lab.leader()?;
        table::note(&format!("kill -9 of PostgreSQL and Patroni on {}: its lease of 20 s must run out", victim.name()));
        let event =
            self.event(format!("kill -9 of primary {}", victim.name()), || self.lab.kill_postgres(victim, true))?;
        table::note(&format!("Patroni is started again on {}", victim.name()));
        victim.service("patroni")?.restart()?;
        lab::until_ok(&format!("{} to follow the new primary", victim.name()), RECOVERED, || {
            let members = self.lab.members()?;
            let back = members.iter().find(|member| member.name == victim.name()).context("it is no member")?;
            if back.state != "streaming" {
                bail!("its state is {}", back.state);
            }
            Ok(())
        })?;
        table::note(&format!("{} follows the new primary", victim.name()));
        thread::sleep(self.steady);
        Ok(event)
    }

    /// Does something to the primary and waits until both probers write to the next one.
    fn event(&self, what: String, act: impl FnOnce() -> Result<()>) -> Result<Event> {
        let (from, broken) = (Instant::now(), self.load.errors());
        let timelines = (self.fleet.timeline(), self.local.timeline());
        act()?;
        lab::until("both probers to write to a new primary", RECOVERED, || {
            self.fleet.timeline() > timelines.0 && self.local.timeline() > timelines.1
        })?;
        thread::sleep(self.steady);
        Ok(Event { what, from, to: Instant::now(), broken: self.load.errors() - broken })
    }

    fn another(&self, host: &Host) -> Result<&Host> {
        self.lab.postgres().into_iter().find(|other| other.name() != host.name()).context("there is one member only")
    }

    fn sum_up(&self, events: &[Event], lasted: Duration) -> Result<()> {
        let total = self.load.total();
        println!("\n{:<28} {:>21} {:>21} {:>16}", "", "through the fleet", "primary's own bouncer", "pgbench clients");
        println!(
            "{:<28} {:>12} {:>8} {:>12} {:>8} {:>16}",
            "", "write gap", "errors", "write gap", "errors", "disconnected"
        );
        for event in events {
            let (fleet, local) = (self.fleet.gap(event.from, event.to), self.local.gap(event.from, event.to));
            print!("{:<28} {:>10.2} s {:>8}", event.what, fleet.0.as_secs_f64(), fleet.1);
            println!(" {:>10.2} s {:>8} {:>16}", local.0.as_secs_f64(), local.1, event.broken);
        }
        let tps = total.transactions / lasted.as_secs_f64();
        println!(
            "\npgbench: {:.0} transactions in {:.0} s, {tps:.0} a second with the gaps, {:.2} ms on average",
            total.transactions,
            lasted.as_secs_f64(),
            total.latency
        );
        print_errors("pgbench", &total.errors);
        print_errors("prober through the fleet", &self.fleet.errors());
        print_errors("prober through the primary's own PgBouncer", &self.local.errors());
        if total.transactions < 1.0 {
            bail!("pgbench did nothing");
        }
        self.check_rows(events)
    }

    /// What was acknowledged must be there: all of it after a switchover; after a crash only what the asynchronous
    /// replica had received, and it is said how much that was.
    fn check_rows(&self, events: &[Event]) -> Result<()> {
        let crash = events.last().map_or_else(Instant::now, |event| event.from);
        let leader = self.lab.leader()?;
        let (mut before, mut after) = (0, 0);
        for prober in [&self.fleet, &self.local] {
            let sql = format!("SELECT number FROM probe WHERE prober = '{}'", prober.name);
            let argv = ["psql", "-XAtq", "-d", "app", "-c", &sql];
            let rows = leader.output_as("postgres", argv)?;
            let rows: std::collections::BTreeSet<u64> = rows.lines().filter_map(|row| row.parse().ok()).collect();
            let acknowledged = prober.acknowledged(Instant::now());
            let early = prober.acknowledged(crash);
            println!("rows: {} acknowledged {}, {} there", prober.name, acknowledged.len(), rows.len());
            after += acknowledged.difference(&rows).count();
            // What the crash itself may take is the last moment before it.
            before += early.iter().rev().skip(100).filter(|number| !rows.contains(number)).count();
        }
        println!(
            "rows: {after} acknowledged and lost (replication is asynchronous here: a crash may lose the last ones)"
        );
        if before > 0 {
            bail!("{before} acknowledged rows from well before the crash are gone");
        }
        Ok(())
    }
}

fn print_errors(who: &str, errors: &BTreeMap<String, usize>) {
    for (said, count) in errors {
        println!("{who}: {count} × {said}");
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
