//! `cargo xtask lab up|status|down|exec|logs`: the whole data centre, left running in the background.

use std::io::Write as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde::Serialize;

use super::cluster::{
    APP_PASSWORD, BOUNCER_PORT, FLEET_PORT, Lab, LabSpec, Member, NODE_LOCAL_PORT, Proxy, REPLICA_PORT, Store,
};
use super::{Net, interrupt, state};

/// What the command line of `cargo xtask lab` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Name of the lab, if more than one shall run; by default one a checkout
    #[arg(long, global = true, env = "PGSPLICE_LAB")]
    id: Option<String>,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start the data centre and leave it running
    Up(Up),
    /// What runs, and who is primary
    Status(Status),
    /// End it and remove all of it
    Down,
    /// Run a command on one of its hosts
    Exec(Exec),
    /// What a host's servers wrote
    Logs(Logs),
}

#[derive(clap::Args)]
struct Up {
    /// The binary of `cargo build` instead of that of `cargo build --release`
    #[arg(long)]
    debug: bool,
    /// Everything but pgsplice and its agents
    #[arg(long)]
    no_pgsplice: bool,
    /// One PostgreSQL and three PgBouncers with a static pool, instead of a store and Patroni
    #[arg(long = "static")]
    static_fleet: bool,
    /// Where Patroni keeps its keys
    #[arg(long, value_enum, default_value_t, conflicts_with = "static_fleet")]
    store: Store,
}

#[derive(clap::Args)]
struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Exec {
    /// Name of the host, such as client, proxy1 or pg1
    host: String,
    /// The command, run as root on that host
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(clap::Args)]
struct Logs {
    /// Name of the host
    host: String,
    /// Only this server
    service: Option<String>,
    /// Go on as it is written
    #[arg(short, long)]
    follow: bool,
}

/// The lab as `status --json` prints it.
#[derive(Serialize)]
struct Report {
    id: String,
    hosts: Vec<HostReport>,
    /// As Patroni tells it; null without Patroni, or when no member answers.
    members: Option<Vec<Member>>,
}

#[derive(Serialize)]
struct HostReport {
    name: String,
    v4: String,
    v6: String,
    netns: String,
    services: Vec<ServiceReport>,
}

#[derive(Serialize)]
struct ServiceReport {
    name: String,
    pid: i32,
    running: bool,
    log: PathBuf,
}

pub fn run(args: Args) -> Result<()> {
    let id = args.id.unwrap_or_else(default_id);
    state::check_id(&id)?;
    match args.command {
        Verb::Up(options) => up(&id, &options),
        Verb::Status(options) => status(&id, options.json),
        Verb::Down => down(&id),
        Verb::Exec(exec) => run_inside(&id, &exec),
        Verb::Logs(logs) => show_logs(&id, &logs),
    }
}

/// One lab a checkout: its path makes the name.
pub fn default_id() -> String {
    // FNV-1a: a name that stays the same from build to build.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).as_os_str().as_encoded_bytes();
    let hash = path
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("d{:05x}", hash & 0xf_ffff)
}

/// Says how long each part took.
pub fn say(what: &str, after: std::time::Duration) {
    println!("lab: {:5.1} s  {what}", after.as_secs_f64());
    let _ = std::io::stdout().flush();
}

