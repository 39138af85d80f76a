//! Consul: both folders by blocking queries, each answered with everything in it once something changed.
//!
//! Every query is `consistent`: Consul's leader asks a majority before it answers. A second pair of reads every
//! `keepalive_interval` tells what a blocking query cannot: that the agent still has servers behind it, that the token
//! may still read (a list without permission is an empty list, a single key is refused), that the query misses
//! nothing, and that Consul's history has not gone back.

mod link;

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::link::{Acquired, Link, Listed};
use super::contents::Contents;
use super::life::{self, Backoff, Follow, Hold, any_of};
use super::{Places, Registration, Store, StoreEvent};
use crate::cluster::http::ClientError;
use crate::cluster::names::Names;
use crate::config::ConsulConfig;

/// Consul's least; a session may outlive it by as much again (`structs.SessionTTLMin`, `SessionTTLMultiplier`).
const LEAST_TTL: Duration = Duration::from_secs(10);
/// A query that is answered again and again without news is not asked more often than this.
const PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct ConsulStore {
    config: ConsulConfig,
    /// The endpoint in use.
    current: usize,
    /// The highest index of the key-value table seen through any of them.
    seen: u64,
    /// That of the leader key's last change.
    seen_leader: u64,
    names: Names,
}

/// Why a session with one endpoint ended.
#[derive(Debug, thiserror::Error)]
pub enum ConsulError {
    #[error("consul{0}")]
    Client(#[from] ClientError),
    #[error("{endpoint}: {what}: {why}")]
    Call { endpoint: String, what: &'static str, why: String },
    #[error("{endpoint}: {what}: no answer within {limit:?}")]
    Timeout { endpoint: String, what: &'static str, limit: Duration },
    #[error(
        "{endpoint} is at index {index}, older than {seen} seen before: if this Consul was restored from a snapshot on \
         purpose, restart pgsplice"
    )]
    OlderIndex { endpoint: String, index: u64, seen: u64 },
    #[error("{endpoint}: the blocking query does not deliver what a read shows")]
    WatchStuck { endpoint: String },
    #[error("{endpoint}: the session is gone")]
    SessionGone { endpoint: String },
    #[error("{endpoint}: {key} is held by another session")]
    Taken { endpoint: String, key: String },
}

/// An endpoint that has listed both folders.
pub struct Session {
    link: Link,
    patroni: Listed,
    bouncers: Listed,
}

/// The same folder once it has changed.
type Wait = Pin<Box<dyn Future<Output = Result<Listed, ConsulError>> + Send>>;

/// The second pair of reads, with what was seen before it.
type Look = Pin<Box<dyn Future<Output = Result<(u64, Looked), ConsulError>> + Send>>;

/// What it brought.
struct Looked {
    /// Of the whole key-value table.
    table: u64,
    /// Of the leader key's last change, 0 where it is absent.
    leader: u64,
}

// === impl ConsulStore ===

impl ConsulStore {
    pub fn new(config: ConsulConfig) -> Self {
        Self { current: any_of(config.endpoints.len()), config, seen: 0, seen_leader: 0, names: Names::default() }
    }

    fn link(&self) -> Result<Link, ConsulError> {
        Link::new(&self.config, self.current, &self.names)
    }

    /// Refuses a table that is older than what was seen when it was asked for.
    fn accept(&mut self, endpoint: &str, seen: u64, index: u64) -> Result<(), ConsulError> {
        if index < seen {
            return Err(ConsulError::OlderIndex { endpoint: endpoint.into(), index, seen });
        }
        self.seen = self.seen.max(index);
        Ok(())
    }

    /// Refuses a folder that is older than what was seen. After a snapshot was restored the next write anywhere lifts
    /// the table's index above all before: then the leader key, changed earlier than the one before it, gives it away.
    fn accept_list(&mut self, endpoint: &str, listed: &Listed) -> Result<(), ConsulError> {
        if let Some(table) = listed.table {
            self.accept(endpoint, self.seen, table)?;
        }
        if (1..self.seen_leader).contains(&listed.leader) {
            let (index, seen) = (listed.leader, self.seen_leader);
            return Err(ConsulError::OlderIndex { endpoint: endpoint.into(), index, seen });
        }
        self.seen = self.seen.max(listed.index);
        self.seen_leader = self.seen_leader.max(listed.leader);
        Ok(())
    }
}

impl Store for ConsulStore {
    async fn follow(self, places: Places, events: mpsc::Sender<StoreEvent>) {
        // Consul's keys begin without a slash.
        let bare = |folder: String| folder.trim_start_matches('/').to_owned();
        let places = Places { patroni: bare(places.patroni), bouncers: bare(places.bouncers) };
        life::follow(self, places, events).await;
    }

