//! etcd v3: list both folders at one revision, watch them from the next, list again after any doubt.
//!
//! One endpoint is used at a time, so that an error has a name. A quorum read every `keepalive_interval` proves that
//! the endpoint still has a cluster behind it: HTTP/2 pings would prove only the connection, and etcd refuses them
//! when they come more often than every 5 s (`--grpc-keepalive-min-time`).

mod link;

use std::pin::Pin;
use std::time::Duration;

use etcd_client::{Client, Event, EventType, KeyValue, PutOptions, WatchOptions, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::link::{Header, Link, bounded};
use super::contents::Contents;
use super::life::{self, Backoff, Follow, Hold};
use super::{Places, Registration, Store, StoreEvent};
use crate::config::EtcdConfig;

#[derive(Debug)]
pub struct EtcdStore {
    config: EtcdConfig,
    link: Link,
}

/// Why a session with one endpoint ended.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    #[error("{endpoint}: {what}: {source}")]
    Call { endpoint: String, what: &'static str, source: link::Cause },
    #[error("{endpoint}: {what}: no answer within {limit:?}")]
    Timeout { endpoint: String, what: &'static str, limit: Duration },
    #[error("etcd.tls: cannot read {path}: {source}")]
    TlsFile { path: String, source: std::io::Error },
    #[error("etcd.tls.ca is not set, and {endpoint} speaks TLS: name the CA that signed its certificate")]
    NoCa { endpoint: String },
    #[error(
        "{endpoint} is at revision {revision}, older than {seen} seen before: if this etcd was restored from a backup \
         on purpose, restart pgsplice"
    )]
    OlderRevision { endpoint: String, revision: i64, seen: i64 },
    #[error("{endpoint}: the watch was cancelled: {why}")]
    Cancelled { endpoint: String, why: String },
    #[error("{endpoint}: the watch ended")]
    WatchEnded { endpoint: String },
    #[error("{endpoint}: the watch does not deliver what a read shows")]
    WatchStuck { endpoint: String },
    #[error("{endpoint}: the lease is gone")]
    LeaseGone { endpoint: String },
}

/// What the watch has brought so far.
#[derive(Debug, Default)]
pub struct Watched {
    revision: i64,
    contents: Contents,
    /// Revision of the leader key's last change, 0 while it is absent.
    leader_revision: i64,
}

/// A connection that has listed and watches.
pub struct Session {
    client: Client,
    stream: WatchStream,
    contents: Watched,
}

/// What was seen before a quorum read, its header, and the leader key's revision.
type Answer = Result<(Option<Header>, Header, i64), EtcdError>;

/// A quorum read under way.
type Read = Pin<Box<dyn Future<Output = Answer> + Send>>;

async fn finished(read: &mut Option<Read>) -> Answer {
    match read {
        Some(read) => read.await,
        None => std::future::pending().await,
    }
}

// === impl EtcdStore ===

impl EtcdStore {
    pub fn new(config: EtcdConfig) -> Self {
        Self { link: Link::new(&config), config }
    }
}

impl Store for EtcdStore {
    async fn follow(self, places: Places, events: mpsc::Sender<StoreEvent>) {
        life::follow(self, places, events).await;
    }

    async fn register(self, entry: Registration) {
        life::register(self, entry).await;
    }
}

impl Follow for EtcdStore {
    type Session = Session;
    type Error = EtcdError;

    /// Connects, lists both folders at one revision and watches from the next.
    async fn establish(&mut self, places: &Places) -> Result<Session, EtcdError> {
        let mut client = self.link.connect(&self.config).await?;
        let endpoint = self.link.endpoint().to_owned();
        let limit = self.config.connect_timeout;
        let folders = [&places.patroni, &places.bouncers];
        let (header, kvs) = bounded(&endpoint, "list", limit, link::list(&mut client, folders)).await?;
        self.link.accept(self.link.seen(), header)?;
        let mut contents = Watched { revision: header.revision, ..Watched::default() };
        for kv in &kvs {
            contents.put(places, kv);
        }
        let options = WatchOptions::new().with_prefix().with_progress_notify().with_start_revision(header.revision + 1);
        let first = client.watch(&*places.patroni, Some(options.clone().with_watch_id(1)));
        let mut stream = bounded(&endpoint, "watch", limit, first).await?;
        let second = stream.watch(&*places.bouncers, Some(options.with_watch_id(2)));
        bounded(&endpoint, "watch", limit, second).await?;
        Ok(Session { client, stream, contents })
    }

