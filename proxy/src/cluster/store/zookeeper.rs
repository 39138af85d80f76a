//! ZooKeeper: everything is read after a `sync`, with one-shot watches on what was read, and read again after any event.
//!
//! The protocol is spoken here: the crates there are bring a second reactor beside tokio, or are no longer maintained,
//! and nine operations are all that is needed. Each connection has a session of its own. Which transaction a server
//! has seen is in each of its answers, so that an older one is known for what it is.

mod connection;
mod jute;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::connection::Connection;
use super::contents::{Contents, Folder};
use super::life::{self, Backoff, Follow, Hold, any_of};
use super::{Places, Registration, Store, StoreEvent};
use crate::cluster::tls::TlsError;
use crate::config::ZookeeperConfig;

/// What Patroni keeps beside `members/`: a node for each, and no others matter.
const KEYS: [&str; 9] =
    ["leader", "initialize", "config", "status", "sync", "failover", "history", "failsafe", "optime/leader"];
/// Of a follower's session; nothing depends on it.
const SESSION: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct ZookeeperStore {
    config: ZookeeperConfig,
    /// The host in use.
    current: usize,
    /// The newest transaction seen through any of them.
    seen: i64,
}

/// Why a session with one host ended.
#[derive(Debug, thiserror::Error)]
pub enum ZookeeperError {
    #[error("zookeeper.tls: {0}")]
    Tls(#[from] TlsError),
    #[error("{host}: {what}: {source}")]
    Lost { host: String, what: &'static str, source: std::io::Error },
    #[error("{host}: it closed the connection")]
    Closed { host: String },
    #[error("{host}: {what}: no answer within {limit:?}")]
    Timeout { host: String, what: &'static str, limit: Duration },
    #[error("{host}: {what} {path}: {why}")]
    Refused { host: String, what: &'static str, path: String, why: String },
    #[error("what came is not ZooKeeper's protocol, or longer than it may be")]
    Malformed,
    #[error(
        "{host} is at transaction {zxid:#x}, older than {seen:#x} seen before: if this ZooKeeper was restored from a \
         backup on purpose, restart pgsplice"
    )]
    OlderTransaction { host: String, zxid: i64, seen: i64 },
    #[error("{host}: the watches do not tell what a read shows")]
    WatchStuck { host: String },
    #[error("{host}: the session is gone")]
    SessionGone { host: String },
}

/// A connection and what was read through it.
pub struct Session {
    connection: Connection,
    read: Read,
}

#[derive(Debug)]
struct Read {
    contents: Contents,
    /// Transaction of the leader node's last change, 0 where it is absent.
    leader: i64,
}

// === impl ZookeeperStore ===

impl ZookeeperStore {
    pub fn new(config: ZookeeperConfig) -> Self {
        Self { current: any_of(config.hosts.len()), config, seen: 0 }
    }

    fn host(&self) -> String {
        self.config.hosts.get(self.current).cloned().unwrap_or_default()
    }

    /// Refuses a server that is behind what was seen.
    fn accept(&mut self, zxid: i64) -> Result<(), ZookeeperError> {
        if zxid < self.seen {
            return Err(ZookeeperError::OlderTransaction { host: self.host(), zxid, seen: self.seen });
        }
        self.seen = zxid;
        Ok(())
    }

    /// Runs a call under a time limit.
    async fn bounded<T>(
        &self,
        what: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, ZookeeperError>>,
    ) -> Result<T, ZookeeperError> {
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => Err(ZookeeperError::Timeout { host: self.host(), what, limit }),
        }
    }
}

impl Store for ZookeeperStore {
    async fn follow(self, places: Places, events: mpsc::Sender<StoreEvent>) {
        life::follow(self, places, events).await;
    }

    async fn register(self, entry: Registration) {
        life::register(self, entry).await;
    }
}

impl Follow for ZookeeperStore {
    type Session = Session;
    type Error = ZookeeperError;

    async fn establish(&mut self, places: &Places) -> Result<Session, ZookeeperError> {
        let limit = self.config.connect_timeout;
        let host = self.host();
        let mut connection = self.bounded("connect", limit, Connection::open(&host, &self.config, SESSION)).await?;
        // A server that lags behind catches up first.
        self.bounded("sync", limit, look(&mut connection, places)).await?;
        self.accept(connection.zxid)?;
        let read = self.bounded("list", limit, read(&mut connection, places)).await?;
        Ok(Session { connection, read })
    }

