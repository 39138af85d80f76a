//! Clusters as `pgsplice cluster` shows them: the evidence beside what is concluded from it.

use super::api;
use super::snapshot::{bouncer, store, unix};
use crate::cluster::{ClusterView, Member, Proof};
use crate::proxy::Proxy;

pub fn clusters(proxy: &Proxy) -> api::Clusters {
    let config = proxy.config.load();
    let kind = |name: &String| config.clusters.get(name).map_or("", |cluster| cluster.store.kind());
    let views = proxy.clusters.load();
    api::Clusters { clusters: views.iter().map(|(name, view)| cluster(name, kind(name), &view.borrow())).collect() }
}

fn cluster(name: &str, kind: &str, view: &ClusterView) -> api::ClusterReport {
    let (state, error) = store(&view.store);
    let said = &view.said;
    let failover = said.failover.as_ref().map(|asked| {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "whom Patroni chooses".into());
        let from = asked.leader.as_ref().map(|from| format!("from {from} ")).unwrap_or_default();
        let when = asked.scheduled_at.as_ref().map(|at| format!(", at {at}")).unwrap_or_default();
        format!("{from}to {}{when}", name(&asked.candidate))
    });
    let history = said.history.iter().map(|end| api::TimelineReport {
        timeline: end.timeline,
        lsn: end.lsn,
        reason: end.reason.clone(),
        at: end.at.clone(),
        new_leader: end.new_leader.clone(),
    });
    let changes =
        view.changes.iter().map(|change| api::ChangeReport { at: unix(change.at), what: change.what.clone() });
    api::ClusterReport {
        name: name.into(),
        store_kind: kind.into(),
        store: state.into(),
        store_error: error,
        leader_key: view.leader_key.clone(),
        system_id: view.system_id.clone(),
        patroni_paused: said.paused,
        standby_cluster: said.standby_cluster,
        synchronous: view.sync.standbys.clone(),
        quorum_mode: view.sync.quorum_mode,
        failsafe: said.failsafe.clone(),
        failover,
        primary: view.primary.as_ref().map(|primary| primary.member.clone()),
        timeline: view.primary.as_ref().map(|primary| primary.timeline),
        primary_since: view.primary.as_ref().map(|primary| unix(primary.since)),
        closed_because: view.closed_because.clone(),
        switchover: view.switchover.as_ref().map(ToString::to_string),
        members: view.members.values().map(|one| member(view, one)).collect(),
        bouncers: view.bouncers.values().map(bouncer).collect(),
        changes: changes.collect(),
        history: history.collect(),
    }
}

fn member(view: &ClusterView, member: &Member) -> api::MemberReport {
    api::MemberReport {
        name: member.name.clone(),
        role: member.role.clone(),
        state: member.state.clone(),
        timeline: member.timeline,
        lag: member.lag,
        lag_seconds: member.lag_time.map(|late| (late.as_secs_f64() * 1e3).round() / 1e3),
        tags: member.tags.clone(),
        conn_url: member.conn_url.clone(),
        api_url: member.api_url.clone(),
        says: says(&member.proof),
        concluded: concluded(view, member),
    }
}

fn says(proof: &Proof) -> String {
    match proof {
        Proof::NotAsked => "not asked yet".into(),
        Proof::Primary { timeline, .. } => format!("primary, timeline {timeline}"),
        Proof::NotPrimary { role, state, timeline, .. } => {
            let timeline = timeline.map(|timeline| format!(", timeline {timeline}")).unwrap_or_default();
            format!("{role} ({state}){timeline}")
        }
        Proof::Silent { why, .. } => format!("silent: {why}"),
    }
}

/// What follows for a member's sessions, and why.
fn concluded(view: &ClusterView, member: &Member) -> String {
    let is = |name: &Option<String>| name.as_ref() == Some(&member.name);
    if view.primary.as_ref().is_some_and(|primary| primary.member == member.name) {
        return match &view.switchover {
            Some(announced) => format!("the primary; new sessions wait: {announced} is announced"),
            None => "the primary".into(),
        };
    }
    if is(&view.leader_key) && member.role == "standby_leader" {
        return "the leader of a standby cluster, which is no primary".into();
    }
    if is(&view.leader_key) {
        return format!("closed: {}", view.closed_because);
    }
    let proves = matches!(member.proof, Proof::Primary { .. });
    match view.cut.get(&member.name) {
        Some(why) if proves => format!("gets no session although it proves primary: {why}"),
        _ if !member.is_running() => format!("not used: it is {}", member.state),
        _ if member.role != "replica" => format!("not used: its role is {}", member.role),
        _ if member.tag_is_true("noloadbalance") => "a replica that takes no reads: tag noloadbalance".into(),
        _ if view.sync.standbys.contains(&member.name) => "a synchronous replica".into(),
        _ => "a replica".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::cluster::Primary;

    #[test]
    fn each_member_is_told_with_the_reason() {
        let at = SystemTime::UNIX_EPOCH;
        let of = |name: &str, role: &str, proof| Member {
            name: name.into(),
            role: role.into(),
            state: "running".into(),
            proof,
            ..Member::default()
        };
        let mut view = ClusterView {
            leader_key: Some("pg1".into()),
            primary: Some(Primary { member: "pg1".into(), timeline: 2, since: at }),
            cut: [("pg2".to_owned(), "the leader key names pg1".to_owned())].into(),
            ..ClusterView::default()
        };
        let pg1 = of("pg1", "primary", Proof::Primary { timeline: 2, at });
        let pg2 = of("pg2", "primary", Proof::Primary { timeline: 1, at });
        assert_eq!(concluded(&view, &pg1), "the primary");
        let expected = "gets no session although it proves primary: the leader key names pg1";
        assert_eq!(concluded(&view, &pg2), expected);
        assert_eq!(concluded(&view, &of("pg3", "replica", Proof::NotAsked)), "a replica");
        (view.primary, view.closed_because) = (None, "pg1 does not answer".into());
        assert_eq!(concluded(&view, &pg1), "closed: pg1 does not answer");
    }
}
