//! Where Patroni keeps its keys, and agents their registry. One trait, a file a store.
//!
//! A store never decides anything: it hands over whole snapshots in order, or says why it cannot.

pub mod consul;
mod contents;
pub mod etcd;
mod life;
pub mod rest;
pub mod r#static;
pub mod zookeeper;

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::patroni::Keys;
use crate::config::{self, StoreConfig};

pub use consul::ConsulStore;
pub use etcd::EtcdStore;
pub use rest::RestStore;
pub use r#static::StaticStore;
pub use zookeeper::ZookeeperStore;

/// A distributed configuration store.
pub trait Store: Sized + Send + 'static {
    /// Sends [`StoreEvent`]s for ever, reconnecting by itself. Returns once nobody receives them.
    fn follow(self, places: Places, events: mpsc::Sender<StoreEvent>) -> impl Future<Output = ()> + Send;

    /// Keeps one entry in the registry with its newest value, for as long as the value's sender lives; then takes it
    /// out and returns. Should this process die, the store drops the entry after [`Registration::ttl`].
    fn register(self, entry: Registration) -> impl Future<Output = ()> + Send;
}

/// Work of a store whose kind only the configuration knows.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// [`Store::follow`] of the cluster's own store.
pub fn follow(config: &config::Cluster, events: mpsc::Sender<StoreEvent>) -> Work {
    let places = Places::of(config);
    match config.store.clone() {
        StoreConfig::Etcd(etcd) => Box::pin(EtcdStore::new(etcd).follow(places, events)),
        StoreConfig::Consul(consul) => Box::pin(ConsulStore::new(consul).follow(places, events)),
        StoreConfig::Zookeeper(zookeeper) => Box::pin(ZookeeperStore::new(zookeeper).follow(places, events)),
        StoreConfig::Rest(_) => Box::pin(RestStore::new(config).follow(places, events)),
        StoreConfig::Static(members) => Box::pin(StaticStore::new(members).follow(places, events)),
    }
}

/// [`Store::register`] with the cluster's own store.
pub fn register(config: &config::Cluster, entry: Registration) -> Work {
    match config.store.clone() {
        StoreConfig::Etcd(etcd) => Box::pin(EtcdStore::new(etcd).register(entry)),
        StoreConfig::Consul(consul) => Box::pin(ConsulStore::new(consul).register(entry)),
        StoreConfig::Zookeeper(zookeeper) => Box::pin(ZookeeperStore::new(zookeeper).register(entry)),
        StoreConfig::Rest(_) => Box::pin(RestStore::new(config).register(entry)),
        StoreConfig::Static(members) => Box::pin(StaticStore::new(members).register(entry)),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// Everything, newer than every snapshot before it.
    Snapshot {
        revision: i64,
        /// Patroni's, relative to its scope.
        keys: Keys,
        /// Registered bouncers by name.
        bouncers: Keys,
    },
    /// Said once per reason until a snapshot follows.
    Unreachable { why: String },
}

/// One entry of the registry.
#[derive(Debug)]
pub struct Registration {
    /// The whole key.
    pub key: String,
    pub value: watch::Receiver<Vec<u8>>,
    pub ttl: Duration,
}

/// The two folders of one cluster, each with a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// `/service/<scope>/`
    pub patroni: String,
    /// `/pgsplice/<scope>/bouncers/`
    pub bouncers: String,
}

impl Places {
    pub fn of(config: &config::Cluster) -> Self {
        let group = config.citus_group.map(|group| format!("{group}/")).unwrap_or_default();
        let (namespace, scope) = (config.namespace.trim_end_matches('/'), &config.scope);
        Self {
            patroni: format!("{namespace}/{scope}/{group}"),
            bouncers: format!("/pgsplice/{scope}/{group}bouncers/"),
        }
    }

    fn is_leader(&self, key: &str) -> bool {
        key.strip_prefix(&*self.patroni) == Some("leader")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_namespace_scope_and_citus_group() {
        let mut config = config::Cluster {
            store: StoreConfig::Etcd(config::EtcdConfig::default()),
            namespace: "/service".into(),
            scope: "lab".into(),
            citus_group: None,
            proof: config::ProofConfig::default(),
            leader_absent_debounce: Duration::ZERO,
            switchover_hold: Duration::ZERO,
        };
        let places = |patroni: &str, bouncers: &str| Places { patroni: patroni.into(), bouncers: bouncers.into() };
        assert_eq!(Places::of(&config), places("/service/lab/", "/pgsplice/lab/bouncers/"));
        config.citus_group = Some(0);
        assert_eq!(Places::of(&config), places("/service/lab/0/", "/pgsplice/lab/0/bouncers/"));
    }
}
