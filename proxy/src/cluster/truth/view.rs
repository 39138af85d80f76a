//! From what is held true to the [`ClusterView`] that is published, and whether it is worth publishing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{By, HostPort, Named, Now, Truth, changes};
use crate::cluster::patroni::MemberKey;
use crate::cluster::{ClusterView, Member, Proof, Said, StoreHealth, Switchover, SyncStandbys};

impl Truth {
    pub(super) fn publish(
        &mut self,
        closed_because: String,
        switchover: Option<Switchover>,
        now: Now,
    ) -> Option<Arc<ClusterView>> {
        let old = &self.published;
        let view = ClusterView {
            cluster: self.rules.cluster.clone(),
            generation: old.generation + 1,
            store: self.store.clone(),
            system_id: self.keys.initialize.clone(),
            leader_key: self.keys.leader.clone().filter(|_| !self.rules.members_alone),
            primary: self.open.clone(),
            floor: self.floors.get(&self.system_id).cloned(),
            closed_because,
            switchover,
            sync: self.sync(),
            said: Arc::new(self.said()),
            changes: old.changes.clone(),
            members: self.keys.members.iter().map(|(name, key)| (name.clone(), self.member(name, key, now))).collect(),
            bouncers: self.bouncers.clone(),
            cut: self.cuts(),
        };
        if old.generation > 0 && without_times(&view) == without_times(old) {
            return None;
        }
        let view = ClusterView { changes: changes::added(old, &view, now.wall), ..view };
        let moved = old.leader_key != view.leader_key
            || old.primary != view.primary
            || std::mem::discriminant(&old.store) != std::mem::discriminant(&view.store);
        if moved {
            self.changed = now.mono;
        }
        self.published = Arc::new(view);
        Some(self.published.clone())
    }

    fn said(&self) -> Said {
        let keys = &self.keys;
        Said {
            paused: keys.config.pause,
            standby_cluster: keys.config.standby_cluster,
            failover: keys.failover.clone(),
            failsafe: keys.failsafe.keys().filter(|_| keys.config.failsafe_mode).cloned().collect(),
            history: keys.history.clone(),
        }
    }

    /// Standbys that another leader named are none of this one's.
    fn sync(&self) -> SyncStandbys {
        let sync = &self.keys.sync;
        let is_current = sync.leader.is_some() && sync.leader == self.keys.leader;
        let standbys = if is_current { sync.standbys.clone() } else { Vec::new() };
        SyncStandbys { standbys, quorum_mode: self.keys.config.quorum_mode }
    }

    fn member(&self, name: &str, key: &MemberKey, now: Now) -> Member {
        let said = |name: &str| self.words.get(name).and_then(|word| word.wal);
        // Patroni writes its keys every `loop_wait`; the members' own word is as young as the last proof.
        let leader = match &self.named {
            Named::Member { name, .. } => said(name),
            Named::Unknown | Named::Absent { .. } => None,
        };
        // One that is silent, or gone, had written at least what was heard: its replicas stay as far behind as that.
        let written = self.keys.optime.max(leader.or_else(|| self.wal_clock.last()));
        let lag = written.zip(said(name).or(key.replayed)).map(|(written, replayed)| written.saturating_sub(replayed));
        let (role, state, timeline) = match self.words.get(name).filter(|_| self.rules.members_alone) {
            Some(word) => word.standing(now, self.rules.proof_hold),
            None => (key.role.clone(), key.state.clone(), key.timeline),
        };
        Member {
            name: name.into(),
            role,
            state,
            conn_url: key.conn_url.clone(),
            api_url: key.api_url.clone(),
            conn_addr: self.address(&key.conn_url),
            proxy_addr: self.address(&key.proxy_url),
            timeline,
            lag,
            lag_time: self.lag_time(name),
            tags: key.tags.clone(),
            proof: self.words.get(name).map(|word| word.shown.clone()).unwrap_or_default(),
        }
    }

    /// None for whoever is silent.
    fn lag_time(&self, name: &str) -> Option<Duration> {
        let word = self.words.get(name)?;
        self.wal_clock.age(word.wal?, word.asked?)
    }

    fn address(&self, url: &Option<String>) -> Option<SocketAddr> {
        let host = HostPort::of_url(url.as_ref()?)?;
        host.literal().or_else(|| self.addresses.get(&host).copied())
    }

    /// Everyone whose sessions must end: the key names another, or it says itself that it is not primary.
    fn cuts(&self) -> BTreeMap<String, String> {
        let leader = match &self.named {
            Named::Member { name, .. } => Some(name),
            Named::Unknown | Named::Absent { .. } => None,
        };
        let known = self.words.keys();
        known.filter_map(|name| Some((name.clone(), self.cut(name, leader)?))).collect()
    }

    fn cut(&self, name: &str, leader: Option<&String>) -> Option<String> {
        let denied = self.words.get(name).and_then(|word| word.denied.as_ref());
        match (denied.filter(|denied| denied.is_demotion()), leader) {
            (Some(denied), _) => Some(format!("{name} says it is {} ({})", denied.role, denied.state)),
            (None, Some(leader)) if leader != name => Some(self.names(leader)),
            _ => None,
        }
    }

    pub(super) fn nothing_known(&self) -> String {
        match &self.store {
            StoreHealth::Unreachable { why, .. } => format!("the store was never reached: {why}"),
            _ => "nothing heard from the store yet".into(),
        }
    }

    /// Who names this leader.
    pub(super) fn names(&self, leader: &str) -> String {
        match &self.named {
            Named::Member { by: By::Members, .. } => format!("{leader} proves to be primary on a higher timeline"),
            _ if self.rules.members_alone => format!("the configuration names {leader}"),
            _ => format!("the leader key names {leader}"),
        }
    }

    /// Why the member that is named is not held to be primary.
    pub(super) fn unproved(&self, name: &str) -> String {
        let names = self.names(name);
        let Some(word) = self.words.get(name) else {
            return format!("{names}, which has no member key");
        };
        if let Some(theirs) = word.proved.as_ref().and_then(|proved| self.foreign_system(proved)) {
            let ours = self.keys.initialize.as_deref().unwrap_or_default();
            return format!("{name} runs database system {theirs}, but the cluster's is {ours}");
        }
        let what = match &word.shown {
            _ if word.api_url.is_empty() => "has no api_url in its member key".into(),
            Proof::NotAsked => "has not been asked yet".into(),
            Proof::Primary { .. } => "proved to be primary too long ago".into(),
            Proof::NotPrimary { role, state, .. } if self.keys.config.standby_cluster => {
                format!("says it is {role} ({state}): this is a standby cluster, which has no primary")
            }
            Proof::NotPrimary { role, state, .. } => format!("says it is {role} ({state})"),
            Proof::Silent { why, .. } => format!("does not answer: {why}"),
        };
        format!("{names}, which {what}")
    }
}

/// The view with everything left out that may change without being news.
fn without_times(view: &ClusterView) -> ClusterView {
    let mut view = view.clone();
    let never = SystemTime::UNIX_EPOCH;
    view.generation = 0;
    match &mut view.store {
        StoreHealth::Starting => {}
        StoreHealth::Connected { revision } => *revision = 0,
        StoreHealth::Unreachable { since, .. } => *since = never,
    }
    for member in view.members.values_mut() {
        match &mut member.proof {
            Proof::NotAsked => {}
            Proof::Primary { at, .. } | Proof::NotPrimary { at, .. } => *at = never,
            Proof::Silent { since, .. } => *since = never,
        }
    }
    view
}
