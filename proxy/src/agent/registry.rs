//! What the agent tells the store of its PgBouncer: an entry that goes when the agent does.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Agent, Target};
use crate::cluster::store::{self, Places, Registration};
use crate::cluster::{Bouncer, BouncerState, ClusterView};

/// How long taking the entry out of the registry may take at the end.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long another's entry under our name may stand there: one of before us, or that is just being replaced.
const REPLACED_WITHIN: Duration = Duration::from_secs(2);
/// Of the same time for PgBouncer: for what is done where it cannot be brought to where its databases belong.
const LAST_RESORT: Duration = Duration::from_secs(2);

/// The entry in the store, once there is something to register.
pub(super) struct Registry {
    value: watch::Sender<Vec<u8>>,
    task: JoinHandle<()>,
    last: Bouncer,
    namesake: Namesake,
}

/// Another agent that was given our name, which no store can tell from us: only one of the two PgBouncers is registered.
#[derive(Debug, Default)]
struct Namesake {
    /// Where its PgBouncer is, and since when its entry is in the place of ours.
    seen: Option<(SocketAddr, Instant)>,
    told: Option<SocketAddr>,
}

impl Agent {
    pub(super) fn report_hold(&mut self, held: Result<bool, String>) {
        let state = match &held {
            Ok(true) => BouncerState::Paused,
            Ok(false) => BouncerState::Pausing,
            Err(_) => BouncerState::Failed,
        };
        let mut bouncer = self.bouncer(state);
        if let Some(target) = &self.target {
            (bouncer.leader, bouncer.timeline) = (Some(target.leader.clone()), target.timeline);
        }
        bouncer.reason = match held {
            Ok(true) => String::new(),
            Ok(false) => "transactions are under way".into(),
            Err(why) => why,
        };
        self.register(bouncer);
    }

    /// Tells the registry, and the log what is news.
    pub(super) fn report(&mut self, outcome: Result<Target, String>) {
        let maintenance = self.config.pgbouncer.maintenance_file.as_ref().filter(|file| file.exists());
        let mut bouncer = self.bouncer(BouncerState::Ready);
        match (outcome, maintenance) {
            (Ok(target), maintenance) => {
                if let Some(wanted) = self.wanted.take() {
                    let took = wanted.elapsed();
                    tracing::info!(leader = target.leader, timeline = target.timeline, ?took, "databases verified");
                }
                bouncer.leader = Some(target.leader);
                bouncer.timeline = target.timeline;
                if let Some(file) = maintenance {
                    bouncer.state = BouncerState::Draining;
                    bouncer.reason = format!("{} exists", file.display());
                }
            }
            (Err(why), _) => {
                bouncer.state = BouncerState::Failed;
                bouncer.reason = why;
            }
        }
        self.register(bouncer);
    }

    /// Says so if somebody else is registered under our name.
    pub(super) fn find_namesake(&mut self, view: &ClusterView) {
        let (name, ours) = (&self.config.name, self.config.pgbouncer.address);
        let there = view.bouncers.get(name).map(|bouncer| bouncer.address);
        let Some(registry) = &mut self.registry else { return };
        if let Some(address) = registry.namesake.found(there.filter(|there| *there != ours), Instant::now()) {
            tracing::error!(name, %address, "another PgBouncer is registered under this name: each agent needs its own");
        }
    }

    fn bouncer(&self, state: BouncerState) -> Bouncer {
        Bouncer {
            name: self.config.name.clone(),
            address: self.config.pgbouncer.address,
            peer_id: self.config.pgbouncer.peer_id,
            state,
            leader: None,
            timeline: None,
            reason: String::new(),
            tags: self.config.tags.clone(),
            waited_ms: self.waited.map(|waited| waited.as_millis() as u64),
        }
    }