    async fn keep(
        &mut self,
        session: Session,
        places: &Places,
        events: &mpsc::Sender<StoreEvent>,
    ) -> Result<(), EtcdError> {
        let Session { client, mut stream, mut contents } = session;
        if events.send(contents.snapshot()).await.is_err() {
            return Ok(());
        }
        let every = self.config.keepalive_interval;
        let mut beat = interval_at(Instant::now() + every, every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let endpoint = self.link.endpoint().to_owned();
        // The read must not hold up the watch: it runs beside it.
        let mut read: Option<Read> = None;
        let mut behind = false;
        loop {
            tokio::select! {
                () = events.closed() => return Ok(()),
                message = stream.message() => {
                    let message = message.map_err(|source| link::call(&endpoint, "watch", source))?;
                    let message = message.ok_or_else(|| EtcdError::WatchEnded { endpoint: endpoint.clone() })?;
                    if message.canceled() {
                        return Err(EtcdError::Cancelled { endpoint, why: cancel_reason(&message) });
                    }
                    if let Some(header) = message.header() {
                        contents.revision = contents.revision.max(header.revision());
                    }
                    if contents.apply(places, message.events()) {
                        self.link.accept_event(contents.revision);
                        if events.send(contents.snapshot()).await.is_err() {
                            return Ok(());
                        }
                    }
                }
                _ = beat.tick(), if read.is_none() => {
                    let mut client = client.clone();
                    let (endpoint, key) = (endpoint.clone(), format!("{}leader", places.patroni));
                    let (limit, asked) = (self.config.keepalive_timeout, self.link.seen());
                    read = Some(Box::pin(async move {
                        let (header, leader) =
                            bounded(&endpoint, "read", limit, link::read_leader(&mut client, &key)).await?;
                        Ok((asked, header, leader))
                    }));
                }
                result = finished(&mut read) => {
                    let (asked, header, leader_revision) = result?;
                    read = None;
                    self.link.accept(asked, header)?;
                    let differs = leader_revision != contents.leader_revision;
                    if differs && behind {
                        return Err(EtcdError::WatchStuck { endpoint });
                    }
                    behind = differs;
                }
            }
        }
    }

    fn turn(&mut self) {
        self.link.next_endpoint();
    }

    fn endpoints(&self) -> usize {
        self.config.endpoints.len()
    }
}

impl Hold for EtcdStore {
    type Error = EtcdError;

    async fn hold(&mut self, entry: &mut Registration, backoff: &mut Backoff) -> Result<(), EtcdError> {
        let mut client = self.link.connect(&self.config).await?;
        let endpoint = self.link.endpoint();
        let limit = self.config.keepalive_timeout;
        let ttl = i64::try_from(entry.ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let lease = bounded(endpoint, "grant a lease", limit, client.lease_grant(ttl, None)).await?.id();
        let (mut keeper, mut kept) = bounded(endpoint, "keep the lease", limit, client.lease_keep_alive(lease)).await?;
        let mut beat = interval_at(Instant::now() + entry.ttl / 3, entry.ttl / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let value = entry.value.borrow_and_update().clone();
            let put = client.put(&*entry.key, value, Some(PutOptions::new().with_lease(lease)));
            bounded(endpoint, "put", limit, put).await?;
            backoff.reset();
            loop {
                tokio::select! {
                    changed = entry.value.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => {
                            bounded(endpoint, "revoke the lease", limit, client.lease_revoke(lease)).await?;
                            return Ok(());
                        }
                    },
                    _ = beat.tick() => {
                        bounded(endpoint, "keep the lease", limit, keeper.keep_alive()).await?;
                        let answer = bounded(endpoint, "keep the lease", limit, kept.message()).await?;
                        if answer.is_none_or(|answer| answer.ttl() <= 0) {
                            return Err(EtcdError::LeaseGone { endpoint: endpoint.into() });
                        }
                    }
                }
            }
        }
    }

    fn turn(&mut self) {
        self.link.next_endpoint();
    }
}

fn cancel_reason(message: &etcd_client::WatchResponse) -> String {
    match (message.compact_revision(), message.cancel_reason()) {
        (0, "") => "no reason given".into(),
        (0, why) => why.into(),
        (revision, _) => format!("revisions up to {revision} were compacted"),
    }
}

// === impl Watched ===

impl Watched {
    fn snapshot(&self) -> StoreEvent {
        self.contents.snapshot(self.revision)
    }

    /// Keys that are not UTF-8 are nobody's.
    fn put(&mut self, places: &Places, kv: &KeyValue) {
        let Ok(key) = std::str::from_utf8(kv.key()) else { return };
        self.contents.put(places, key, kv.value());
        if places.is_leader(key) {
            self.leader_revision = kv.mod_revision();
        }
    }

    /// Returns whether there was anything to apply.
    fn apply(&mut self, places: &Places, events: &[Event]) -> bool {
        for event in events {
            let Some(kv) = event.kv() else { continue };
            match event.event_type() {
                EventType::Put => self.put(places, kv),
                EventType::Delete => {
                    let Ok(key) = std::str::from_utf8(kv.key()) else { continue };
                    self.contents.remove(places, key);
                    if places.is_leader(key) {
                        self.leader_revision = 0;
                    }
                }
            }
        }
        !events.is_empty()
    }
}