fn up(id: &str, options: &Up) -> Result<()> {
    let own = if id == default_id() { String::new() } else { format!(" --id {id}") };
    let own = format!("cargo xtask lab{own}");
    if Net::attach(id).is_ok() {
        println!("lab: {id} is up already; {own} down ends it");
        return status(id, false);
    }
    let mut spec = if options.static_fleet { LabSpec::static_fleet(id) } else { LabSpec::full(id) };
    spec.store = options.store;
    if options.no_pgsplice {
        spec.agents = false;
        spec.proxy = Proxy::None;
    } else {
        let profile = if options.debug { "debug" } else { "release" };
        spec.binaries = crate::build::pgsplice(profile)?;
    }
    interrupt::remove_labs_and_exit()?;
    let lab = Lab::up(&spec, say)?;
    lab.net.detach()?;
    println!("\nThe lab is up, and stays up until `{own} down`. From its client:");
    let (static_fleet, bouncer, proxy) = (options.static_fleet, ("bouncer1", BOUNCER_PORT), "proxy1");
    let ways: &[(&str, (&str, u16))] = match (options.no_pgsplice, static_fleet) {
        (true, _) => &[("the primary, past pgsplice", bouncer)],
        (false, true) => &[("PostgreSQL", (proxy, FLEET_PORT))],
        (false, false) => &[
            ("the primary, through the fleet", (proxy, FLEET_PORT)),
            ("a replica", (proxy, REPLICA_PORT)),
            ("the primary, through the PgBouncer on its own host", (proxy, NODE_LOCAL_PORT)),
        ],
    };
    for (what, (host, port)) in ways {
        println!("  {what}:\n    {own} exec client psql postgres://app:{APP_PASSWORD}@{host}:{port}/app");
    }
    println!("What runs: {own} status. What it wrote: {own} logs HOST.");
    Ok(())
}

fn down(id: &str) -> Result<()> {
    let was_up = state::folder(id).exists();
    Net::remove(id)?;
    println!("lab: {}", if was_up { "down, nothing is left of it" } else { "there was none" });
    Ok(())
}

fn status(id: &str, json: bool) -> Result<()> {
    let lab = Lab::attach(id)?;
    let mut hosts = Vec::new();
    for host in lab.net.hosts() {
        let services = host.services()?;
        let services = services.iter().map(|service| ServiceReport {
            name: service.name().to_owned(),
            pid: service.pid(),
            running: service.is_running(),
            log: service.log_path(),
        });
        hosts.push(HostReport {
            name: host.name().to_owned(),
            v4: host.v4().to_string(),
            v6: host.v6().to_string(),
            netns: host.netns(),
            services: services.collect(),
        });
    }
    let report = Report { id: id.to_owned(), hosts, members: lab.members().ok() };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_table(&report);
    }
    Ok(())
}

fn print_table(report: &Report) {
    println!("{:<10} {:<12} services", "host", "address");
    for host in &report.hosts {
        let services: Vec<String> = host
            .services
            .iter()
            .map(|service| {
                let state = if service.running { format!("{}", service.pid) } else { "ended".to_owned() };
                format!("{} ({state})", service.name)
            })
            .collect();
        println!("{:<10} {:<12} {}", host.name, host.v4, services.join(", "));
    }
    for member in report.members.iter().flatten() {
        let timeline = member.timeline.map_or(String::new(), |timeline| format!(", timeline {timeline}"));
        println!("{}: {}, {}{timeline}", member.name, member.role, member.state);
    }
}

fn run_inside(id: &str, exec: &Exec) -> Result<()> {
    let net = Net::attach(id)?;
    let host = find(&net, &exec.host)?;
    let status = host.command(&exec.command).status().with_context(|| format!("cannot run {}", exec.command[0]))?;
    match status.code().or_else(|| status.signal().map(|signal| 128 + signal)) {
        Some(0) | None => Ok(()),
        Some(code) => std::process::exit(code),
    }
}

fn show_logs(id: &str, logs: &Logs) -> Result<()> {
    let net = Net::attach(id)?;
    let host = find(&net, &logs.host)?;
    let services = host.services()?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for service in &services {
        if logs.service.as_ref().is_none_or(|name| name == service.name()) {
            paths.push(service.log_path());
        }
    }
    if paths.is_empty() {
        let names: Vec<&str> = services.iter().map(|service| service.name()).collect();
        bail!("{} has no such server; it has: {}", logs.host, names.join(", "));
    }
    let mut tail = Command::new("tail");
    tail.args(if logs.follow { ["-n", "50", "-F"].as_slice() } else { ["-n", "+1"].as_slice() });
    Err(tail.args(paths).exec()).context("cannot run tail")
}

fn find<'net>(net: &'net Net, name: &str) -> Result<&'net super::Host> {
    net.find(name).with_context(|| {
        let names: Vec<&str> = net.hosts().iter().map(|host| host.name()).collect();
        format!("the lab has no host {name:?}; it has: {}", names.join(", "))
    })
}
