//! What no single key can tell: names that lead nowhere, addresses used twice, settings at odds with each other.
//!
//! Works on the typed configuration; the report finds the line of a key by its path.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::model::{
    BackendConfig, BackendSource, Cluster, Config, Listener, NodeAddress, Pool, Probe, ProbeKind, Role, Splice,
    SpliceMode, SpliceRoad, StaticConfig, StoreConfig, Tcp, TlsFiles,
};
use super::report::Report;
use super::settings::{splice_mode_name, splice_road_name};
use super::units::show_duration;
use super::values::closest;

pub(super) fn validate(config: &Config, report: &mut Report) {
    if config.guard.interfaces.is_empty() && !config.guard.deny.is_empty() {
        report.warn("guard.deny", "nothing is dropped, because guard.interfaces is empty");
    }
    for (name, cluster) in &config.clusters {
        check_cluster(&format!("cluster.{name}"), cluster, report);
    }
    for (name, pool) in &config.pools {
        check_pool(&format!("pool.{name}"), pool, config, report);
    }
    check_listeners(config, report);
    check_splice(config, report);
    // What looks unused beside an error is often what the error is about.
    if report.errors.is_empty() {
        warn_of_unused(config, report);
    }
}

fn warn_of_unused(config: &Config, report: &mut Report) {
    for name in config.clusters.keys() {
        if !config.pools.values().any(|pool| cluster_of(pool) == Some(name)) {
            report.warn(&format!("cluster.{name}"), "no pool uses it");
        }
    }
    for name in config.pools.keys() {
        if !config.listeners.values().any(|listener| listener.pool == *name) {
            report.warn(&format!("pool.{name}"), "no listener uses it");
        }
    }
}

fn cluster_of(pool: &Pool) -> Option<&String> {
    match &pool.source {
        BackendSource::Static(_) => None,
        BackendSource::Fleet { cluster } | BackendSource::NodeLocal { cluster, .. } => Some(cluster),
    }
}

fn check_cluster(path: &str, cluster: &Cluster, report: &mut Report) {
    check_store(path, &cluster.store, report);
    let proof = &cluster.proof;
    if let StoreConfig::Static(fixed) = &cluster.store {
        check_static(path, fixed, &proof.tls, report);
    }
    if proof.fast_interval > proof.interval {
        let (fast, normal) = (show_duration(proof.fast_interval), show_duration(proof.interval));
        report.warn(&format!("{path}.proof.fast_interval"), format!("{fast} is longer than the interval of {normal}"));
    }
}

fn check_store(path: &str, store: &StoreConfig, report: &mut Report) {
    let path = format!("{path}.{}", store.kind());
    let (tls, secret, list) = match store {
        StoreConfig::Etcd(etcd) => (&etcd.tls, etcd.password.as_ref().map(|_| "the etcd password"), "endpoints"),
        StoreConfig::Consul(consul) => (&consul.tls, consul.token.as_ref().map(|_| "the Consul token"), "endpoints"),
        StoreConfig::Zookeeper(zookeeper) => {
            (&zookeeper.tls, zookeeper.password.as_ref().map(|_| "the ZooKeeper password"), "hosts")
        }
        StoreConfig::Rest(_) => (&TlsFiles::default(), None, "endpoints"),
        StoreConfig::Static(_) => return,
    };
    let addresses = &store.addresses();
    let list = format!("{path}.{list}");
    check_duplicates(&list, addresses, report);
    if addresses.is_empty() {
        return;
    }
    if let StoreConfig::Zookeeper(_) = store {
        if tls.ca.is_none() && *tls != TlsFiles::default() {
            report.error(&format!("{path}.tls"), "there is no ca", "the ca that turns TLS on");
        }
        if let (None, Some(secret)) = (&tls.ca, secret) {
            report.warn(&list, format!("{secret} crosses the network in the clear, because there is no tls.ca"));
        }
        return;
    }
    let secure = addresses.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
    if secure > 0 && secure < addresses.len() {
        report.error(&list, "some are http and some https", "one of the two for all");
    }
    if secure == 0 && *tls != TlsFiles::default() {
        report.warn(&format!("{path}.tls"), "not used, because no endpoint is https");
    }
    if let (0, Some(secret)) = (secure, secret) {
        report.warn(&list, format!("{secret} crosses the network in the clear, because no endpoint is https"));
    }
}

