//! What the agent tells the store of its PgBouncer: an entry that goes when the agent does.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Agent, Target};
use crate::cluster::store::{self, Places, Registration};
use crate::cluster::{Bouncer, BouncerState};

/// How long taking the entry out of the registry may take at the end.
const FAREWELL: Duration = Duration::from_secs(5);
/// Of the same time for PgBouncer: for what is done where it cannot be brought to where its databases belong.
const LAST_RESORT: Duration = Duration::from_secs(2);

/// The entry in the store, once there is something to register.
pub(super) struct Registry {
    value: watch::Sender<Vec<u8>>,
    task: JoinHandle<()>,
    last: Bouncer,
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
        Registry { value, task, last }
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
