//! The running proxy as the admin interface shows it: reads the shared state, changes nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::api;
use crate::cluster::{Bouncer, ClusterView, Proof, StoreHealth};
use crate::config::IpNet;
use crate::guard::{self, Guard};
use crate::pool::{self, Health, Pool};
use crate::proxy::{Lifecycle, Listener, Proxy};
use crate::session::{SessionRecord, Termination};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub fn status(proxy: &Proxy) -> api::Status {
    let mut by_listener = BTreeMap::<&str, usize>::new();
    let sessions = proxy.sessions();
    for session in &sessions {
        *by_listener.entry(session.listener.as_str()).or_default() += 1;
    }
    api::Status {
        version: VERSION.into(),
        pid: std::process::id(),
        started_at: unix(proxy.started),
        uptime_seconds: proxy.started.elapsed().unwrap_or_default().as_secs(),
        lifecycle: lifecycle(proxy.lifecycle()).into(),
        config_file: proxy.source.as_ref().map(|source| source.file.display().to_string()),
        threads: proxy.threads,
        sessions: sessions.len(),
        listeners: proxy
            .listeners
            .load()
            .values()
            .map(|one| listener(one, by_listener.get(one.name.as_str()).copied().unwrap_or_default()))
            .collect(),
        pools: proxy.pools.load().values().map(|one| pool(one)).collect(),
        clusters: proxy.clusters.load().iter().map(|(name, view)| cluster(name, &view.borrow())).collect(),
        guard: proxy.guard().and_then(|guard| of_guard(&guard)),
    }
}

pub fn ready(proxy: &Proxy) -> api::Ready {
    let mut reasons = Vec::new();
    if proxy.lifecycle() == Lifecycle::Draining {
        reasons.push("the proxy is draining".to_owned());
    }
    let pools = proxy.pools.load();
    let listeners = proxy.listeners.load();
    if listeners.is_empty() {
        reasons.push("there is no listener".to_owned());
    }
    let used: std::collections::BTreeSet<_> = listeners.values().map(|one| one.config.load().pool.clone()).collect();
    for name in used {
        let Some(pool) = pools.get(&name) else {
            reasons.push(format!("pool {name}: it is not there yet"));
            continue;
        };
        let candidates = pool.candidates.load();
        if candidates.list.is_empty() {
            let why = if candidates.why_empty.is_empty() { "no candidate yet" } else { &candidates.why_empty };
            reasons.push(format!("pool {name}: {why}"));
        }
    }
    api::Ready { ready: reasons.is_empty(), reasons }
}

pub fn lifecycle(lifecycle: Lifecycle) -> &'static str {
    match lifecycle {
        Lifecycle::Running => "running",
        Lifecycle::Draining => "draining",
    }
}

fn of_guard(guard: &Guard) -> Option<api::GuardStatus> {
    guard::api::status(guard).inspect_err(|error| tracing::warn!("the guard's counters cannot be read: {error}")).ok()
}

fn listener(listener: &Listener, sessions: usize) -> api::Listener {
    let config = listener.config.load();
    let ended = Termination::ALL.iter().map(|&reason| (reason.as_str().to_owned(), listener.counters.ended(reason)));
    api::Listener {
        name: listener.name.clone(),
        pool: config.pool.clone(),
        bound: listener.bound.iter().map(SocketAddr::to_string).collect(),
        sessions,
        max_sessions: config.max_sessions,
        accepted: listener.counters.accepted.load(Relaxed),
        ended: ended.filter(|(_, count)| *count > 0).collect(),
        bytes_in: listener.counters.bytes_in.load(Relaxed),
        bytes_out: listener.counters.bytes_out.load(Relaxed),
    }
}

fn pool(pool: &Pool) -> api::Pool {
    let candidates = pool.candidates.load();
    api::Pool {
        name: pool.name.clone(),
        backends: pool.backends.load().len(),
        candidates: candidates.list.len(),
        waiting: pool.waiting(),
        why_empty: candidates.why_empty.clone(),
    }
}

// === Backends ===

pub fn backends(proxy: &Proxy, query: &api::BackendsQuery) -> api::Backends {
    let pools = proxy.pools.load();
    let pools = pools.values().filter(|pool| query.pool.as_ref().is_none_or(|name| *name == pool.name));
    api::Backends { backends: pools.flat_map(|pool| backends_of(pool)).collect() }
}