fn check_static(path: &str, fixed: &StaticConfig, tls: &TlsFiles, report: &mut Report) {
    let names = || fixed.members.iter().map(|member| &member.name);
    if let Some(primary) = fixed.primary.as_ref().filter(|primary| !names().any(|name| name == *primary)) {
        let (problem, expected) = no_such("member", primary, names());
        report.error(&format!("{path}.static.primary"), problem, expected);
    }
    let mut seen = BTreeSet::new();
    for (index, member) in fixed.members.iter().enumerate() {
        for (key, value) in [("name", &member.name), ("address", &member.address)] {
            // An empty one was blamed for that already.
            if !value.is_empty() && !seen.insert((key, value.to_lowercase())) {
                let problem = format!("{value} is also that of another member");
                report.error(&format!("{path}.static.member[{index}].{key}"), problem, format!("a {key} of its own"));
            }
        }
    }
    if tls.ca.is_none() && *tls != TlsFiles::default() {
        report.error(&format!("{path}.proof.tls"), "there is no ca", "the ca that turns TLS on");
    }
    if tls.ca.is_none() && fixed.password.is_some() {
        let problem = "the PostgreSQL password crosses the network in the clear if a server asks for it so, because \
                       there is no proof.tls.ca";
        report.warn(&format!("{path}.static"), problem);
    }
}

fn check_pool(path: &str, pool: &Pool, config: &Config, report: &mut Report) {
    if let Some(cluster) = cluster_of(pool).filter(|name| !name.is_empty() && !config.clusters.contains_key(*name)) {
        let (problem, expected) = no_such("cluster", cluster, config.clusters.keys());
        report.error(&format!("{path}.cluster"), problem, expected);
    }
    match cluster_of(pool).and_then(|name| config.clusters.get(name)) {
        Some(cluster) => check_source(path, &pool.source, &cluster.store, report),
        None => {
            if let BackendSource::Static(backends) = &pool.source {
                check_backends(path, backends, config, report);
            }
        }
    }
    check_probe(&format!("{path}.probe"), &pool.probe, report);
    check_tcp(&format!("{path}.tcp"), &pool.tcp, report);
    if pool.probe.kind == ProbeKind::None && pool.passive.failures == 0 {
        let problem = "neither probes nor failed connects take a dead backend out of this pool";
        report.warn(&format!("{path}.probe.kind"), problem);
    }
    let queue = format!("{path}.queue");
    if pool.queue.size == 0 && report.origin.has(&format!("{queue}.timeout")) {
        report.warn(&format!("{queue}.timeout"), "nobody waits, because the queue's size is 0");
    }
}

/// What a cluster cannot tell a pool, because it has no store of its own or no Patroni.
fn check_source(path: &str, source: &BackendSource, store: &StoreConfig, report: &mut Report) {
    let (is_rest, is_static) = (matches!(store, StoreConfig::Rest(_)), !store.is_patronis());
    match source {
        BackendSource::Fleet { .. } if !store.has_registry() => {
            let problem = if is_rest {
                "agents cannot register through Patroni's REST API"
            } else {
                "agents cannot register in a static cluster, which has no store"
            };
            report.error(&format!("{path}.route"), problem, "route = \"node-local\", or backend sections");
        }
        BackendSource::NodeLocal { address: NodeAddress::ProxyUrl, .. } if is_rest || is_static => {
            let problem = if is_rest {
                "Patroni's REST API does not tell a member's proxy_url"
            } else {
                "a member of a static cluster has no proxy_url"
            };
            report.error(&format!("{path}.address"), problem, "a port number such as 6432, or \"conn-url\"");
        }
        BackendSource::NodeLocal { rule, .. }
            if is_static && !matches!(rule.role, Role::Primary | Role::Replica | Role::Any) =>
        {
            let problem = "only Patroni tells who has this role, and a static cluster has none";
            report.error(&format!("{path}.role"), problem, "\"primary\", \"replica\" or \"any\"");
        }
        _ => {}
    }
}

