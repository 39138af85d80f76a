//! `[pool.NAME]`.

use std::path::Path;

use toml::de::DeValue;

use super::listener::tcp;
use super::password;
use crate::config::model::{
    BackendConfig, BackendSource, Balance, NodeAddress, Passive, Pool, Probe, ProbeKind, Queue, Role, RoleRule,
    Timeouts,
};
use crate::config::read::Section;
use crate::config::values::{self, Kind};

pub(super) fn pool(mut section: Section<'_, '_>, folder: &Path) -> Pool {
    const BALANCES: &[(&str, Balance)] = &[
        ("round-robin", Balance::RoundRobin),
        ("least-connections", Balance::LeastConnections),
        ("two-choices", Balance::TwoChoices),
        ("source-hash", Balance::SourceHash),
        ("first", Balance::First),
    ];
    let mut pool = Pool { source: source(&mut section), ..Pool::default() };
    section.set("cut_spread", values::duration_or_zero("all at once"), &mut pool.cut_spread);
    section.set("slow_start", values::duration_or_zero("none"), &mut pool.slow_start);
    pool.prefer = section.tags("prefer").into_iter().flatten().collect();
    section.set("balance", values::one_of(BALANCES), &mut pool.balance);
    section.set("max_sessions_per_backend", values::count(0..=u32::MAX), &mut pool.max_sessions_per_backend);
    section.set("connect_attempts", values::count(1..=100), &mut pool.connect_attempts);
    queue(section.section("queue"), &mut pool.queue);
    timeouts(section.section("timeouts"), &mut pool.timeouts);
    tcp(section.section("tcp"), &mut pool.tcp);
    probe(section.section("probe"), &mut pool.probe, folder);
    passive(section.section("passive"), &mut pool.passive);
    section.end();
    pool
}

#[derive(Clone, Copy, PartialEq)]
enum Route {
    Fleet,
    NodeLocal,
}

/// The keys that say where backends come from. Those of one source are errors with another.
fn source(section: &mut Section<'_, '_>) -> BackendSource {
    const ROUTES: &[(&str, Route)] = &[("fleet", Route::Fleet), ("node-local", Route::NodeLocal)];
    const ROLES: &[(&str, Role)] = &[
        ("primary", Role::Primary),
        ("replica", Role::Replica),
        ("sync", Role::Sync),
        ("async", Role::Async),
        ("quorum", Role::Quorum),
        ("any", Role::Any),
        ("standby-leader", Role::StandbyLeader),
    ];

    let mut backends = Vec::new();
    let has_backends = section.array_of_sections("backend", |_, section| backends.extend(backend(section)));
    let cluster = section.get("cluster", values::text("the NAME of a [cluster.NAME] section"));
    let route = section.get("route", values::one_of(ROUTES));
    let mut rule = RoleRule::default();
    section.set("role", values::one_of(ROLES), &mut rule.role);
    rule.max_lag = section.get("max_lag", values::size());
    rule.max_lag_time = section.get("max_lag_time", values::duration());
    section.set("fallback_to_primary", values::flag(), &mut rule.fallback_to_primary);
    rule.tags = section.tags("tags").into_iter().flatten().collect();
    let address = section.get("address", node_address());

    if !section.has("cluster") {
        for key in ["route", "role", "max_lag", "max_lag_time", "fallback_to_primary", "tags", "prefer", "address"] {
            if section.has(key) {
                section.error(key, "this pool has no cluster", "cluster = \"NAME\" beside it");
            }
        }
        if !has_backends {
            let expected = format!("[[{}.backend]] sections or cluster = \"NAME\"", section.path);
            section.error("", "nothing says where its backends are", expected);
        }
        return BackendSource::Static(backends);
    }
    if has_backends {
        section.error("backend", "this pool takes its backends from a cluster", "either backend sections or cluster");
    }
    let cluster = cluster.unwrap_or_default();
    if !section.has("route") {
        section.require("route", values::one_of(ROUTES));
    }
    match route {
        Some(Route::Fleet) => {
            if rule.role != Role::Primary {
                let problem = "the PgBouncers of a fleet all lead to the primary";
                section.error("role", problem, "role = \"primary\", or route = \"node-local\"");
            }
            for key in ["max_lag", "max_lag_time", "fallback_to_primary", "tags", "address"] {
                if section.has(key) {
                    section.error(key, "it means nothing with route = \"fleet\"", "route = \"node-local\" beside it");
                }
            }
            BackendSource::Fleet { cluster }
        }
        Some(Route::NodeLocal) => {
            if !section.has("address") {
                section.require("address", node_address());
            }
            for key in ["max_lag", "max_lag_time"] {
                if !rule.role.follows() && rule.role != Role::Any && section.has(key) {
                    section.error(
                        key,
                        "a leader has no lag",
                        "role = \"replica\", \"sync\", \"async\", \"quorum\" or \"any\" beside it",
                    );
                }
            }
            if !rule.role.follows() && section.has("fallback_to_primary") {
                let problem = "the role is not that of replicas";
                section.error(
                    "fallback_to_primary",
                    problem,
                    "role = \"replica\", \"sync\", \"async\" or \"quorum\" beside it",
                );
            }
            BackendSource::NodeLocal { cluster, rule, address: address.unwrap_or(NodeAddress::ProxyUrl) }
        }
        None => BackendSource::Fleet { cluster },
    }
}

