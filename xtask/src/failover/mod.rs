//! `cargo xtask failover`: what clients notice when the primary moves or dies, through pgsplice and beside it through
//! HAProxy with Patroni's own template, in one lab. docs/bench.md says what each figure means.

mod attempts;
mod load;
mod trace;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::cluster::{FLEET_PORT, NODE_LOCAL_PORT, SCOPE};
use crate::lab::{self, Host, Lab, LabSpec, Program, interrupt};
use crate::{build, setup};

use attempts::{Attempts, Way, now};

/// What the command line of `cargo xtask failover` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Switchovers whose new connections are timed
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// The binary of `cargo build` instead of that of `cargo build --release`
    #[arg(long)]
    debug: bool,
    /// Take this machine as it is: no packages are looked at
    #[arg(long)]
    no_setup: bool,
    /// Only these parts
    #[arg(long, num_args = 1.., value_enum)]
    only: Vec<Part>,
    /// With each switchover of `connect`, what pgsplice and the agents logged around it
    #[arg(long)]
    trace: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// New connections after switchovers
    Connect,
    /// Switchovers under pgbench
    Load,
    /// The primary's machine is cut off, and its Patroni killed
    Death,
}

/// Between two new connections by one way, while switchovers are timed.
const EVERY: Duration = Duration::from_millis(100);
const HAPROXY_PORT: u16 = 5000;
const WAYS: [Way; 3] = [
    Way { name: "pgsplice, fleet", port: FLEET_PORT },
    Way { name: "pgsplice, node-local", port: NODE_LOCAL_PORT },
    Way { name: "HAProxy", port: HAPROXY_PORT },
];
/// The pools of the first ways.
const POOLS: [&str; 2] = ["rw", "local"];
/// For everything that Patroni's ttl does not decide.
const SOON: Duration = Duration::from_secs(60);
/// A member that was away finds its store again, is rewound, and follows.
const BACK: Duration = Duration::from_secs(180);

pub fn run(args: Args) -> Result<()> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        bail!("this makes network namespaces: run it as root");
    }
    if !args.no_setup {
        setup::run(setup::Args::default())?;
    }
    let binaries = build::pgsplice(if args.debug { "debug" } else { "release" })?;
    interrupt::remove_labs_and_exit()?;
    let lab = Lab::up(&LabSpec { binaries, ..LabSpec::full(lab::unique_id()) }, lab::say)?;
    start_haproxy(&lab)?;
    let ledger = "CREATE TABLE ledger (path text, timeline int, at timestamptz DEFAULT clock_timestamp())";
    lab.sql(lab.proxy(), FLEET_PORT, ledger)?;
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Connect) {
        connections(&lab, args.runs, args.trace).context("new connections")?;
    }
    if wanted(Part::Load) {
        load::table(&lab).context("switchovers under load")?;
    }
    if wanted(Part::Death) {
        deaths(&lab).context("the death of a primary")?;
    }
    Ok(())
}

fn start_haproxy(lab: &Lab) -> Result<()> {
    let server = |host: &&Host| format!("    server {} {}:5432 maxconn 100 check port 8008", host.name(), host.v4());
    let servers: Vec<String> = lab.postgres().iter().map(server).collect();
    let config = include_str!("haproxy.cfg").replace("@SERVERS@", &servers.join("\n"));
    lab.proxy().write("/etc/haproxy.cfg", config)?;
    lab.proxy().spawn(Program::new("haproxy", ["/usr/sbin/haproxy", "-db", "-f", "/etc/haproxy.cfg"]))?;
    lab::until_ok("HAProxy", SOON, || lab.sql(lab.proxy(), HAPROXY_PORT, "SELECT 1"))?;
    Ok(())
}

// === New connections ===

/// From the moment the new primary takes a write to the first row of a new connection, in milliseconds.
fn connections(lab: &Lab, runs: usize, trace: bool) -> Result<()> {
    let mut delays = WAYS.map(|_| Vec::new());
    let mut let_through = POOLS.map(|_| Vec::new());
    let mut failures = WAYS.map(|_| BTreeMap::<String, usize>::new());
    for run in 1..=runs {
        let (from, to) = settled(lab)?;
        let ways = start(lab, EVERY)?;
        let old = ways[0].timeline();
        let mut writable = watch(lab, lab.host(&to))?;
        sleep(Duration::from_secs(1));
        let event = now();
        // It returns when the new leader is there; nothing of ours asks anybody meanwhile.
        lab.patronictl(&["switchover", SCOPE, "--leader", &from, "--candidate", &to, "--force"])?;
        let firsts = firsts(&ways, event, old)?;
        let open = writable.wait()?;
        for (nth, first) in firsts.iter().enumerate() {
            delays[nth].push(first.saturating_sub(open) as f64 / 1e6);
            for (said, count) in ways[nth].failures(event, *first) {
                *failures[nth].entry(said).or_default() += count;
            }
        }
        for (pool, all) in POOLS.iter().zip(&mut let_through) {
            all.push(trace::let_through(lab, open, pool)?);
        }
        let said: Vec<String> = delays.iter().map(|all| format!("{:.0}", all.last().unwrap_or(&0.0))).collect();
        println!("switchover {run}/{runs} {from} to {to}: {} ms after it was writable", said.join(", "));
        if trace {
            trace::print(lab, open, firsts[0].max(firsts[1]))?;
        }
    }
    println!("\nnew connections after a switchover (patronictl), ms from the new primary's first write to theirs");
    println!("{:<22} {:>8} {:>8} {:>8} {:>18}", "", "median", "p99", "max", "failed connections");
    for (nth, way) in WAYS.iter().enumerate() {
        let [median, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(&mut delays[nth], share));
        println!("{:<22} {median:>8.1} {p99:>8.1} {max:>8.1} {:>18}", way.name, failures[nth].values().sum::<usize>());
    }
    println!(
        "of that until pgsplice lets new sessions through; the rest is the login at PgBouncer and PostgreSQL, and the row"
    );
    for (way, all) in WAYS.iter().zip(&mut let_through) {
        let [median, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(all, share));
        println!("{:<22} {median:>8.1} {p99:>8.1} {max:>8.1}", way.name);
    }
    for (way, failures) in WAYS.iter().zip(&failures) {
        failures.iter().for_each(|(said, count)| println!("{}: {count} × {said}", way.name));
    }
    Ok(())
}

