//! Where Patroni keeps its keys, and agents their registry. One trait, a file a store.
//!
//! A store never decides anything: it hands over whole snapshots in order, or says why it cannot.

pub mod etcd;

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::patroni::Keys;
use crate::config;

pub use etcd::EtcdStore;

/// A distributed configuration store.
pub trait Store: Sized + Send + 'static {
    /// Sends [`StoreEvent`]s for ever, reconnecting by itself. Returns once nobody receives them.
    fn follow(self, places: Places, events: mpsc::Sender<StoreEvent>) -> impl Future<Output = ()> + Send;

    /// Keeps one entry in the registry with its newest value, for as long as the value's sender lives; then takes it
    /// out and returns. Should this process die, the store drops the entry after [`Registration::ttl`].
    fn register(self, entry: Registration) -> impl Future<Output = ()> + Send;
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
}

/// Grows from try to try and forgets on success; each wait is 50–100 % of the nominal one.
#[derive(Debug, Default)]
struct Backoff {
    tries: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(3);

    fn reset(&mut self) {
        self.tries = 0;
    }

    fn next(&mut self) -> Duration {
        use std::hash::{BuildHasher, Hasher};
        let nominal = (Self::FIRST * 2u32.pow(self.tries.min(8))).min(Self::MOST);
        self.tries += 1;
        // The hasher's keys are random; that is all the randomness jitter needs.
        let random = std::hash::RandomState::new().build_hasher().finish();
        nominal / 2 + (nominal / 2).mul_f64(random as f64 / u64::MAX as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_namespace_scope_and_citus_group() {
        let mut config = config::Cluster {
            store: config::StoreConfig::Etcd(config::EtcdConfig::default()),
            namespace: "/service".into(),
            scope: "lab".into(),
            citus_group: None,
            proof: config::ProofConfig::default(),
            leader_absent_debounce: Duration::ZERO,
        };
        let places = |patroni: &str, bouncers: &str| Places { patroni: patroni.into(), bouncers: bouncers.into() };
        assert_eq!(Places::of(&config), places("/service/lab/", "/pgsplice/lab/bouncers/"));
        config.citus_group = Some(0);
        assert_eq!(Places::of(&config), places("/service/lab/0/", "/pgsplice/lab/0/bouncers/"));
    }

    #[test]
    fn backoff_grows_to_its_limit_and_starts_again() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait >= Backoff::FIRST / 2 && wait <= Backoff::MOST);
        }
        assert!(backoff.next() >= Backoff::MOST / 2);
        backoff.reset();
        assert!(backoff.next() <= Backoff::FIRST);
    }
}
