//! What is true about a Patroni cluster.
//!
//! A [`store`] reads keys from the DCS, [`patroni`] turns them into roles, [`truth`] weighs them against what the
//! members prove, and the result is one immutable [`ClusterView`] at a time.

pub mod view;

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;

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
pub fn watch(name: &str, _config: &config::Cluster) -> ClusterHandle {
    let (sender, view) = watch::channel(Arc::new(ClusterView { cluster: name.into(), ..ClusterView::default() }));
    let task = tokio::spawn(async move { sender.closed().await }).abort_handle();
    ClusterHandle { view, task }
}

impl Drop for ClusterHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}
