//! Who belongs to a pool and who of them may take a new session: a pure function of configuration, cluster view and
//! the backends' own state.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Backend, Candidate, Candidates, FULL, Health, balance};
use crate::cluster::{BouncerState, ClusterView, Member, StoreHealth};
use crate::config::{self, BackendSource, NodeAddress, ProbeKind, Role, RoleRule};

/// One backend as configuration and cluster name it, before health is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub address: SocketAddr,
    pub weight: u32,
    /// As [`Candidate::tier`].
    pub tier: u8,
    pub max_sessions: u32,
    pub peer_id: Option<u16>,
    /// Paused by its agent.
    pub held: bool,
    /// Why the cluster rules it out at this moment; `None` when it may be used.
    pub excluded: Option<String>,
}

/// Everyone the pool knows. `resolved` are the static entries with their addresses, in configured order.
pub fn members(
    pool: &config::Pool,
    resolved: &[(config::BackendConfig, SocketAddr)],
    view: Option<&ClusterView>,
) -> Vec<Named> {
    let limit = pool.max_sessions_per_backend;
    match (&pool.source, view) {
        (BackendSource::Static(_), _) => resolved
            .iter()
            .map(|(entry, address)| Named {
                name: entry.name.clone(),
                address: *address,
                weight: entry.weight,
                tier: u8::from(entry.backup),
                max_sessions: entry.max_sessions.unwrap_or(limit),
                peer_id: entry.peer_id,
                held: false,
                excluded: None,
            })
            .collect(),
        (_, None) => Vec::new(),
        (BackendSource::Fleet { .. }, Some(view)) => fleet(view, limit, &pool.prefer),
        (BackendSource::NodeLocal { rule, address, .. }, Some(view)) => node_local(view, rule, *address, pool),
    }
}

fn fleet(view: &ClusterView, max_sessions: u32, prefer: &BTreeMap<String, String>) -> Vec<Named> {
    let excluded = |bouncer: &crate::cluster::Bouncer| {
        if bouncer.state != BouncerState::Ready {
            let why = if bouncer.reason.is_empty() { String::new() } else { format!(": {}", bouncer.reason) };
            return Some(format!("its agent says {:?}{why}", bouncer.state).to_lowercase());
        }
        let Some(primary) = &view.primary else { return Some(view.closed_because.clone()) };
        if let Some(announced) = &view.switchover {
            return Some(format!("{announced} is under way"));
        }
        match &bouncer.leader {
            Some(leader) if *leader == primary.member => None,
            Some(leader) => Some(format!("its databases point to {leader}, the primary is {}", primary.member)),
            None => Some("its databases point to no leader yet".into()),
        }
    };
    let mut list: Vec<Named> = view
        .bouncers
        .values()
        .map(|bouncer| Named {
            name: bouncer.name.clone(),
            address: bouncer.address,
            weight: 1,
            tier: preference(&bouncer.tags, prefer),
            max_sessions,
            peer_id: bouncer.peer_id,
            held: matches!(bouncer.state, BouncerState::Pausing | BouncerState::Paused),
            excluded: excluded(bouncer),
        })
        .collect();
    // A bouncer that was renamed may be registered twice until its old lease runs out: the one in service stays.
    list.sort_by_key(|named| (named.address, named.excluded.is_some()));
    list.dedup_by_key(|named| named.address);
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}

fn node_local(view: &ClusterView, rule: &RoleRule, address: NodeAddress, pool: &config::Pool) -> Vec<Named> {
    let max_sessions = pool.max_sessions_per_backend;
    let mut list: Vec<Named> = view
        .members
        .values()
        .filter_map(|member| {
            let address = node_address(member, address)?;
            let (excluded, is_fallback) = member_rule(view, member, rule);
            let tier = if is_fallback { 2 } else { preference(&member.tags, &pool.prefer) };
            let name = member.name.clone();
            Some(Named { name, address, weight: 1, tier, max_sessions, peer_id: None, held: false, excluded })
        })
        .collect();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}

/// The tier of those with the tags that are preferred, and of the others.
fn preference(tags: &BTreeMap<String, String>, prefer: &BTreeMap<String, String>) -> u8 {
    u8::from(prefer.iter().any(|(tag, value)| tags.get(tag) != Some(value)))
}

fn node_address(member: &Member, address: NodeAddress) -> Option<SocketAddr> {
    match address {
        NodeAddress::Port(port) => member.conn_addr.map(|addr| SocketAddr::new(addr.ip(), port)),
        NodeAddress::ProxyUrl => member.proxy_addr,
        NodeAddress::ConnUrl => member.conn_addr,
    }
}

/// Why this member may not be used (`None`: it may), and whether only while nobody better is eligible.
fn member_rule(view: &ClusterView, member: &Member, rule: &RoleRule) -> (Option<String>, bool) {
    let is_primary = view.primary.as_ref().is_some_and(|primary| primary.member == member.name);
    let tags = || {
        rule.tags
            .iter()
            .find(|(tag, value)| member.tags.get(*tag) != Some(value))
            .map(|(tag, value)| format!("tag {tag} is not {value}"))
    };
    match rule.role {
        Role::Primary if is_primary => (view.switchover.as_ref().map(|said| format!("{said} is under way")), false),
        Role::Primary => {
            let why = match &view.primary {
                Some(primary) => format!("the primary is {}", primary.member),
                None => view.closed_because.clone(),
            };
            (Some(why), false)
        }
        role if role.follows() && is_primary && rule.fallback_to_primary => (None, true),
        Role::Any if is_primary => (tags(), false),
        Role::StandbyLeader => (not_a_standby_leader(view, member).or_else(tags), false),
        role => (not_a_replica(member, rule).or_else(|| not_as_synchronous(view, member, role)).or_else(tags), false),
    }
}

