//! The running proxy: everything its threads share, and the few verbs that steer it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::admin::Metrics;
use crate::cluster::ClusterView;
use crate::config::{self, Config};
use crate::pool::Pool;
use crate::session::{SessionId, SessionRecord, Termination};

/// Shared by the control plane, the data-plane threads and the admin interface.
pub struct Proxy {
    pub started: SystemTime,
    /// The file `reload` reads; `None` with `--listen` and `--backend`.
    pub config_file: Option<PathBuf>,
    pub config: ArcSwap<Config>,
    pub pools: ArcSwap<BTreeMap<String, Arc<Pool>>>,
    pub listeners: ArcSwap<BTreeMap<String, Arc<Listener>>>,
    /// The latest view of each cluster.
    pub clusters: ArcSwap<BTreeMap<String, watch::Receiver<Arc<ClusterView>>>>,
    pub threads: usize,
    pub metrics: Metrics,
}

/// One `[listener.NAME]` as it runs.
#[derive(Debug)]
pub struct Listener {
    pub name: String,
    pub config: ArcSwap<config::Listener>,
    /// The addresses really bound (a configured port 0 is resolved here).
    pub bound: Vec<SocketAddr>,
    pub counters: ListenerCounters,
}

/// Since start; only ever grow.
#[derive(Debug, Default)]
pub struct ListenerCounters {
    pub accepted: AtomicU64,
    ended: [AtomicU64; Termination::ALL.len()],
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
}

impl ListenerCounters {
    pub fn ended(&self, reason: Termination) -> u64 {
        self.ended[reason as usize].load(Relaxed)
    }

    pub fn count_end(&self, reason: Termination) {
        self.ended[reason as usize].fetch_add(1, Relaxed);
    }
}

/// What a reload did, for the log and the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReloadReport {
    /// One line each: `listener.rw: added`, `pool.rw: backend 10.0.0.7:6432 removed`.
    pub changes: Vec<String>,
    /// Changes that need a restart and were not made.
    pub needs_restart: Vec<String>,
}

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    Running,
    /// SIGTERM came: nothing new is admitted.
    Draining,
}

impl Proxy {
    pub fn lifecycle(&self) -> Lifecycle {
        todo!()
    }

    /// Every live session, unordered.
    pub fn sessions(&self) -> Vec<Arc<SessionRecord>> {
        todo!()
    }

    /// How many sessions live; cheap.
    pub fn session_count(&self) -> usize {
        todo!()
    }

    /// RST on both legs. Returns how many of them were alive.
    pub fn cut(&self, _ids: &[SessionId], _reason: Termination) -> usize {
        todo!()
    }

    /// Read the file again. An error changes nothing.
    pub async fn reload(&self) -> Result<ReloadReport, String> {
        todo!()
    }

    /// Stop or resume giving sessions to the backends with this name or `ip:port`, in one pool or all.
    /// Returns the `pool/name` of those it changed or found so already; empty means none has that name.
    pub fn set_drained(&self, _backend: &str, _pool: Option<&str>, _drained: bool) -> Vec<String> {
        todo!()
    }
}
