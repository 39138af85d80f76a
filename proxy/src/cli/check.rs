//! `pgsplice check`: read a configuration, say all that is wrong with it, or what it would run.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use crate::cluster::store::Places;
use crate::config::{
    self, BackendSource, Config, ConfigError, ConfigErrors, NodeAddress, Pool, ProbeKind, SpliceRoad, Warning, settings,
};
use crate::session::listening::probe_free;

/// Check a configuration file and say what it would run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Also try whether the addresses can be bound now; a running pgsplice holds its own
    #[arg(long)]
    pub bind: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (config, errors, warnings) = match Config::load(&args.config) {
        Ok((config, warnings)) => {
            let errors = if args.bind { unbindable(&config) } else { Vec::new() };
            (Some(config), errors, warnings)
        }
        Err(ConfigErrors { errors, warnings }) => (None, errors, warnings),
    };
    if args.json {
        print_json(config.as_ref(), &errors, &warnings)?;
    } else {
        for line in in_order(&errors, &warnings) {
            eprintln!("{line}");
        }
        match &config {
            Some(config) if errors.is_empty() => print!("{}: good\n{}", args.config.display(), summary(config)),
            _ => eprintln!("{}: {}", args.config.display(), count(errors.len())),
        }
    }
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn count(errors: usize) -> String {
    if errors == 1 { "1 error".into() } else { format!("{errors} errors") }
}

/// Errors and warnings as lines, by line of the file.
fn in_order(errors: &[ConfigError], warnings: &[Warning]) -> Vec<String> {
    let errors = errors.iter().map(|error| (error.line, error.to_string()));
    let warnings = warnings.iter().map(|warning| (warning.line, warning.to_string()));
    let mut lines: Vec<_> = errors.chain(warnings).collect();
    lines.sort_by_key(|(line, _)| *line);
    lines.into_iter().map(|(_, text)| text).collect()
}

/// Tries bind(2) on every address that is configured.
fn unbindable(config: &Config) -> Vec<ConfigError> {
    let listeners = config
        .listeners
        .iter()
        .flat_map(|(name, listener)| listener.bind.iter().map(move |addr| (format!("listener.{name}.bind"), *addr)));
    let http = config.admin.http.map(|addr| ("admin.http".to_owned(), addr));
    let mut errors = Vec::new();
    for (key, addr) in listeners.chain(http) {
        if let Err(error) = probe_free(addr) {
            errors.push(ConfigError {
                file: config.origin.file.clone(),
                line: config.origin.line(&key),
                problem: config::port_owner::bind_problem(addr, &error),
                expected: String::new(),
                key,
            });
        }
    }
    errors
}

/// What would run: a line for each listener and pool, and how each pool finds its backends.
fn summary(config: &Config) -> String {
    let mut text = String::new();
    for (name, listener) in &config.listeners {
        let bind: Vec<String> = listener.bind.iter().map(ToString::to_string).collect();
        let road = match listener.splice {
            SpliceRoad::Auto => String::new(),
            road => format!(", splice {}", settings::splice_road_name(road)),
        };
        text.push_str(&format!("  listener {name}  {}  → pool {}{road}\n", bind.join(", "), listener.pool));
    }
    for (name, pool) in &config.pools {
        let balance = settings::balance_name(pool.balance);
        text.push_str(&format!("  pool {name}  {balance}, probe {}  → {}\n", probe(pool), source(pool)));
        if let BackendSource::Static(backends) = &pool.source {
            for backend in backends {
                let name = if backend.name == backend.address { "" } else { &backend.name };
                let backup = if backend.backup { "backup" } else { "" };
                let details = [name.into(), format!("weight {}", backend.weight), backup.into()];
                let details: Vec<String> = details.into_iter().filter(|detail| !detail.is_empty()).collect();
                text.push_str(&format!("    backend {}  {}\n", backend.address, details.join(", ")));
            }
        }
    }
    for (name, cluster) in &config.clusters {
        let store = format!("{} {}", cluster.store.kind(), cluster.store.addresses().join(", "));
        let folder = if cluster.store.is_patronis() { Places::of(cluster).patroni } else { String::new() };
        text.push_str(format!("  cluster {name}  {store}  {folder}").trim_end());
        text.push('\n');
    }
    if !config.guard.interfaces.is_empty() {
        text.push_str(&format!("  guard on {}\n", config.guard.interfaces.join(", ")));
    }
    if !config.splice.interfaces.is_empty() {
        let (interfaces, mode) = (config.splice.interfaces.join(", "), config.splice.mode);
        text.push_str(&format!("  splice on {interfaces}  {}\n", settings::splice_mode_name(mode)));
    }
    text
}

