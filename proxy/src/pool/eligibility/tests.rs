//! Who may take a new session of a pool, a sentence each.

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
    let backends: Vec<_> = named.iter().map(|named| Arc::new(Backend::new("p", &named.name, named.address))).collect();
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
    let mut fleet = config::Pool { source: BackendSource::Fleet { cluster: "main".into() }, ..config::Pool::default() };
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

#[test]
fn one_that_is_full_comes_after_everybody_else_and_is_not_left_out() {
    let (view, mut rule) = (view(), pool(Role::Replica, None, true));
    rule.probe.kind = ProbeKind::Tcp;
    let named = members(&rule, &[], Some(&view));
    let backend = |named: &Named| {
        let backend = Arc::new(Backend::new("p", &named.name, named.address));
        let is_full = named.name == "pg2";
        backend.set_health(if is_full { Health::Full { why: "too many clients".into() } } else { Health::Up });
        backend
    };
    let backends: Vec<_> = named.iter().map(backend).collect();
    let found = candidates(&rule, &named, &backends, Some(&view));
    let tiers: Vec<_> = found.list.iter().map(|one| (&*one.backend.name, one.tier)).collect();
    assert_eq!(tiers, [("pg1", 2), ("pg2", FULL), ("pg3", 0)]);
}