/// Why a member cannot serve reads as a replica.
fn not_a_replica(member: &Member, rule: &RoleRule) -> Option<String> {
    if member.role != "replica" {
        return Some(format!("role {}", if member.role.is_empty() { "unknown" } else { &member.role }));
    }
    if !member.is_running() {
        return Some(format!("state {}", if member.state.is_empty() { "unknown" } else { &member.state }));
    }
    if member.tag_is_true("noloadbalance") {
        return Some("tag noloadbalance".into());
    }
    match (rule.max_lag, member.lag) {
        (Some(_), None) => return Some("its lag is unknown".into()),
        (Some(most), Some(lag)) if lag > most => return Some(format!("{lag} bytes behind, the limit is {most}")),
        _ => {}
    }
    match (rule.max_lag_time, member.lag_time) {
        (Some(_), None) => Some("how late it is is unknown".into()),
        (Some(most), Some(late)) if late > most => {
            let [late, most] = [late, most].map(|time| time.as_secs_f64());
            Some(format!("{late:.1} s late, the limit is {most} s"))
        }
        _ => None,
    }
}

/// Why a replica is not one whose commits are waited for in the way that `role` says.
fn not_as_synchronous(view: &ClusterView, member: &Member, role: Role) -> Option<String> {
    let is_named = view.sync.standbys.contains(&member.name);
    match role {
        Role::Sync | Role::Quorum if view.sync.quorum_mode != (role == Role::Quorum) => {
            let mode = if view.sync.quorum_mode { "quorum" } else { "not quorum" };
            Some(format!("synchronous_mode is {mode}"))
        }
        Role::Sync if !is_named => Some("not a synchronous standby".into()),
        Role::Quorum if !is_named => Some("not in the quorum".into()),
        Role::Async if is_named => Some("a synchronous standby".into()),
        _ => None,
    }
}

/// It leads without being a primary: no proof is asked of it but its own word.
fn not_a_standby_leader(view: &ClusterView, member: &Member) -> Option<String> {
    if member.role != "standby_leader" {
        return Some(format!("role {}", if member.role.is_empty() { "unknown" } else { &member.role }));
    }
    if !member.is_running() {
        return Some(format!("state {}", member.state));
    }
    match &view.leader_key {
        Some(leader) if *leader == member.name => None,
        Some(leader) => Some(format!("the leader key names {leader}")),
        None => Some("no member holds the leader key".into()),
    }
}

/// Who of `named` may take a new session. `backends` has the state of each by address.
pub fn candidates(
    pool: &config::Pool,
    named: &[Named],
    backends: &[Arc<Backend>],
    view: Option<&ClusterView>,
) -> Candidates {
    let mut list = Vec::new();
    let mut reasons = Vec::new();
    for one in named {
        let Some(backend) = backends.iter().find(|backend| backend.address == one.address) else { continue };
        let tier = if matches!(backend.health(), Health::Full { .. }) { FULL } else { one.tier };
        match one.excluded.clone().or_else(|| unusable(pool, backend)) {
            Some(why) => reasons.push((one.name.clone(), why)),
            None => list.push(Candidate {
                backend: backend.clone(),
                weight: one.weight,
                tier,
                max_sessions: one.max_sessions,
                peer_id: one.peer_id,
            }),
        }
    }
    let table = balance::table(pool.balance, &list);
    let why_empty = if list.is_empty() { why_empty(pool, reasons, view) } else { String::new() };
    Candidates { list, why_empty, table }
}

fn unusable(pool: &config::Pool, backend: &Backend) -> Option<String> {
    if backend.is_drained() {
        return Some("drained".into());
    }
    match backend.health() {
        Health::Up | Health::Full { .. } => None,
        Health::Unknown if pool.probe.kind == ProbeKind::None => None,
        Health::Unknown => Some("not probed yet".into()),
        Health::Down { why } => Some(why),
    }
}

/// One sentence for the log, the command line and the client's error.
fn why_empty(pool: &config::Pool, reasons: Vec<(String, String)>, view: Option<&ClusterView>) -> String {
    let wants_primary = match &pool.source {
        BackendSource::Static(_) => false,
        BackendSource::Fleet { .. } => true,
        BackendSource::NodeLocal { rule, .. } => rule.role == Role::Primary,
    };
    match view {
        None if !matches!(pool.source, BackendSource::Static(_)) => return "the cluster is not known yet".into(),
        Some(view) if view.store == StoreHealth::Starting => return "the store has not answered yet".into(),
        Some(view) if wants_primary && view.primary.is_none() => return format!("no primary: {}", view.closed_because),
        _ => {}
    }
    if reasons.is_empty() {
        return "no backend is known".into();
    }
    let all: Vec<String> = reasons.into_iter().take(8).map(|(name, why)| format!("{name}: {why}")).collect();
    all.join("; ")
}

#[cfg(test)]
mod tests;