fn backends_of(pool: &Pool) -> Vec<api::Backend> {
    let candidates = pool.candidates.load();
    let members = pool.members.load();
    let show = |backend: &Arc<pool::Backend>| {
        let candidate = candidates.list.iter().find(|one| Arc::ptr_eq(&one.backend, backend));
        let (health, why) = match backend.health() {
            Health::Unknown => ("unknown", String::new()),
            Health::Up => ("up", String::new()),
            Health::Full { why } => ("full", why),
            Health::Down { why } => ("down", why),
        };
        let counters = &backend.counters;
        api::Backend {
            pool: pool.name.clone(),
            name: backend.name.clone(),
            address: backend.address.to_string(),
            health: health.into(),
            why,
            excluded: members
                .iter()
                .find(|one| one.address == backend.address)
                .and_then(|one| one.excluded.clone())
                .unwrap_or_default(),
            drained: backend.is_drained(),
            candidate: candidate.is_some(),
            weight: candidate.map(|one| one.weight),
            backup: candidate.map(|one| one.tier > 0),
            peer_id: candidate.and_then(|one| one.peer_id),
            sessions: backend.sessions(),
            sessions_total: counters.sessions.load(Relaxed),
            connect_failures: counters.connect_failures.load(Relaxed),
            probe_failures: counters.probe_failures.load(Relaxed),
            bytes_in: counters.bytes_in.load(Relaxed),
            bytes_out: counters.bytes_out.load(Relaxed),
        }
    };
    pool.backends.load().iter().map(show).collect()
}

/// Every backend's `pool/name`, for the message that one is not among them.
pub fn backend_names(proxy: &Proxy, pool: Option<&str>) -> Vec<String> {
    let query = api::BackendsQuery { pool: pool.map(str::to_owned) };
    backends(proxy, &query).backends.into_iter().map(|one| format!("{}/{}", one.pool, one.name)).collect()
}

// === Sessions ===

/// Those that match, longest-lived first.
pub fn select(proxy: &Proxy, filter: &api::SessionFilter) -> Result<Vec<Arc<SessionRecord>>, String> {
    let client = filter.client.as_deref().map(str::parse::<ClientFilter>).transpose()?;
    let mut sessions = proxy.sessions();
    sessions.retain(|session| matches(session, filter, client.as_ref()));
    sessions.sort_by_key(|session| (session.accepted(), session.id));
    Ok(sessions)
}

fn matches(session: &SessionRecord, filter: &api::SessionFilter, client: Option<&ClientFilter>) -> bool {
    if filter.pool.as_ref().is_some_and(|pool| **pool != *session.pool) {
        return false;
    }
    if client.is_some_and(|client| !client.matches(session.client())) {
        return false;
    }
    if filter.user.is_none() && filter.backend.is_none() {
        return true;
    }
    let details = session.details();
    let backend = |wanted: &String| {
        details.backend.as_ref().is_some_and(|one| one.name == *wanted || one.address.to_string() == *wanted)
    };
    filter.user.as_ref().is_none_or(|user| details.user.as_ref() == Some(user))
        && filter.backend.as_ref().is_none_or(backend)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientFilter {
    Exactly(SocketAddr),
    Net(IpNet),
}

impl ClientFilter {
    fn matches(self, client: SocketAddr) -> bool {
        let ip = client.ip().to_canonical();
        match self {
            Self::Exactly(address) => (address.ip().to_canonical(), address.port()) == (ip, client.port()),
            Self::Net(net) => {
                let longest = if ip.is_ipv4() { 32 } else { 128 };
                net.prefix <= longest
                    && net.addr.is_ipv4() == ip.is_ipv4()
                    && IpNet::containing(ip, net.prefix).addr == net.addr
            }
        }
    }
}

impl std::str::FromStr for ClientFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Exactly(address));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return Ok(Self::Net(IpNet { addr: ip, prefix: if ip.is_ipv4() { 32 } else { 128 } }));
        }
        text.parse().map(Self::Net).map_err(|error| format!("client: {error}; expected ip, ip:port or ip/prefix"))
    }
}

pub fn session(session: &SessionRecord) -> api::Session {
    let details = session.details();
    let (bytes_in, bytes_out) = session.bytes();
    let times = details.times;
    api::Session {
        id: session.id.to_string(),
        listener: session.listener.as_str().into(),
        pool: session.pool.as_str().into(),
        client: session.client().to_string(),
        user: details.user,
        database: details.database,
        application_name: details.application_name,
        tls: details.tls,
        backend: details.backend.as_ref().map(|one| one.name.clone()),
        backend_address: details.backend.as_ref().map(|one| one.address.to_string()),
        backend_local: details.backend_local.map(|address| address.to_string()),
        phase: details.phase.as_str().into(),
        road: details.road.map(str::to_owned),
        road_why: details.why.map(|why| why.as_str().to_owned()),
        accepted_at: unix(session.accepted_at()),
        age_seconds: millis(session.age()) / 1e3,
        bytes_in,
        bytes_out,
        startup_ms: times.startup.map(millis),
        queue_ms: times.queue.map(millis),
        connect_ms: times.connect.map(millis),
        handshake_ms: times.handshake.map(millis),
    }
}

