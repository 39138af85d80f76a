//! What is true about a cluster, Patroni's or one of plain streaming replication.
//!
//! A [`store`] reads keys from the DCS, [`patroni`] turns them into roles, [`truth`] weighs them against what the
//! members [prove](proof), and the result is one immutable [`ClusterView`] at a time.

pub mod announce;
mod follow;
pub(crate) mod http;
pub(crate) mod names;
pub mod patroni;
pub mod proof;
pub mod resolve;
mod sql;
pub mod store;
mod tls;
pub mod truth;
pub mod view;

use std::sync::{Arc, Once};

use tokio::sync::watch;
use tokio::task::AbortHandle;

pub use announce::Switchover;
pub use view::*;

use crate::config;

/// A cluster being followed. Following ends when this is dropped; the last view stays readable.
#[derive(Debug)]
pub struct ClusterHandle {
    pub view: watch::Receiver<Arc<ClusterView>>,
    task: AbortHandle,
}

/// Follows one cluster on the current tokio runtime. Never fails: what goes wrong is in [`ClusterView::store`] and
/// [`ClusterView::closed_because`], and is tried again.
///
/// # Panics
/// Outside a tokio runtime.
pub fn watch(name: &str, config: &config::Cluster) -> ClusterHandle {
    begin(follow::Follower::new(name, config))
}

/// The same in place of a handle whose configuration was changed: nobody is opened below the floor it had.
///
/// # Panics
/// Outside a tokio runtime.
pub fn watch_on(name: &str, config: &config::Cluster, floor: Option<Floor>) -> ClusterHandle {
    begin(follow::Follower::new(name, config).after(floor))
}

/// The same for one of a fleet's many agents, whose questions together must not hold up who is to answer them.
///
/// # Panics
/// Outside a tokio runtime.
pub fn watch_among_many(name: &str, config: &config::Cluster) -> ClusterHandle {
    begin(follow::Follower::new(name, config).among_many())
}

fn begin(follower: follow::Follower) -> ClusterHandle {
    let (sender, view) = watch::channel(follower.view());
    let task = tokio::spawn(follower.run(sender)).abort_handle();
    ClusterHandle { view, task }
}

impl Drop for ClusterHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Makes ring the crypto of every TLS in this process: with none chosen, rustls panics at the first handshake.
fn install_crypto() {
    static ONCE: Once = Once::new();
    // An error means that another part of the process chose one already, which is as good.
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}
