//! What the tests of stores wait for: a view of the cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pgsplice::cluster::{ClusterHandle, ClusterView};

/// An election among servers that have the machine to share. How soon it comes is for the test to judge.
const LIMIT: Duration = Duration::from_secs(60);

/// The first view that fits, and how long it took.
pub async fn until(
    handle: &ClusterHandle,
    what: &str,
    fits: impl Fn(&ClusterView) -> bool,
) -> (Arc<ClusterView>, Duration) {
    let start = Instant::now();
    let mut views = handle.view.clone();
    let found = tokio::time::timeout(LIMIT, views.wait_for(|view| fits(view))).await;
    match found {
        Ok(view) => (view.unwrap().clone(), start.elapsed()),
        Err(_) => panic!("never came: {what}; last: {:#?}", handle.view.borrow()),
    }
}