fn probe(pool: &Pool) -> &'static str {
    match pool.probe.kind {
        ProbeKind::None => "none",
        ProbeKind::Tcp => "tcp",
        ProbeKind::SslRequest => "ssl-request",
        ProbeKind::Query { .. } => "query",
    }
}

fn source(pool: &Pool) -> String {
    match &pool.source {
        BackendSource::Static(backends) if backends.len() == 1 => "1 backend".into(),
        BackendSource::Static(backends) => format!("{} backends", backends.len()),
        BackendSource::Fleet { cluster } => format!("the PgBouncers of cluster {cluster} that lead to its primary"),
        BackendSource::NodeLocal { cluster, rule, address } => {
            let who = match rule.role {
                config::Role::Primary => "the primary",
                config::Role::Replica => "the replicas",
                config::Role::Sync => "the synchronous replicas",
                config::Role::Async => "the asynchronous replicas",
                config::Role::Quorum => "the replicas of the quorum",
                config::Role::Any => "every member",
                config::Role::StandbyLeader => "the leader of the standby",
            };
            let lag = rule.max_lag.map(|lag| format!(" at most {} behind", config::show_size(lag))).unwrap_or_default();
            let late = rule.max_lag_time.map(|time| format!(" at most {} late", config::show_duration(time)));
            let lag = lag + &late.unwrap_or_default();
            let at = match address {
                NodeAddress::Port(port) => format!("port {port} of its host"),
                NodeAddress::ProxyUrl => "its proxy_url".into(),
                NodeAddress::ConnUrl => "its conn_url".into(),
            };
            let fallback = if rule.fallback_to_primary { ", else the primary" } else { "" };
            format!("{who} of cluster {cluster}{lag}{fallback}, at {at}")
        }
    }
}

fn print_json(config: Option<&Config>, errors: &[ConfigError], warnings: &[Warning]) -> anyhow::Result<()> {
    let listeners = config.map(|config| {
        let listener = |(name, listener): (&String, &config::Listener)| {
            let road = settings::splice_road_name(listener.splice);
            json!({ "name": name, "bind": listener.bind, "pool": listener.pool, "splice": road })
        };
        config.listeners.iter().map(listener).collect::<Vec<_>>()
    });
    let pools = config.map(|config| {
        let pool = |(name, pool): (&String, &Pool)| {
            let backends = match &pool.source {
                BackendSource::Static(backends) => backends.iter().map(|backend| backend.address.as_str()).collect(),
                BackendSource::Fleet { .. } | BackendSource::NodeLocal { .. } => Vec::new(),
            };
            let cluster = match &pool.source {
                BackendSource::Static(_) => None,
                BackendSource::Fleet { cluster } | BackendSource::NodeLocal { cluster, .. } => Some(cluster),
            };
            json!({
                "name": name,
                "balance": settings::balance_name(pool.balance),
                "probe": probe(pool),
                "cluster": cluster,
                "backends": backends,
                "description": source(pool),
            })
        };
        config.pools.iter().map(pool).collect::<Vec<_>>()
    });
    let answer = json!({
        "ok": errors.is_empty(),
        "errors": errors,
        "warnings": warnings,
        "listeners": listeners,
        "pools": pools,
        "clusters": config.map(|config| config.clusters.keys().collect::<Vec<_>>()),
    });
    println!("{}", serde_json::to_string_pretty(&answer)?);
    Ok(())
}
