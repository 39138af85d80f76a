//! The running proxy: everything its threads share, and the few verbs that steer it.

mod ending;
mod handover;
mod kernel;
mod listener;
mod reload;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use listener::{Listener, ListenerCounters};
pub use reload::{ApplyError, ReloadReport};

use crate::admin::metrics::Metrics;
use crate::cluster::{ClusterHandle, ClusterView, Floor};
use crate::config::{Config, Source};
use crate::guard::Guard;
use crate::handover::take::Takeover;
use crate::handover::{Handover, Inherited};
use crate::pg::cancel::CancelKeys;
use crate::pool::Pool;
use crate::pool::director::Director;
use crate::session::SessionRecord;
use crate::session::registry::Registry;
use crate::session::worker;
use crate::splice::sockmap::Sockmap;
use crate::splice::{Counters, Splice, sweep};
use crate::switchover::Desk;

/// Shared by the control plane, the data-plane threads and the admin interface.
pub struct Proxy {
    pub started: SystemTime,
    /// What `reload` reads; `None` with `--listen` and `--backend`.
    pub source: Option<Source>,
    pub config: ArcSwap<Config>,
    pub pools: ArcSwap<BTreeMap<String, Arc<Pool>>>,
    pub listeners: ArcSwap<BTreeMap<String, Arc<Listener>>>,
    /// The latest view of each cluster.
    pub clusters: ArcSwap<BTreeMap<String, watch::Receiver<Arc<ClusterView>>>>,
    pub threads: usize,
    pub metrics: Metrics,
    pub registry: Registry,
    pub cancel_keys: Arc<CancelKeys>,
    /// Admission in XDP; none unless `guard.interfaces` names any.
    guard: ArcSwapOption<Guard>,
    /// The kernel's roads; none unless `splice.interfaces` names any.
    splice: ArcSwapOption<Splice>,
    /// From the first listener on that wants it; `None` inside: this host has no such road.
    sockmap: OnceLock<Option<Sockmap>>,
    pub hand_offs: Counters,
    /// Held until the end of the process, for its writer flushes when it is dropped.
    log: Mutex<Option<crate::log::Log>>,
    pub handover: Arc<Handover>,
    pub switchover: Desk,
    workers: Vec<worker::Handle>,
    draining: AtomicBool,
    /// Whether a service manager has copies of our listening sockets.
    kept: AtomicBool,
    /// One reload at a time, and what it owns.
    control: tokio::sync::Mutex<Control>,
}

/// What follows the clusters and directs the pools; dropping an entry ends its task.
#[derive(Default)]
struct Control {
    clusters: BTreeMap<String, ClusterHandle>,
    directors: BTreeMap<String, Director>,
}

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    Running,
    /// SIGTERM came: nothing new is admitted.
    Draining,
}

/// What a process begins with: nothing, by default.
#[derive(Debug, Default)]
pub struct Before {
    pub inherited: Inherited,
    /// The process whose sockets they are still runs.
    pub takeover: Option<Takeover>,
}

impl Proxy {
    /// Binds the listeners, starts the threads, and follows clusters and backends. Within a tokio runtime.
    pub async fn start(
        config: Config,
        source: Option<Source>,
        log: Option<crate::log::Log>,
        before: &mut Before,
    ) -> Result<Arc<Self>, ApplyError> {
        let threads = match config.proxy.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            configured => configured,
        };
        let (workers, inboxes): (Vec<_>, Vec<_>) = (0..threads).map(|_| worker::channel()).unzip();
        let proxy = Arc::new(Self {
            started: SystemTime::now(),
            source,
            config: ArcSwap::default(),
            pools: ArcSwap::default(),
            listeners: ArcSwap::default(),
            clusters: ArcSwap::default(),
            threads,
            metrics: Metrics::default(),
            registry: Registry::new(threads),
            cancel_keys: Arc::default(),
            guard: ArcSwapOption::empty(),
            splice: ArcSwapOption::empty(),
            sockmap: OnceLock::new(),
            hand_offs: Counters::default(),
            log: Mutex::new(log),
            handover: Arc::default(),
            switchover: Desk::default(),
            workers,
            draining: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            control: tokio::sync::Mutex::default(),
        });
        let prepared = proxy.prepare(&config, &mut before.inherited).await?;
        if let Some(takeover) = &before.takeover {
            takeover.claim_kernel().await?;
        }
        let found = proxy.start_kernel(&config, &prepared)?;
        if before.takeover.is_some()
            && let Some(splice) = proxy.splice()
        {
            // Should the takeover fail, the process before us must find its sessions and free slots as it knows them.
            splice.wait();
        }
        for (thread, inbox) in inboxes.into_iter().enumerate() {
            worker::start(proxy.clone(), thread, inbox).map_err(|error| ApplyError::Thread { thread, error })?;
        }
        let mut control = proxy.control.lock().await;
        proxy.commit(&mut control, config, prepared).await;
        drop(control);
        if let Some(splice) = proxy.splice() {
            let removed = found.removed;
            let adopted = splice.adopt(&proxy, found);
            if adopted + removed > 0 {
                tracing::info!(adopted, removed, "sessions of the process before this one");
            }
            sweep::start(&proxy, splice).map_err(ApplyError::Splice)?;
        }
        Ok(proxy)
    }

    pub fn lifecycle(&self) -> Lifecycle {
        if self.draining.load(Relaxed) { Lifecycle::Draining } else { Lifecycle::Running }
    }

    /// Writes what is queued. Later lines are lost.
    pub fn close_log(&self) {
        drop(self.log.lock().take());
    }

    /// Every live session, unordered.
    pub fn sessions(&self) -> Vec<Arc<SessionRecord>> {
        self.registry.all()
    }

    /// By cluster: below which nobody is opened.
    pub async fn floors(&self) -> BTreeMap<String, Floor> {
        self.control.lock().await.floors()
    }

    /// How many sessions live; cheap.
    pub fn session_count(&self) -> usize {
        self.registry.len()
    }
}

impl Control {
    fn floors(&self) -> BTreeMap<String, Floor> {
        let of = |(name, handle): (&String, &ClusterHandle)| Some((name.clone(), handle.view.borrow().floor.clone()?));
        self.clusters.iter().filter_map(of).collect()
    }
}