fn check_backends(path: &str, backends: &[BackendConfig], config: &Config, report: &mut Report) {
    // An entry with a wrong address was blamed for that already.
    let known: Vec<(usize, &BackendConfig)> =
        backends.iter().enumerate().filter(|(_, backend)| !backend.address.is_empty()).collect();
    let mut seen: [BTreeMap<String, usize>; 3] = Default::default();
    for (index, backend) in &known {
        let at = |key: &str| format!("{path}.backend[{index}].{key}");
        let own_name = (backend.name != backend.address).then(|| backend.name.clone());
        let identities = [
            ("address", Some(backend.address.to_lowercase()), "an address once"),
            ("name", own_name, "a name of its own"),
            ("peer_id", backend.peer_id.map(|id| id.to_string()), "the peer_id this PgBouncer has"),
        ];
        for ((key, identity, expected), seen) in identities.into_iter().zip(&mut seen) {
            let Some(identity) = identity else { continue };
            if let Some(first) = seen.get(&identity) {
                let other = match report.origin.line(&format!("{path}.backend[{first}].{key}")) {
                    Some(line) => format!("the backend in line {line}"),
                    None => "another backend".into(),
                };
                report.error(&at(key), format!("{identity} is also that of {other}"), expected);
            } else {
                seen.insert(identity, *index);
            }
        }
        if let Some(listener) = listener_at(&backend.address, config) {
            let problem = format!("{} is listener.{listener} itself, so sessions would go in circles", backend.address);
            report.error(&at("address"), problem, "the address of a PgBouncer or PostgreSQL");
        }
    }
    if backends.is_empty() {
        return;
    }
    if backends.iter().all(|backend| backend.weight == 0) {
        let expected = "at least one backend with a weight above 0";
        report.error(&format!("{path}.backend"), "every backend has weight 0, so none gets a session", expected);
    } else if backends.iter().all(|backend| backend.backup) {
        report.warn(&format!("{path}.backend"), "every backend is a backup");
    }
    let with_peer_id = backends.iter().filter(|backend| backend.peer_id.is_some()).count();
    if with_peer_id > 0 && with_peer_id < backends.len() {
        let problem = "some backends have a peer_id and some have none; cancel requests by peer_id need it on all";
        report.warn(&format!("{path}.backend"), problem);
    }
}

/// The listener a backend's address leads back to, as far as the addresses themselves tell.
fn listener_at<'c>(address: &str, config: &'c Config) -> Option<&'c str> {
    let address: SocketAddr = address.to_lowercase().replace("localhost", "127.0.0.1").parse().ok()?;
    let leads_to = |bind: &SocketAddr| {
        let everywhere = bind.ip().is_unspecified() && address.ip().is_loopback() && same_family(bind, &address);
        bind.port() == address.port() && (bind.ip() == address.ip() || everywhere)
    };
    let found = config.listeners.iter().find(|(_, listener)| listener.bind.iter().any(leads_to));
    found.map(|(name, _)| name.as_str())
}

fn same_family(a: &SocketAddr, b: &SocketAddr) -> bool {
    matches!((a.ip(), b.ip()), (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)))
}

fn check_probe(path: &str, probe: &Probe, report: &mut Report) {
    if probe.kind == ProbeKind::None {
        for key in ["interval", "fast_interval", "timeout", "rise", "fall"] {
            if report.origin.has(&format!("{path}.{key}")) {
                report.warn(&format!("{path}.{key}"), "not used, because kind is \"none\"");
            }
        }
        return;
    }
    let interval = show_duration(probe.interval);
    if probe.timeout > probe.interval {
        let timeout = show_duration(probe.timeout);
        report.warn(&format!("{path}.timeout"), format!("{timeout} is longer than the interval of {interval}"));
    }
    if probe.fast_interval > probe.interval {
        let fast = show_duration(probe.fast_interval);
        report.warn(&format!("{path}.fast_interval"), format!("{fast} is longer than the interval of {interval}"));
    }
}

fn check_tcp(path: &str, tcp: &Tcp, report: &mut Report) {
    if tcp.keepalive_idle.is_zero() {
        for key in ["keepalive_interval", "keepalive_count"] {
            if report.origin.has(&format!("{path}.{key}")) {
                report.warn(&format!("{path}.{key}"), "not used, because keepalive_idle is 0");
            }
        }
    }
}

fn check_listeners(config: &Config, report: &mut Report) {
    let blamed = report.errors.iter().any(|error| error.key.starts_with("listener"));
    if config.listeners.is_empty() && !blamed {
        report.error("listener", "there is none", "at least one section [listener.NAME] with bind and pool");
    }
    let mut bound: BTreeMap<SocketAddr, String> = BTreeMap::new();
    if let Some(http) = config.admin.http {
        bound.insert(http, "admin.http".into());
    }
    // In the order of the file, so that the later of two is blamed.
    let mut listeners: Vec<_> =
        config.listeners.iter().map(|(name, listener)| (format!("listener.{name}"), listener)).collect();
    listeners.sort_by_key(|(path, _)| report.origin.line(path));
    for (path, listener) in listeners {
        if !listener.pool.is_empty()
            && !config.pools.contains_key(&listener.pool)
            && !report.origin.has(&format!("pool.{}", listener.pool))
        {
            let (problem, expected) = no_such("pool", &listener.pool, config.pools.keys());
            report.error(&format!("{path}.pool"), problem, expected);
        }
        for addr in &listener.bind {
            if addr.port() == 0 {
                report.warn(&format!("{path}.bind"), "with port 0 the kernel picks another port at each start");
                continue;
            }
            if let Some(other) = bound.get(addr) {
                let problem = match *other == path {
                    true => format!("{addr} is there twice"),
                    false => format!("{addr} is also {other}{}", at_line(report, other)),
                };
                report.error(&format!("{path}.bind"), problem, "an address of its own");
            } else {
                bound.insert(*addr, path.clone());
            }
        }
        check_tcp(&format!("{path}.tcp"), &listener.tcp, report);
        check_road(&path, listener, &config.splice, report);
    }
}