/// Waits until the cluster is whole: who leads, and a replica that follows.
fn settled(lab: &Lab) -> Result<(String, String)> {
    lab::until_ok("the cluster to be whole", BACK, || {
        let members = lab.members()?;
        let leader = lab.leader()?.name().to_owned();
        let follow: Vec<_> = members.iter().filter(|member| member.state == "streaming").collect();
        ensure!(follow.len() == 2, "{} replicas follow", follow.len());
        for way in WAYS {
            lab.sql(lab.proxy(), way.port, "SELECT 1")?;
        }
        Ok((leader, follow[0].name.clone()))
    })
}

fn start(lab: &Lab, every: Duration) -> Result<Vec<Attempts>> {
    let ways = WAYS.into_iter().map(|way| Attempts::start(lab, way, every)).collect::<Result<Vec<_>>>()?;
    lab::until("the first rows", SOON, || ways.iter().all(|way| way.timeline() > 0))?;
    Ok(ways)
}

/// The first row of each way on a new timeline.
fn firsts(ways: &[Attempts], event: u64, old: u32) -> Result<Vec<u64>> {
    lab::until("every way to lead to the new primary", SOON, || {
        ways.iter().all(|way| way.first_on_new(event, old).is_some())
    })?;
    Ok(ways.iter().filter_map(|way| way.first_on_new(event, old)).collect())
}

/// A process on a PostgreSQL host that waits for its first write.
struct Writable(Child);

fn watch(lab: &Lab, host: &Host) -> Result<Writable> {
    let conninfo = lab.conninfo(host, 5432);
    let mut command = host.command(["python3", "-c", include_str!("writable.py"), &conninfo]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run python3")?;
    Ok(Writable(child))
}

impl Writable {
    /// When it was, in ns of CLOCK_MONOTONIC.
    fn wait(&mut self) -> Result<u64> {
        let mut said = String::new();
        BufReader::new(self.0.stdout.take().context("no output")?).read_line(&mut said)?;
        said.trim().parse().with_context(|| format!("writable.py said {said:?}"))
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === Deaths ===

fn deaths(lab: &Lab) -> Result<()> {
    println!("\nthe primary dies: s to the first row of a new connection on the next one (Patroni's ttl is 20 s)");
    println!("{:<34} {:>16} {:>22} {:>10}   ledger", "", WAYS[0].name, WAYS[1].name, WAYS[2].name);
    death(lab, "its machine is cut off", |victim| lab.net.cut(victim.name()), |victim| lab.net.heal(victim.name()))?;
    let patroni = |victim: &Host| victim.service("patroni");
    death(
        lab,
        "only its Patroni is killed",
        |victim| patroni(victim)?.kill(libc::SIGKILL),
        |victim| patroni(victim)?.restart(),
    )?;
    death(
        lab,
        "its Patroni is frozen (SIGSTOP)",
        |victim| patroni(victim)?.kill(libc::SIGSTOP),
        |victim| patroni(victim)?.kill(libc::SIGCONT),
    )
}

fn death(lab: &Lab, what: &str, act: impl Fn(&Host) -> Result<()>, undo: impl Fn(&Host) -> Result<()>) -> Result<()> {
    let (victim, _) = settled(lab)?;
    let ways = start(lab, Duration::from_millis(100))?;
    let old = ways[0].timeline();
    sleep(Duration::from_secs(2));
    let event = now();
    act(lab.host(&victim))?;
    let firsts = firsts(&ways, event, old)?;
    sleep(Duration::from_secs(2));
    let ledger = ledger(lab, &victim, old)?;
    drop(ways);
    let seconds: Vec<f64> = firsts.iter().map(|first| (first - event) as f64 / 1e9).collect();
    println!("{what:<34} {:>14.1} s {:>20.1} s {:>8.1} s   {ledger}", seconds[0], seconds[1], seconds[2]);
    undo(lab.host(&victim))?;
    Ok(())
}

/// What both nodes hold: whether the old primary took a row after the new one had taken its first.
fn ledger(lab: &Lab, victim: &str, old: u32) -> Result<String> {
    let of = |host: &Host, sql: &str| -> Result<String> {
        let said = host.output_as("postgres", ["psql", "-XAtq", "-d", "app", "-c", sql])?;
        Ok(said.trim().to_owned())
    };
    let new = lab::until_ok("the new primary", SOON, || lab.leader())?;
    let first = of(new, &format!("SELECT min(at) FROM ledger WHERE timeline > {old}"))?;
    let rows = format!("SELECT path, count(*) FROM ledger WHERE timeline = {old} AND at > '{first}' GROUP BY path");
    let late = lab::until_ok("the old primary to be readable", SOON, || of(lab.host(victim), &rows))?;
    Ok(match late.lines().map(|line| line.replace('|', " ")).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "no row at the old primary after the new one's first".into(),
        some => format!("ROWS AT THE OLD PRIMARY after the new one's first: {some}"),
    })
}

/// The nearest-rank percentile; 0 of nothing.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil().max(1.0) as usize;
    values.get(rank - 1).copied().unwrap_or(0.0)
}