    async fn keep(
        &mut self,
        session: Session,
        places: &Places,
        events: &mpsc::Sender<StoreEvent>,
    ) -> Result<(), ZookeeperError> {
        let Session { mut connection, read: mut held } = session;
        if events.send(held.contents.snapshot(connection.zxid)).await.is_err() {
            return Ok(());
        }
        let limit = self.config.keepalive_timeout;
        let every = self.config.keepalive_interval.min(connection.timeout / 3);
        let mut beat = interval_at(Instant::now() + every, every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut behind = false;
        loop {
            tokio::select! {
                () = events.closed() => return Ok(()),
                event = connection.event() => event?,
                _ = beat.tick() => {
                    let leader = self.bounded("read", limit, look(&mut connection, places)).await?;
                    self.accept(connection.zxid)?;
                    // An event that came on the way explains it.
                    let differs = leader != held.leader && !connection.changed;
                    if differs && behind {
                        return Err(ZookeeperError::WatchStuck { host: self.host() });
                    }
                    behind = differs;
                }
            }
            if std::mem::take(&mut connection.changed) {
                let now = self.bounded("list", limit, read(&mut connection, places)).await?;
                self.accept(connection.zxid)?;
                let news = now.contents != held.contents;
                held = now;
                if news && events.send(held.contents.snapshot(connection.zxid)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn turn(&mut self) {
        self.current = (self.current + 1) % self.config.hosts.len().max(1);
    }

    fn endpoints(&self) -> usize {
        self.config.hosts.len()
    }
}

impl Hold for ZookeeperStore {
    type Error = ZookeeperError;

    async fn hold(&mut self, entry: &mut Registration, backoff: &mut Backoff) -> Result<(), ZookeeperError> {
        let (host, limit) = (self.host(), self.config.keepalive_timeout);
        let opening = Connection::open(&host, &self.config, entry.ttl);
        let mut connection = self.bounded("connect", self.config.connect_timeout, opening).await?;
        let every = (entry.ttl / 3).min(connection.timeout / 3);
        let mut beat = interval_at(Instant::now() + every, every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_new = true;
        loop {
            let value = entry.value.borrow_and_update().clone();
            if is_new {
                self.bounded("create", limit, enter(&mut connection, &entry.key, &value)).await?;
                is_new = false;
            } else if !self.bounded("write", limit, connection.set(&entry.key, &value)).await? {
                return Err(ZookeeperError::SessionGone { host });
            }
            backoff.reset();
            loop {
                tokio::select! {
                    changed = entry.value.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => {
                            // The entry goes with its session.
                            self.bounded("close the session", limit, connection.close()).await?;
                            return Ok(());
                        }
                    },
                    // Nothing is watched: this tells only that the connection is gone.
                    event = connection.event() => event?,
                    _ = beat.tick() => {
                        let owner = self.bounded("read", limit, owner(&mut connection, &entry.key)).await?;
                        if owner != Some(connection.session) {
                            return Err(ZookeeperError::SessionGone { host });
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

/// The leader node's last change, 0 where it is absent, as ZooKeeper's leader has it now.
async fn look(connection: &mut Connection, places: &Places) -> Result<i64, ZookeeperError> {
    let leader = format!("{}leader", places.patroni);
    connection.ask_sync(&leader).await?;
    connection.ask_exists(&leader, false).await?;
    connection.synced(&leader).await?;
    Ok(connection.exists(&leader).await?.map_or(0, |stat| stat.mzxid))
}

/// Everything in both folders, each node and each list watched from now on. Asked in two rounds, not one by one.
async fn read(connection: &mut Connection, places: &Places) -> Result<Read, ZookeeperError> {
    let (root, bouncers) = (places.patroni.trim_end_matches('/'), places.bouncers.trim_end_matches('/'));
    let members = format!("{root}/members");
    // A list tells of nodes that come; a folder that is not there can only be waited for.
    let lists = [root, &members, bouncers];
    for list in lists {
        connection.ask_exists(list, true).await?;
        connection.ask_children(list).await?;
    }
    for key in KEYS {
        connection.ask_data(&format!("{root}/{key}")).await?;
    }
    let mut named = Vec::new();
    for list in lists {
        connection.exists(list).await?;
        named.push(connection.children(list).await?.unwrap_or_default());
    }
    let (bouncer_names, member_names) = (named.pop().unwrap_or_default(), named.pop().unwrap_or_default());
    let mut patroni = Folder::default();
    let mut leader = 0;
    for key in KEYS {
        if let Some(node) = connection.data(&format!("{root}/{key}")).await? {
            if key == "leader" {
                leader = node.stat.mzxid;
            }
            patroni.put(key, &node.value);
        }
    }
    let mut registered = Folder::default();
    for (folder, prefix, list, names) in
        [(&mut patroni, "members/", &*members, &member_names), (&mut registered, "", bouncers, &bouncer_names)]
    {
        // A few at a time: the answers wait in the connection's buffer.
        for some in names.chunks(64) {
            for name in some {
                connection.ask_data(&format!("{list}/{name}")).await?;
            }
            for name in some {
                if let Some(node) = connection.data(&format!("{list}/{name}")).await? {
                    folder.put(&format!("{prefix}{name}"), &node.value);
                }
            }
        }
    }
    Ok(Read { contents: Contents::of(patroni, registered), leader })
}

/// Makes the entry, its folders first, in place of what a dead agent of this name left: its session may outlive it for a
/// while.
async fn enter(connection: &mut Connection, key: &str, value: &[u8]) -> Result<(), ZookeeperError> {
    for (end, _) in key.match_indices('/').skip(1) {
        connection.create(&key[..end], &[], false).await?;
    }
    while !connection.create(key, value, true).await? {
        connection.delete(key).await?;
    }
    Ok(())
}

async fn owner(connection: &mut Connection, key: &str) -> Result<Option<i64>, ZookeeperError> {
    connection.ask_exists(key, false).await?;
    Ok(connection.exists(key).await?.map(|stat| stat.owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_transaction_is_refused() {
        let mut store = ZookeeperStore::new(ZookeeperConfig { hosts: vec!["zk1:2181".into()], ..Default::default() });
        store.accept(7).unwrap();
        store.accept(7).unwrap();
        let error = store.accept(6).unwrap_err().to_string();
        assert!(error.starts_with("zk1:2181 is at transaction 0x6, older than 0x7 seen before"), "{error}");
    }
}
