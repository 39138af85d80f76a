//! The stores against real servers: what a view shows when they change and when they fail. The same scenarios over each;
//! what only one of them has is in its own file.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

mod claims;
mod consul;
mod etcd;
mod scenarios;
mod zookeeper;

use std::time::Duration;

use pgsplice::cluster::store::Registration;
use pgsplice::cluster::{self, ClusterHandle, ClusterView, StoreHealth};
use pgsplice::config::{self, StoreConfig};
use pgsplice_tests::view::until;
use tokio::sync::watch;

fn cluster_config(store: StoreConfig) -> config::Cluster {
    config::Cluster {
        store,
        scope: "lab".into(),
        leader_absent_debounce: Duration::from_millis(500),
        switchover_hold: Duration::from_secs(15),
        ..config::Cluster::default()
    }
}

fn follow(store: StoreConfig) -> ClusterHandle {
    cluster::watch("lab", &cluster_config(store))
}

fn connected(view: &ClusterView) -> bool {
    matches!(view.store, StoreHealth::Connected { .. })
}

fn away(view: &ClusterView) -> bool {
    matches!(view.store, StoreHealth::Unreachable { .. })
}

fn why(view: &ClusterView) -> String {
    match &view.store {
        StoreHealth::Unreachable { why, .. } => why.clone(),
        other => format!("{other:?}"),
    }
}

fn led_by(member: &str) -> impl Fn(&ClusterView) -> bool {
    move |view| view.leader_key.as_deref() == Some(member)
}

const LEADER: &str = "/service/lab/leader";
const ENTRY_KEY: &str = "/pgsplice/lab/bouncers/pb1";
const ENTRY: &str =
    r#"{"name":"pb1","address":"10.0.0.7:6432","peer_id":1,"state":"ready","leader":"pg1","timeline":1}"#;

fn registration(value: &watch::Sender<Vec<u8>>) -> Registration {
    Registration { key: ENTRY_KEY.into(), value: value.subscribe(), ttl: Duration::from_secs(3) }
}

/// The task of an agent that registers.
fn register(store: StoreConfig, value: &watch::Sender<Vec<u8>>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(cluster::store::register(&cluster_config(store), registration(value)))
}