    fn register(&mut self, bouncer: Bouncer) {
        let last = self.registry.as_ref().map(|registry| &registry.last);
        if last == Some(&bouncer) {
            return;
        }
        match bouncer.state {
            BouncerState::Failed => tracing::warn!(why = bouncer.reason, "not ready"),
            BouncerState::Draining => tracing::info!(why = bouncer.reason, "draining"),
            BouncerState::Ready => tracing::info!(leader = bouncer.leader, "ready"),
            BouncerState::Pausing => tracing::info!(why = bouncer.reason, "pausing"),
            BouncerState::Paused => tracing::info!("paused"),
        }
        let json = serde_json::to_vec(&bouncer).expect("a bouncer has nothing JSON cannot hold");
        match &mut self.registry {
            Some(registry) => {
                registry.value.send_replace(json);
                registry.last = bouncer;
            }
            None => self.registry = Some(self.enter(json, bouncer)),
        }
    }

    fn enter(&self, json: Vec<u8>, last: Bouncer) -> Registry {
        let (value, receiver) = watch::channel(json);
        let key = format!("{}{}", Places::of(&self.config.cluster).bouncers, self.config.name);
        let entry = Registration { key, value: receiver, ttl: self.config.lease_ttl };
        let task = tokio::spawn(store::register(&self.config.cluster, entry));
        Registry { value, task, last, namesake: Namesake::default() }
    }

    /// Out of the registry; PgBouncer goes on as it is. What is paused is resumed where the databases belong, or disabled.
    pub(super) async fn leave(mut self) {
        if self.hold.is_some() {
            let view = self.cluster.view.borrow().clone();
            let bringing = async {
                // A command that the end interrupted has taken its connection along.
                for _ in 0..2 {
                    let written = self.head_for_place(&view).await;
                    match self.go_on(written, &view).await {
                        Ok(_) => return true,
                        Err(why) => tracing::warn!(why, "PgBouncer cannot be brought to where the databases belong"),
                    }
                }
                false
            };
            let is_there = tokio::time::timeout(FAREWELL - LAST_RESORT, bringing).await.unwrap_or(false);
            let ending = async {
                match is_there {
                    true => Ok(()),
                    // Nobody may be left waiting, nor write what is lost.
                    false if self.is_astray(&view).await => self.close().await,
                    false => self.resume().await,
                }
            };
            let ended = tokio::time::timeout(LAST_RESORT, ending).await;
            if let Err(why) = ended.unwrap_or_else(|_| Err(format!("PgBouncer did not answer within {LAST_RESORT:?}")))
            {
                tracing::error!(why, "PgBouncer may be left paused or disabled; the next start puts it right");
            }
        }
        let Some(Registry { value, task, .. }) = self.registry.take() else { return };
        drop(value);
        if tokio::time::timeout(FAREWELL, task).await.is_err() {
            let ttl = self.config.lease_ttl;
            tracing::warn!(?ttl, "the store did not take the entry out; it goes when the lease ends");
        }
    }
}

// === impl Namesake ===

impl Namesake {
    /// `other` is whose entry stands in the place of ours. Its address once it is no passing thing, and once only.
    fn found(&mut self, other: Option<SocketAddr>, now: Instant) -> Option<SocketAddr> {
        self.seen = match (self.seen, other) {
            (Some((before, since)), Some(other)) if before == other => Some((other, since)),
            (_, other) => other.map(|other| (other, now)),
        };
        let (other, since) = self.seen?;
        if now.saturating_duration_since(since) < REPLACED_WITHIN || self.told == Some(other) {
            return None;
        }
        self.told = Some(other);
        self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_our_name_is_told_of_once_and_not_if_it_is_replaced_soon() {
        let (mut namesake, begun) = (Namesake::default(), Instant::now());
        let other: SocketAddr = "10.0.0.22:6432".parse().unwrap();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(namesake.found(Some(other), at(0)), None);
        assert_eq!(namesake.found(None, at(1)), None);
        assert_eq!(namesake.found(Some(other), at(3)), None);
        assert_eq!(namesake.found(Some(other), at(4)), None);
        assert_eq!(namesake.found(Some(other), at(5)), Some(other));
        assert_eq!(namesake.found(Some(other), at(9)), None);
    }
}