fn node_address<'k>() -> Kind<'k, NodeAddress> {
    Kind::new("\"proxy-url\", \"conn-url\" or a port number such as 6432", |value| match value {
        DeValue::String(text) => match text.as_ref() {
            "proxy-url" => Ok(NodeAddress::ProxyUrl),
            "conn-url" => Ok(NodeAddress::ConnUrl),
            other => Err(format!("{other:?} is not known")),
        },
        number => match u16::try_from(values::integer(number)?) {
            Ok(port @ 1..) => Ok(NodeAddress::Port(port)),
            _ => Err("this is not a port".into()),
        },
    })
}

fn backend(mut section: Section<'_, '_>) -> Option<BackendConfig> {
    let address = section.require("address", values::backend_address());
    let mut backend = BackendConfig::at(address.clone().unwrap_or_default());
    section.set("name", values::text("a name for the backend"), &mut backend.name);
    section.set("weight", values::count(0..=1000), &mut backend.weight);
    section.set("backup", values::flag(), &mut backend.backup);
    // PgBouncer: "peer_id … 0 to 16383", 0 is no peering.
    backend.peer_id = section.get("peer_id", values::count(1..=16_383));
    backend.max_sessions = section.get("max_sessions", values::count(0..=u32::MAX));
    section.end();
    Some(backend)
}

fn queue(mut section: Section<'_, '_>, queue: &mut Queue) {
    section.set("size", values::count_usize(0..=10_000_000), &mut queue.size);
    section.set("timeout", values::duration(), &mut queue.timeout);
    section.end();
}

fn timeouts(mut section: Section<'_, '_>, timeouts: &mut Timeouts) {
    section.set("connect", values::duration(), &mut timeouts.connect);
    section.set("handshake", values::duration(), &mut timeouts.handshake);
    section.set("idle", values::duration_or_zero("no limit"), &mut timeouts.idle);
    section.set("half_closed", values::duration_or_zero("no limit"), &mut timeouts.half_closed);
    section.end();
}

fn probe(mut section: Section<'_, '_>, probe: &mut Probe, folder: &Path) {
    const NONE: u8 = 0;
    const TCP: u8 = 1;
    const SSL_REQUEST: u8 = 2;
    const QUERY: u8 = 3;
    const KINDS: &[(&str, u8)] = &[("none", NONE), ("tcp", TCP), ("ssl-request", SSL_REQUEST), ("query", QUERY)];
    let kind = section.get("kind", values::one_of(KINDS)).unwrap_or(SSL_REQUEST);
    let user = section.get("user", values::protocol_text("the name of a PostgreSQL user"));
    let password = password(&mut section, folder);
    let database = section.get("database", values::protocol_text("the name of a database"));
    let query = section.get("query", values::protocol_text("a query such as SELECT 1"));
    match kind {
        NONE => probe.kind = ProbeKind::None,
        TCP => probe.kind = ProbeKind::Tcp,
        QUERY => {
            if !section.has("user") {
                section.error("user", "missing", "the name of a PostgreSQL user, for kind = \"query\"");
            }
            let user = user.unwrap_or_default();
            probe.kind = ProbeKind::Query {
                password,
                database: database.unwrap_or_else(|| user.clone()),
                query: query.unwrap_or_else(|| "SELECT 1".into()),
                user,
            };
        }
        _ => probe.kind = ProbeKind::SslRequest,
    }
    if kind != QUERY {
        for key in ["user", "password", "password_file", "database", "query"] {
            if section.has(key) {
                section.error(key, "this kind of probe does not log in", "kind = \"query\" beside it");
            }
        }
    }
    section.set("interval", values::duration(), &mut probe.interval);
    section.set("fast_interval", values::duration(), &mut probe.fast_interval);
    section.set("timeout", values::duration(), &mut probe.timeout);
    section.set("rise", values::count(1..=1000), &mut probe.rise);
    section.set("fall", values::count(1..=1000), &mut probe.fall);
    section.end();
}

fn passive(mut section: Section<'_, '_>, passive: &mut Passive) {
    section.set("failures", values::count(0..=1000), &mut passive.failures);
    section.set("retry_after", values::duration(), &mut passive.retry_after);
    section.end();
}
