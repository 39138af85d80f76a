//! Who belongs to a pool and who of them may take a new session: a pure function of configuration, cluster view and
//! the backends' own state.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Backend, Candidate, Candidates, Health, balance};
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
        match one.excluded.clone().or_else(|| unusable(pool, backend)) {
            Some(why) => reasons.push((one.name.clone(), why)),
            None => list.push(Candidate {
                backend: backend.clone(),
                weight: one.weight,
                tier: one.tier,
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
        Health::Up => None,
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
mod tests {
    use super::*;
    use crate::cluster::{Bouncer, Primary};
    use std::time::SystemTime;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn member(name: &str, role: &str, host: &str) -> (String, Member) {
        let member = Member {
            name: name.into(),
            role: role.into(),
            state: "running".into(),
            conn_addr: Some(address(&format!("{host}:5432"))),
            lag: Some(0),
            ..Member::default()
        };
        (name.into(), member)
    }

    fn view() -> ClusterView {
        let members = [
            member("pg1", "primary", "10.0.0.1"),
            member("pg2", "replica", "10.0.0.2"),
            member("pg3", "replica", "10.0.0.3"),
        ];
        ClusterView {
            store: StoreHealth::Connected { revision: 1 },
            primary: Some(Primary { member: "pg1".into(), timeline: 1, since: SystemTime::UNIX_EPOCH }),
            members: members.into(),
            ..ClusterView::default()
        }
    }

    fn pool(role: Role, max_lag: Option<u64>, fallback_to_primary: bool) -> config::Pool {
        let rule = RoleRule { role, max_lag, fallback_to_primary, ..RoleRule::default() };
        let source = BackendSource::NodeLocal { cluster: "main".into(), rule, address: NodeAddress::Port(6432) };
        let mut pool = config::Pool { source, ..config::Pool::default() };
        pool.probe.kind = ProbeKind::None;
        pool
    }

    fn eligible(pool: &config::Pool, view: &ClusterView) -> (Vec<String>, String) {
        let named = members(pool, &[], Some(view));
        let backends: Vec<_> =
            named.iter().map(|named| Arc::new(Backend::new("p", &named.name, named.address))).collect();
        let found = candidates(pool, &named, &backends, Some(view));
        let mark = |c: &Candidate| format!("{}{}", c.backend.name, "*".repeat(c.tier.into()));
        (found.list.iter().map(mark).collect(), found.why_empty)
    }

    #[test]
    fn a_primary_pool_has_the_open_primary_and_nobody_else() {
        let mut view = view();
        assert_eq!(eligible(&pool(Role::Primary, None, false), &view).0, ["pg1"]);
        view.primary = None;
        view.closed_because = "pg1 has not proved".into();
        let (nobody, why) = eligible(&pool(Role::Primary, None, false), &view);
        assert!(nobody.is_empty(), "never in panic to whoever is left");
        assert_eq!(why, "no primary: pg1 has not proved");
    }

    #[test]
    fn a_replica_pool_respects_lag_tags_state_and_role() {
        let mut view = view();
        let rule = pool(Role::Replica, Some(1000), false);
        assert_eq!(eligible(&rule, &view).0, ["pg2", "pg3"]);
        let change = |view: &mut ClusterView, change: fn(&mut Member)| {
            view.members.get_mut("pg2").into_iter().for_each(change);
        };
        change(&mut view, |m| m.lag = Some(1001));
        assert_eq!(eligible(&rule, &view).0, ["pg3"]);
        change(&mut view, |m| m.lag = None);
        assert_eq!(eligible(&rule, &view).0, ["pg3"], "an unknown lag is not a small one");
        change(&mut view, |m| (m.lag, m.state) = (Some(0), "starting".into()));
        assert_eq!(eligible(&rule, &view).0, ["pg3"]);
        change(&mut view, |m| {
            m.state = "running".into();
            m.tags.insert("noloadbalance".into(), "true".into());
        });
        assert_eq!(eligible(&rule, &view).0, ["pg3"]);
        change(&mut view, |m| (m.tags, m.role) = ([].into(), "standby_leader".into()));
        assert_eq!(eligible(&rule, &view).0, ["pg3"]);
    }

    #[test]
    fn the_primary_serves_reads_only_as_a_backup_and_only_if_asked_to() {
        let view = view();
        assert_eq!(eligible(&pool(Role::Replica, None, true), &view).0, ["pg1**", "pg2", "pg3"]);
        assert_eq!(eligible(&pool(Role::Any, None, false), &view).0, ["pg1", "pg2", "pg3"]);
    }

    #[test]
    fn synchronous_standbys_are_those_the_store_names_in_the_mode_that_is_meant() {
        let mut view = view();
        let who = |role, view: &ClusterView| eligible(&pool(role, None, false), view).0;
        assert!(who(Role::Sync, &view).is_empty());
        assert_eq!(who(Role::Async, &view), ["pg2", "pg3"]);
        view.sync.standbys = vec!["pg3".into()];
        assert_eq!(who(Role::Sync, &view), ["pg3"]);
        assert_eq!(who(Role::Async, &view), ["pg2"]);
        assert!(who(Role::Quorum, &view).is_empty());
        view.sync.quorum_mode = true;
        assert_eq!(who(Role::Quorum, &view), ["pg3"]);
        assert!(who(Role::Sync, &view).is_empty());
        assert_eq!(eligible(&pool(Role::Quorum, None, true), &view).0, ["pg1**", "pg3"]);
    }

    #[test]
    fn a_replica_that_is_late_is_left_out_even_if_it_is_few_bytes_behind() {
        let mut view = view();
        let mut rule = pool(Role::Replica, None, false);
        let BackendSource::NodeLocal { rule: of, .. } = &mut rule.source else { panic!("not node-local") };
        of.max_lag_time = Some(std::time::Duration::from_secs(2));
        let late = |view: &mut ClusterView, name: &str, ms: Option<u64>| {
            view.members.get_mut(name).unwrap().lag_time = ms.map(std::time::Duration::from_millis);
        };
        late(&mut view, "pg2", Some(2001));
        late(&mut view, "pg3", Some(1999));
        assert_eq!(eligible(&rule, &view).0, ["pg3"]);
        late(&mut view, "pg3", None);
        assert_eq!(
            eligible(&rule, &view).1,
            "pg1: role primary; pg2: 2.0 s late, the limit is 2 s; pg3: how late it is is unknown"
        );
    }

    #[test]
    fn the_leader_of_a_standby_cluster_is_reached_by_its_own_role_only() {
        let mut view = view();
        (view.primary, view.leader_key) = (None, Some("pg1".into()));
        view.members.get_mut("pg1").unwrap().role = "standby_leader".into();
        assert_eq!(eligible(&pool(Role::StandbyLeader, None, false), &view).0, ["pg1"]);
        assert!(eligible(&pool(Role::Primary, None, false), &view).0.is_empty());
        view.leader_key = Some("pg2".into());
        assert!(eligible(&pool(Role::StandbyLeader, None, false), &view).0.is_empty());
    }

    #[test]
    fn those_of_the_preferred_zone_come_first_and_the_primary_last() {
        let mut view = view();
        view.members.get_mut("pg3").unwrap().tags.insert("zone".into(), "a".into());
        let mut near = pool(Role::Replica, None, true);
        near.prefer.insert("zone".into(), "a".into());
        assert_eq!(eligible(&near, &view).0, ["pg1**", "pg2*", "pg3"]);
    }

    #[test]
    fn a_fleet_has_the_bouncers_that_point_to_the_primary() {
        let mut view = view();
        for (n, leader, state) in [
            (1, Some("pg1"), BouncerState::Ready),
            (2, Some("pg2"), BouncerState::Ready),
            (3, None, BouncerState::Ready),
            (4, Some("pg1"), BouncerState::Failed),
        ] {
            let name = format!("bouncer{n}");
            let bouncer = Bouncer {
                name: name.clone(),
                address: address(&format!("10.0.1.{n}:6432")),
                peer_id: Some(n),
                state,
                leader: leader.map(Into::into),
                timeline: Some(1),
                reason: String::new(),
                waited_ms: None,
                tags: [("zone".to_owned(), format!("z{n}"))].into(),
            };
            view.bouncers.insert(name, bouncer);
        }
        let mut fleet =
            config::Pool { source: BackendSource::Fleet { cluster: "main".into() }, ..config::Pool::default() };
        fleet.probe.kind = ProbeKind::None;
        assert_eq!(eligible(&fleet, &view).0, ["bouncer1"]);
    }

    #[test]
    fn an_unprobed_backend_waits_for_its_probe() {
        let mut rule = pool(Role::Primary, None, false);
        rule.probe.kind = ProbeKind::Tcp;
        assert_eq!(
            eligible(&rule, &view()),
            (vec![], "pg1: not probed yet; pg2: the primary is pg1; pg3: the primary is pg1".into())
        );
    }
}