/// With three digits after the point.
fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

// === Clusters ===

fn cluster(name: &str, view: &ClusterView) -> api::Cluster {
    let (store, store_error) = store(&view.store);
    let members = view.members.values().map(|member| api::Member {
        name: member.name.clone(),
        role: member.role.clone(),
        state: member.state.clone(),
        timeline: member.timeline,
        lag: member.lag,
        proof: proof(&member.proof),
        cut: view.cut.get(&member.name).cloned(),
    });
    api::Cluster {
        name: name.into(),
        store: store.into(),
        store_error,
        leader_key: view.leader_key.clone(),
        primary: view.primary.as_ref().map(|primary| primary.member.clone()),
        timeline: view.primary.as_ref().map(|primary| primary.timeline),
        primary_since: view.primary.as_ref().map(|primary| unix(primary.since)),
        closed_because: view.closed_because.clone(),
        generation: view.generation,
        members: members.collect(),
        bouncers: view.bouncers.values().map(bouncer).collect(),
    }
}

pub fn store(health: &StoreHealth) -> (&'static str, String) {
    match health {
        StoreHealth::Starting => ("starting", String::new()),
        StoreHealth::Connected { .. } => ("connected", String::new()),
        StoreHealth::Unreachable { why, .. } => ("unreachable", why.clone()),
    }
}

pub fn bouncer(bouncer: &Bouncer) -> api::Bouncer {
    api::Bouncer {
        name: bouncer.name.clone(),
        address: bouncer.address.to_string(),
        state: format!("{:?}", bouncer.state).to_lowercase(),
        leader: bouncer.leader.clone(),
        timeline: bouncer.timeline,
        reason: bouncer.reason.clone(),
    }
}

fn proof(proof: &Proof) -> String {
    match proof {
        Proof::NotAsked => "not asked".into(),
        Proof::Primary { .. } => "primary".into(),
        Proof::NotPrimary { role, .. } => format!("not primary ({role})"),
        Proof::Silent { why, .. } => format!("silent ({why})"),
    }
}

pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SessionId;

    fn record() -> SessionRecord {
        let record = SessionRecord::new(SessionId(7), "rw", "main", "10.1.2.3:40000".parse().unwrap());
        record.update(|details| {
            details.user = Some("app".into());
            details.backend = Some(Arc::new(pool::Backend::new("main", "b1", "10.0.0.1:6432".parse().unwrap())));
        });
        record
    }

    #[test]
    fn a_filter_matches_when_all_that_it_names_does() {
        let matches = |filter: api::SessionFilter| {
            let client = filter.client.as_deref().map(|text| text.parse::<ClientFilter>().unwrap());
            matches(&record(), &filter, client.as_ref())
        };
        let none = api::SessionFilter::default;
        assert!(matches(none()));
        assert!(matches(api::SessionFilter { user: Some("app".into()), backend: Some("b1".into()), ..none() }));
        assert!(matches(api::SessionFilter { backend: Some("10.0.0.1:6432".into()), ..none() }));
        assert!(!matches(api::SessionFilter { user: Some("app".into()), backend: Some("b2".into()), ..none() }));
        assert!(!matches(api::SessionFilter { pool: Some("other".into()), ..none() }));
        for (client, expected) in [
            ("10.1.2.3", true),
            ("10.1.2.3:40000", true),
            ("10.1.2.3:40001", false),
            ("10.0.0.0/8", true),
            ("10.2.0.0/16", false),
            ("::ffff:10.1.2.3", true),
            ("::/0", false),
        ] {
            assert_eq!(matches(api::SessionFilter { client: Some(client.into()), ..none() }), expected, "{client}");
        }
    }

    #[test]
    fn a_client_filter_that_is_none_says_what_was_expected() {
        let error = "app1".parse::<ClientFilter>().unwrap_err();
        assert_eq!(error, "client: \"app1\" is not an IP address or a CIDR; expected ip, ip:port or ip/prefix");
    }
}