    async fn register(self, mut entry: Registration) {
        entry.key = entry.key.trim_start_matches('/').into();
        life::register(self, entry).await;
    }
}

impl Follow for ConsulStore {
    type Session = Session;
    type Error = ConsulError;

    async fn establish(&mut self, places: &Places) -> Result<Session, ConsulError> {
        let link = self.link()?;
        let limit = self.config.connect_timeout;
        let looked = link.bounded("read", limit, look(link.clone(), places.clone())).await?;
        self.accept(&link.endpoint, self.seen, looked.table)?;
        let patroni = link.bounded("list", limit, link.list(&places.patroni, 0)).await?;
        let bouncers = link.bounded("list", limit, link.list(&places.bouncers, 0)).await?;
        self.accept_list(&link.endpoint, &patroni)?;
        Ok(Session { link, patroni, bouncers })
    }

    async fn keep(
        &mut self,
        session: Session,
        places: &Places,
        events: &mpsc::Sender<StoreEvent>,
    ) -> Result<(), ConsulError> {
        let Session { link, mut patroni, mut bouncers } = session;
        if events.send(self.snapshot(&patroni, &bouncers)).await.is_err() {
            return Ok(());
        }
        let every = self.config.keepalive_interval;
        let mut beat = interval_at(Instant::now() + every, every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_patroni = wait(&link, places, &places.patroni, patroni.index, Duration::ZERO);
        let mut next_bouncers = wait(&link, places, &places.bouncers, bouncers.index, Duration::ZERO);
        let mut look_now: Option<Look> = None;
        let mut behind = false;
        loop {
            let news = tokio::select! {
                () = events.closed() => return Ok(()),
                listed = &mut next_patroni => {
                    let listed = listed?;
                    self.accept_list(&link.endpoint, &listed)?;
                    let (index, pause) = follow_on(&patroni, &listed);
                    next_patroni = wait(&link, places, &places.patroni, index, pause);
                    replace(&mut patroni, listed)
                }
                listed = &mut next_bouncers => {
                    let listed = listed?;
                    self.accept_list(&link.endpoint, &listed)?;
                    let (index, pause) = follow_on(&bouncers, &listed);
                    next_bouncers = wait(&link, places, &places.bouncers, index, pause);
                    replace(&mut bouncers, listed)
                }
                _ = beat.tick(), if look_now.is_none() => {
                    let (link, places, limit) = (link.clone(), places.clone(), self.config.keepalive_timeout);
                    let seen = self.seen;
                    look_now = Some(Box::pin(async move {
                        Ok((seen, link.bounded("read", limit, look(link.clone(), places)).await?))
                    }));
                    false
                }
                looked = finished(&mut look_now) => {
                    let (seen, looked) = looked?;
                    look_now = None;
                    // A list may have brought something newer meanwhile.
                    self.accept(&link.endpoint, seen, looked.table)?;
                    let differs = looked.leader != patroni.leader;
                    if differs && behind {
                        return Err(ConsulError::WatchStuck { endpoint: link.endpoint });
                    }
                    behind = differs;
                    false
                }
            };
            if news && events.send(self.snapshot(&patroni, &bouncers)).await.is_err() {
                return Ok(());
            }
        }
    }

    fn turn(&mut self) {
        self.current = (self.current + 1) % self.config.endpoints.len().max(1);
    }

    fn endpoints(&self) -> usize {
        self.config.endpoints.len()
    }
}

impl ConsulStore {
    fn snapshot(&self, patroni: &Listed, bouncers: &Listed) -> StoreEvent {
        let revision = self.seen.max(patroni.index).max(bouncers.index);
        let contents = Contents::of(patroni.folder.clone(), bouncers.folder.clone());
        contents.snapshot(i64::try_from(revision).unwrap_or(i64::MAX))
    }
}

impl Hold for ConsulStore {
    type Error = ConsulError;

    async fn hold(&mut self, entry: &mut Registration, backoff: &mut Backoff) -> Result<(), ConsulError> {
        let link = self.link()?;
        let limit = self.config.keepalive_timeout;
        let session = link.bounded("create a session", limit, link.create_session(entry.ttl.max(LEAST_TTL))).await?;
        let mut beat = interval_at(Instant::now() + entry.ttl / 3, entry.ttl / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let value = entry.value.borrow_and_update().clone();
            let acquire = || link.bounded("put", limit, link.acquire(&entry.key, &session, value.clone()));
            if acquire().await? == Acquired::No {
                // What a dead agent of this name left: its session may outlive it for a while.
                link.bounded("delete", limit, link.delete(&entry.key)).await?;
                if acquire().await? == Acquired::No {
                    return Err(ConsulError::Taken { endpoint: link.endpoint, key: entry.key.clone() });
                }
            }
            backoff.reset();
            loop {
                tokio::select! {
                    changed = entry.value.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => {
                            // The entry goes with its session.
                            link.bounded("destroy the session", limit, link.destroy_session(&session)).await?;
                            return Ok(());
                        }
                    },
                    _ = beat.tick() => {
                        link.bounded("renew the session", limit, link.renew_session(&session)).await?;
                        let owner = link.bounded("read", limit, link.read(&entry.key)).await?.session;
                        if owner.as_ref() != Some(&session) {
                            return Err(ConsulError::SessionGone { endpoint: link.endpoint });
                        }
                    }
                }
            }
        }
    }

