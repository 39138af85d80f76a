//! etcd v3: list both folders at one revision, watch them from the next, list again after any doubt.
//!
//! One endpoint is used at a time, so that an error has a name. A quorum read every `keepalive_interval` proves that
//! the endpoint still has a cluster behind it: HTTP/2 pings would prove only the connection, and etcd refuses them
//! when they come more often than every 5 s (`--grpc-keepalive-min-time`).

mod link;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use etcd_client::{Client, Event, EventType, KeyValue, PutOptions, WatchOptions, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use self::link::{Header, Link, bounded};
use super::{Backoff, Places, Registration, Store, StoreEvent};
use crate::cluster::patroni::Keys;
use crate::config::EtcdConfig;

/// A lost endpoint is no news as long as another takes over within this time.
const GRACE: Duration = Duration::from_secs(1);

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

/// What one folder pair holds.
#[derive(Debug, Default)]
struct Contents {
    revision: i64,
    keys: Keys,
    bouncers: Keys,
    /// Revision of the leader key's last change, 0 while it is absent.
    leader_revision: i64,
}

/// A connection that has listed and watches.
struct Session {
    client: Client,
    stream: WatchStream,
    contents: Contents,
}

/// A quorum read under way: the header and the leader key's revision.
type Read = Pin<Box<dyn Future<Output = Result<(Header, i64), EtcdError>> + Send>>;

async fn finished(read: &mut Option<Read>) -> Result<(Header, i64), EtcdError> {
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
    async fn follow(mut self, places: Places, events: mpsc::Sender<StoreEvent>) {
        let mut backoff = Backoff::default();
        let mut told: Option<String> = None;
        let mut failures = 0;
        let mut tell_at = Instant::now() + GRACE;
        let mut last_error = String::from("no answer yet");
        loop {
            let established = {
                let attempt = self.establish(&places);
                tokio::pin!(attempt);
                loop {
                    tokio::select! {
                        done = &mut attempt => break done,
                        () = events.closed() => return,
                        () = sleep_until(tell_at), if told.is_none() => {
                            if tell(&events, &mut told, &last_error).await.is_err() { return }
                        }
                    }
                }
            };
            let error = match established {
                Ok(mut session) => {
                    told = None;
                    let begun = Instant::now();
                    let error = match self.keep(&mut session, &places, &events).await {
                        Ok(()) => return,
                        Err(error) => error,
                    };
                    tell_at = Instant::now() + GRACE;
                    // One that breaks at once, again and again, must not become a loop without a pause.
                    if begun.elapsed() > GRACE {
                        failures = 0;
                        backoff.reset();
                    }
                    error
                }
                Err(error) => error,
            };
            tracing::debug!(%error, "etcd session ended");
            last_error = error.to_string();
            self.link.next_endpoint();
            failures += 1;
            // The first failure may be a session that ended: that alone is no news.
            let tried_all = failures >= self.config.endpoints.len().max(2);
            if tried_all || told.is_some() {
                if tell(&events, &mut told, &last_error).await.is_err() {
                    return;
                }
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }

    async fn register(mut self, mut entry: Registration) {
        let mut backoff = Backoff::default();
        loop {
            match self.hold(&mut entry, &mut backoff).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(key = entry.key, %error, "registration lost, trying again"),
            }
            self.link.next_endpoint();
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                () = abandoned(&mut entry) => return,
            }
        }
    }
}

/// Says why the store is away, unless just that was said last. `Err`: nobody listens.
async fn tell(events: &mpsc::Sender<StoreEvent>, told: &mut Option<String>, why: &str) -> Result<(), ()> {
    if told.as_deref() == Some(why) {
        return Ok(());
    }
    *told = Some(why.into());
    events.send(StoreEvent::Unreachable { why: why.into() }).await.map_err(drop)
}

/// Pends until the value's sender is gone.
async fn abandoned(entry: &mut Registration) {
    while entry.value.changed().await.is_ok() {}
}

impl EtcdStore {
    /// Connects, lists both folders at one revision and watches from the next.
    async fn establish(&mut self, places: &Places) -> Result<Session, EtcdError> {
        let mut client = self.link.connect(&self.config).await?;
        let endpoint = self.link.endpoint().to_owned();
        let limit = self.config.connect_timeout;
        let folders = [&places.patroni, &places.bouncers];
        let (header, kvs) = bounded(&endpoint, "list", limit, link::list(&mut client, folders)).await?;
        self.link.accept(header.cluster_id, header.revision)?;
        let mut contents = Contents { revision: header.revision, ..Contents::default() };
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

    /// Hands over snapshots until something is wrong. `Ok`: nobody listens any more.
    async fn keep(
        &mut self,
        session: &mut Session,
        places: &Places,
        events: &mpsc::Sender<StoreEvent>,
    ) -> Result<(), EtcdError> {
        let Session { client, stream, contents } = session;
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
                    let limit = self.config.keepalive_timeout;
                    read = Some(Box::pin(async move {
                        bounded(&endpoint, "read", limit, link::read_leader(&mut client, &key)).await
                    }));
                }
                result = finished(&mut read) => {
                    let (header, leader_revision) = result?;
                    read = None;
                    self.link.accept(header.cluster_id, header.revision)?;
                    let differs = leader_revision != contents.leader_revision;
                    if differs && behind {
                        return Err(EtcdError::WatchStuck { endpoint });
                    }
                    behind = differs;
                }
            }
        }
    }

    /// Registers once and keeps it. `Ok`: the value's sender is gone and the entry taken out.
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
}

fn cancel_reason(message: &etcd_client::WatchResponse) -> String {
    match (message.compact_revision(), message.cancel_reason()) {
        (0, "") => "no reason given".into(),
        (0, why) => why.into(),
        (revision, _) => format!("revisions up to {revision} were compacted"),
    }
}

// === impl Contents ===

impl Contents {
    fn snapshot(&self) -> StoreEvent {
        StoreEvent::Snapshot { revision: self.revision, keys: self.keys.clone(), bouncers: self.bouncers.clone() }
    }

    /// The folder a key is in and its name there. Keys that are not UTF-8 are nobody's.
    fn place<'a, 'k>(
        &'a mut self,
        places: &Places,
        key: &'k [u8],
    ) -> Option<(&'a mut BTreeMap<String, Vec<u8>>, &'k str)> {
        let key = std::str::from_utf8(key).ok()?;
        if let Some(name) = key.strip_prefix(&*places.patroni) {
            return Some((&mut self.keys, name));
        }
        Some((&mut self.bouncers, key.strip_prefix(&*places.bouncers)?))
    }

    fn put(&mut self, places: &Places, kv: &KeyValue) {
        let Some((folder, name)) = self.place(places, kv.key()) else { return };
        folder.insert(name.into(), kv.value().to_vec());
        if is_leader(places, kv) {
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
                    if let Some((folder, name)) = self.place(places, kv.key()) {
                        folder.remove(name);
                    }
                    if is_leader(places, kv) {
                        self.leader_revision = 0;
                    }
                }
            }
        }
        !events.is_empty()
    }
}

fn is_leader(places: &Places, kv: &KeyValue) -> bool {
    kv.key().strip_prefix(places.patroni.as_bytes()) == Some(b"leader")
}