/// Whether the road a listener asks for can be there at all.
fn check_road(path: &str, listener: &Listener, splice: &Splice, report: &mut Report) {
    let key = format!("{path}.splice");
    let program = match listener.splice {
        SpliceRoad::Xdp => SpliceMode::Xdp,
        SpliceRoad::Tc => SpliceMode::Tc,
        SpliceRoad::Relay => {
            let after = format!("{path}.splice_after");
            if report.origin.has(&after) {
                report.warn(&after, "not used, because splice is \"relay\"");
            }
            return;
        }
        SpliceRoad::Auto | SpliceRoad::Sockmap => return,
    };
    let road = splice_road_name(listener.splice);
    // One with wrong names was blamed for those already.
    if splice.interfaces.is_empty() && !report.origin.has("splice.interfaces") {
        let problem = format!("{road:?} needs interfaces to run on, and splice.interfaces is empty");
        let expected = "interfaces = [\"eth0\"] in [splice], with those of clients and backends, or splice = \"auto\"";
        report.error(&key, problem, expected);
    } else if ![SpliceMode::Auto, program].contains(&splice.mode) {
        let problem = format!("{road:?} never runs with splice.mode = {:?}", splice_mode_name(splice.mode));
        report.error(&key, problem, format!("splice = \"auto\", or mode = \"auto\" or {road:?} in [splice]"));
    }
}

fn check_splice(config: &Config, report: &mut Report) {
    let splice = &config.splice;
    if splice.interfaces.is_empty() {
        for key in ["mode", "max_sessions", "source_ports"].map(|key| format!("splice.{key}")) {
            if report.origin.has(&key) {
                report.warn(&key, "not used, because splice.interfaces is empty");
            }
        }
        return;
    }
    check_duplicates("splice.interfaces", &splice.interfaces, report);
    let wants_it = |road| !matches!(road, SpliceRoad::Sockmap | SpliceRoad::Relay);
    if !config.listeners.is_empty() && !config.listeners.values().any(|listener| wants_it(listener.splice)) {
        report.warn("splice.interfaces", "nothing runs there, because every listener's splice is another road");
    }
    for (name, listener) in &config.listeners {
        if let Some(addr) = listener.bind.iter().find(|addr| splice.source_ports.contains(&addr.port())) {
            let (port, first, last) = (addr.port(), splice.source_ports.start(), splice.source_ports.end());
            let problem = format!("port {port} is within splice.source_ports, {first}-{last}: a session may hold it");
            report.warn(&format!("listener.{name}.bind"), problem);
        }
    }
}

fn at_line(report: &Report, key: &str) -> String {
    report.origin.line(key).map(|line| format!(" (line {line})")).unwrap_or_default()
}

fn no_such<'n>(kind: &str, name: &str, names: impl Iterator<Item = &'n String> + Clone) -> (String, String) {
    let problem = match closest(name, names.clone().map(String::as_str)) {
        Some(meant) => format!("there is no {kind} {name:?} (did you mean {meant:?}?)"),
        None => format!("there is no {kind} {name:?}"),
    };
    let names: Vec<String> = names.map(|name| format!("{name:?}")).collect();
    let expected = match names.as_slice() {
        [] => format!("a section [{kind}.{name}]"),
        names => format!("the name of a {kind}: {}", names.join(", ")),
    };
    (problem, expected)
}

fn check_duplicates(path: &str, list: &[String], report: &mut Report) {
    let mut seen = BTreeSet::new();
    for (index, element) in list.iter().enumerate() {
        if !seen.insert(element) {
            report.error(&format!("{path}[{index}]"), format!("{element} is there twice"), "each once");
        }
    }
}