    fn turn(&mut self) {
        Follow::turn(self);
    }
}

/// Reads the leader key, and a key that is never there: its answer carries the index of the whole table, which only
/// grows, while the index of a folder also falls when Consul forgets about deleted keys.
async fn look(link: Link, places: Places) -> Result<Looked, ConsulError> {
    let leader = link.read(&format!("{}leader", places.patroni)).await?;
    let absent = link.read(&format!("{}.absent", places.bouncers)).await?;
    Ok(Looked { table: absent.index.max(leader.index), leader: leader.modified })
}

async fn finished(look: &mut Option<Look>) -> Result<(u64, Looked), ConsulError> {
    match look {
        Some(look) => look.await,
        None => std::future::pending().await,
    }
}

fn wait(link: &Link, places: &Places, folder: &str, index: u64, pause: Duration) -> Wait {
    let (link, places, folder) = (link.clone(), places.clone(), folder.to_owned());
    Box::pin(async move {
        tokio::time::sleep(pause).await;
        let mut listed = link.list(&folder, index).await?;
        if listed.index < index {
            // Forgotten keys, or a history that went back: the table knows.
            listed.table = Some(look(link, places).await?.table);
        }
        Ok(listed)
    })
}

/// From which index to wait on, and how long to hold back before: an index that went back starts again from none
/// (developer.hashicorp.com/consul/api-docs/features/blocking).
fn follow_on(before: &Listed, now: &Listed) -> (u64, Duration) {
    let pause = if now.index > before.index { Duration::ZERO } else { PAUSE };
    (if now.index < before.index { 0 } else { now.index }, pause)
}

/// Whether the folder is another one.
fn replace(held: &mut Listed, listed: Listed) -> bool {
    let differs = held.folder != listed.folder;
    *held = listed;
    differs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::store::contents::Folder;

    fn listed(index: u64, leader: &str) -> Listed {
        let mut folder = Folder::default();
        folder.put("leader", leader.as_bytes());
        Listed { index, folder, leader: index, table: None }
    }

    #[test]
    fn an_index_that_goes_back_starts_again_and_one_that_stands_still_is_not_asked_in_a_loop() {
        assert_eq!(follow_on(&listed(7, "a"), &listed(9, "b")), (9, Duration::ZERO));
        assert_eq!(follow_on(&listed(7, "a"), &listed(7, "a")), (7, PAUSE));
        assert_eq!(follow_on(&listed(7, "a"), &listed(3, "a")), (0, PAUSE));
    }

    #[test]
    fn only_another_content_is_news() {
        let mut held = listed(7, "a");
        assert!(!replace(&mut held, listed(9, "a")));
        assert!(replace(&mut held, listed(10, "b")));
    }

    #[test]
    fn an_older_table_is_refused() {
        let mut store = ConsulStore::new(ConsulConfig::default());
        store.accept("a", 0, 7).unwrap();
        store.accept("a", 7, 7).unwrap();
        store.accept_list("a", &listed(9, "pg1")).unwrap();
        store.accept("a", 7, 8).expect("the list was faster than the look");
        assert_eq!(store.seen, 9);
        let error = store.accept("http://a:1", 7, 6).unwrap_err().to_string();
        assert!(error.starts_with("http://a:1 is at index 6, older than 7 seen before"), "{error}");
    }

    #[test]
    fn a_leader_key_changed_earlier_than_the_one_before_it_is_refused() {
        let mut store = ConsulStore::new(ConsulConfig::default());
        store.accept_list("a", &listed(7, "pg2")).unwrap();
        store.accept_list("a", &Listed { leader: 0, ..listed(9, "") }).expect("an absent key is none");
        assert!(store.accept_list("a", &Listed { leader: 6, ..listed(20, "pg1") }).is_err());
        store.accept_list("a", &listed(21, "pg3")).unwrap();
        assert!(store.accept_list("a", &Listed { table: Some(20), ..listed(21, "pg3") }).is_err());
    }
}
