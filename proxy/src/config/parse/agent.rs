//! `agent.toml`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::{cluster, log, password, table};
use crate::config::agent::{AgentConfig, Console, PgBouncer};
use crate::config::model::Log;
use crate::config::read::{Reader, Section, shown_key};
use crate::config::report::{ConfigErrors, Report, Warning};
use crate::config::values::{self, Kind};

/// One cluster with its name; an agent has exactly one.
type Clusters = Vec<(String, crate::config::model::Cluster)>;

pub(in crate::config) fn agent(text: &str, file: &str) -> Result<(AgentConfig, Vec<Warning>), ConfigErrors> {
    let mut report = Report::new(file, text);
    let Some(table) = table(&mut report, text) else {
        return Err(report.finish().expect_err("broken TOML was blamed"));
    };
    let folder = Path::new(file).parent().unwrap_or(Path::new("")).to_owned();
    let mut reader = Reader::new(report);
    let mut top = reader.top(table.get_ref());
    let name = top.require("name", values::name());
    let mut lease_ttl = Duration::from_secs(10);
    top.set("lease_ttl", lease_seconds(), &mut lease_ttl);
    let tags = top.tags("tags").into_iter().flatten().collect();
    let mut log_config = Log::default();
    log(top.section("log"), &mut log_config);
    let pgbouncer = pgbouncer(top.section("pgbouncer"), &folder);
    let mut clusters = Clusters::new();
    top.named_sections("cluster", |name, section| {
        clusters.push((name.into(), cluster::cluster(section, &folder)));
    });
    if clusters.len() != 1 {
        let problem = format!("there are {} of them", clusters.len());
        top.error("cluster", problem, "one section [cluster.NAME], as the proxy has it");
    }
    if let [(name, cluster)] = clusters.as_slice()
        && !cluster.store.has_registry()
    {
        let problem =
            "the PgBouncer is registered nowhere, because there is no store: name it in the proxy's pool by address";
        top.warn(&format!("cluster.{name}.{}", cluster.store.kind()), problem);
    }
    top.end();
    reader.blame_unknown();
    let warnings = reader.report.finish()?;
    // What is missing was blamed, so that nothing is missing here.
    let (Some(name), Some(pgbouncer), Some((cluster_name, cluster))) = (name, pgbouncer, clusters.pop()) else {
        unreachable!("a missing key without blame");
    };
    Ok((AgentConfig { name, lease_ttl, log: log_config, tags, pgbouncer, cluster_name, cluster }, warnings))
}

/// `None` where something was blamed.
fn pgbouncer(mut section: Section<'_, '_>, folder: &Path) -> Option<PgBouncer> {
    let address = section.require("address", values::socket_addr());
    let peer_id = section.get("peer_id", values::count(1..=u16::MAX as u32));
    let console = section.require("console", console());
    let user = section.get("user", values::protocol_text("one of PgBouncer's admin_users"));
    let password = password(&mut section, folder);
    let databases_file = section.require("databases_file", values::absolute_path());
    let databases = databases(&mut section);
    let mut check_interval = Duration::from_secs(1);
    section.set("check_interval", values::duration(), &mut check_interval);
    let mut timeout = Duration::from_secs(2);
    section.set("timeout", values::duration(), &mut timeout);
    let maintenance_file = section.get("maintenance_file", values::absolute_path());
    section.end();
    Some(PgBouncer {
        address: address?,
        peer_id: peer_id.map(|id| id as u16),
        console: console?,
        user: user.unwrap_or_else(|| "pgbouncer".into()),
        password,
        databases_file: databases_file?,
        databases: databases?,
        check_interval,
        timeout,
        maintenance_file,
    })
}

fn console<'k>() -> Kind<'k, Console> {
    let (path, address) = (values::socket_path(), values::backend_address());
    let expected = "the path of PgBouncer's socket such as /run/pgbouncer/.s.PGSQL.6432, or host:port";
    Kind::new(expected, move |value| match value.as_str() {
        Some(text) if text.starts_with('/') => path.read(value).map(Console::Unix),
        _ => address.read(value).map(Console::Tcp),
    })
}

/// The leases of stores are in whole seconds, and a keepalive every third of it must have time to be late.
fn lease_seconds<'k>() -> Kind<'k, Duration> {
    let duration = values::duration();
    Kind::new("whole seconds from 3s to 1h", move |value| match duration.read(value)? {
        ttl if ttl.subsec_nanos() == 0 && (3..=3600).contains(&ttl.as_secs()) => Ok(ttl),
        ttl => Err(format!("{} is not", crate::config::show_duration(ttl))),
    })
}

fn databases(section: &mut Section<'_, '_>) -> Option<BTreeMap<String, String>> {
    let expected =
        "a section [pgbouncer.databases] with lines such as app = \"dbname=app pool_size=20\" or \"*\" = \"\"";
    let Some(entries) = section.texts("databases", expected) else {
        if !section.has("databases") {
            section.error("databases", "missing", expected);
        }
        return None;
    };
    if entries.is_empty() {
        section.error("databases", "it is empty", expected);
    }
    for (name, options) in &entries {
        if let Err((problem, expected)) = entry(name, options) {
            section.error(&format!("databases.{}", shown_key(name)), problem, expected);
        }
    }
    Some(entries.into_iter().collect())
}

/// What can stand in a line of PgBouncer's `[databases]` without breaking out of it.
fn entry(name: &str, options: &str) -> Result<(), (String, &'static str)> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name != "*" && !name.chars().all(is_plain) || matches!(name, "pgbouncer" | crate::agent::MARKER) {
        return Err((
            format!("{name:?} cannot be the name"),
            "letters, digits and _ . - or a lone *, and no name in use",
        ));
    }
    if options.contains(|c: char| c.is_control()) {
        return Err((format!("{options:?} has a control character"), "options on one line"));
    }
    let taken = options
        .split_whitespace()
        .find(|option| option.split('=').next().is_some_and(|key| ["host", "port"].contains(&key.trim())));
    match taken {
        Some(option) => Err((format!("{option:?} is the agent's to write"), "the other options only")),
        None => Ok(()),
    }
}
