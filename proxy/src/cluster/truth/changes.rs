//! The history of roles as this process saw it: one line for each thing that changed hands.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use crate::cluster::{Change, ClusterView, StoreHealth};

/// Of the newest.
const MOST: usize = 500;

/// The changes up to `old`, and those from there to `new`.
pub(super) fn added(old: &ClusterView, new: &ClusterView, at: SystemTime) -> Arc<VecDeque<Change>> {
    let lines = between(old, new);
    if lines.is_empty() {
        return old.changes.clone();
    }
    let mut changes = (*old.changes).clone();
    changes.extend(lines.into_iter().map(|what| Change { at, what }));
    let over = changes.len().saturating_sub(MOST);
    changes.drain(..over);
    Arc::new(changes)
}

fn between(old: &ClusterView, new: &ClusterView) -> Vec<String> {
    let mut lines = Vec::new();
    match (&old.store, &new.store) {
        (StoreHealth::Unreachable { .. }, StoreHealth::Unreachable { .. }) => {}
        (_, StoreHealth::Unreachable { why, .. }) => lines.push(format!("the store is unreachable: {why}")),
        (StoreHealth::Connected { .. }, _) | (_, StoreHealth::Starting) => {}
        (_, StoreHealth::Connected { .. }) => lines.push("the store is connected".into()),
    }
    if let (old, Some(new)) = (&old.switchover, &new.switchover)
        && old.as_ref() != Some(new)
    {
        lines.push(format!("{new} is announced"));
    }
    if old.leader_key != new.leader_key {
        let name = |key: &Option<String>| key.clone().unwrap_or_else(|| "nobody".into());
        lines.push(format!("the leader key names {}, it named {}", name(&new.leader_key), name(&old.leader_key)));
    }
    for (name, member) in &new.members {
        let before = old.members.get(name).map(|member| (&member.role, &member.state));
        if before != Some((&member.role, &member.state)) {
            lines.push(format!("{name} is {} ({})", member.role, member.state));
        }
    }
    for name in old.members.keys().filter(|name| !new.members.contains_key(*name)) {
        lines.push(format!("{name} has no member key any more"));
    }
    match (&old.primary, &new.primary) {
        (old, Some(new)) if old.as_ref() != Some(new) => {
            lines.push(format!("primary {} is open, timeline {}", new.member, new.timeline));
        }
        (Some(old), None) => lines.push(format!("primary {} is closed: {}", old.member, new.closed_because)),
        _ => {}
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Member, Primary};

    #[test]
    fn each_change_of_hands_is_a_line_and_the_oldest_go() {
        let at = SystemTime::UNIX_EPOCH;
        let primary = |name: &str| Some(Primary { member: name.into(), timeline: 2, since: at });
        let member =
            Member { name: "pg2".into(), role: "primary".into(), state: "running".into(), ..Member::default() };
        let old = ClusterView { leader_key: Some("pg1".into()), primary: primary("pg1"), ..ClusterView::default() };
        let new = ClusterView {
            leader_key: Some("pg2".into()),
            primary: primary("pg2"),
            members: [("pg2".to_owned(), member)].into(),
            ..ClusterView::default()
        };
        let changes = added(&old, &new, at);
        let lines: Vec<_> = changes.iter().map(|change| &*change.what).collect();
        let expected =
            ["the leader key names pg2, it named pg1", "pg2 is primary (running)", "primary pg2 is open, timeline 2"];
        assert_eq!(lines, expected);
        assert!(added(&new, &new, at).is_empty());
        let mut view = ClusterView { changes, ..old.clone() };
        for _ in 0..MOST {
            view.changes = added(&view, &new, at);
        }
        assert_eq!(view.changes.len(), MOST);
    }
}
