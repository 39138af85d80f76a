//! The running proxy: everything its threads share, and the few verbs that steer it.

mod handover;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use socket2::Socket;
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::admin::metrics::Metrics;
use crate::cluster::{self, ClusterHandle, ClusterView};
use crate::config::{self, BackendConfig, BackendSource, Config, Source, SpliceRoad};
use crate::guard::{Guard, GuardError};
use crate::handover::take::{TakeError, Takeover};
use crate::handover::{Handover, Inherited, systemd};
use crate::pg::cancel::CancelKeys;
use crate::pool::director::Director;
use crate::pool::{Backend, Pool};
use crate::session::listening::{self, Bound};
use crate::session::registry::Registry;
use crate::session::worker::{self, Command, Waiting};
use crate::session::{SessionId, SessionRecord, Termination};
use crate::splice::brief::Brief;
use crate::splice::sockmap::{self, Sockmap};
use crate::splice::{Counters, Splice, adopt, sweep};
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

/// One `[listener.NAME]` as it runs.
#[derive(Debug)]
pub struct Listener {
    pub name: String,
    pub config: ArcSwap<config::Listener>,
    /// The addresses really bound (a configured port 0 is resolved here).
    pub bound: Vec<SocketAddr>,
    /// Empty once it does not listen any more.
    pub sockets: Mutex<Vec<Bound>>,
    /// The socket options that accepted sockets inherit from the listening ones.
    pub inherited: config::Tcp,
    /// Shared with the listener of this name that it replaced, as is `live`.
    pub counters: Arc<ListenerCounters>,
    /// Sessions now, from accept to end: silent connections count.
    pub live: Arc<AtomicU32>,
}

/// Since start; only ever grow.
#[derive(Debug, Default)]
pub struct ListenerCounters {
    pub accepted: AtomicU64,
    ended: [AtomicU64; Termination::ALL.len()],
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub brief: Brief,
}

impl ListenerCounters {
    pub fn ended(&self, reason: Termination) -> u64 {
        self.ended[reason as usize].load(Relaxed)
    }

    pub fn count_end(&self, reason: Termination) {
        self.ended[reason as usize].fetch_add(1, Relaxed);
    }
}

impl Listener {
    /// Its listening sockets, over all addresses.
    pub fn listening_sockets(&self) -> Vec<Arc<Socket>> {
        self.sockets.lock().iter().flat_map(|bound| bound.sockets.clone()).collect()
    }

    /// Whether one session too many lives; whoever asks counts.
    pub fn is_over_limit(&self) -> bool {
        let limit = self.config.load().max_sessions;
        limit != 0 && self.live.load(Relaxed) > limit
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

/// Why the proxy could not start, or a reload changed nothing.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// `place` is `file:line: listener.rw.bind: `.
    #[error("{place}{problem}")]
    Bind { place: String, problem: String },
    #[error("{place}cannot resolve {address}: {error}")]
    Resolve { place: String, address: String, error: String },
    #[error("{place}{} and {} are both {address}; expected a backend once", .names[0], .names[1])]
    SameAddress { place: String, names: [String; 2], address: SocketAddr },
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error("the splice: {0}")]
    Splice(io::Error),
    #[error(transparent)]
    Takeover(#[from] TakeError),
    #[error("data-plane thread {thread} did not start: {error}")]
    Thread { thread: usize, error: io::Error },
}

/// What has to succeed before anything is changed.
#[derive(Default)]
struct Prepared {
    resolved: BTreeMap<String, Vec<(BackendConfig, SocketAddr)>>,
    /// By listener: its addresses, bound.
    sockets: BTreeMap<String, Vec<Bound>>,
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

    /// The programs in the kernel, if an interface wants any, and what a process before us left in their maps.
    fn start_kernel(&self, config: &Config, prepared: &Prepared) -> Result<adopt::Found, ApplyError> {
        let forwards = !config.splice.interfaces.is_empty();
        if config.guard.interfaces.is_empty() && !forwards {
            return Ok(adopt::Found::default());
        }
        // Without a splice its maps are there and next to empty.
        let max_sessions = if forwards { config.splice.max_sessions } else { 1 };
        let splice = config::Splice { max_sessions, ..config.splice.clone() };
        let guard = Guard::start_with_splice(&config.guard, &splice, &self.addresses(config, prepared))?;
        let mut found = adopt::Found::default();
        if forwards {
            let splice = Splice::new(guard.kernel().clone(), &config.splice);
            found = splice.find().map_err(ApplyError::Splice)?;
            self.splice.store(Some(splice));
        }
        self.guard.store(Some(Arc::new(guard)));
        Ok(found)
    }

    pub fn lifecycle(&self) -> Lifecycle {
        if self.draining.load(Relaxed) { Lifecycle::Draining } else { Lifecycle::Running }
    }

    /// Admission in XDP, where `guard.interfaces` wants it.
    pub fn guard(&self) -> Option<Arc<Guard>> {
        self.guard.load_full().filter(|_| !self.config.load().guard.interfaces.is_empty())
    }

    pub fn splice(&self) -> Option<Arc<Splice>> {
        self.splice.load_full()
    }

    /// The kernel's roads, if the sessions of a listener may take one.
    pub fn splice_for(&self, listener: &config::Listener) -> Option<Arc<Splice>> {
        match listener.splice {
            SpliceRoad::Auto | SpliceRoad::Xdp | SpliceRoad::Tc => self.splice(),
            SpliceRoad::Sockmap | SpliceRoad::Relay => None,
        }
    }

    /// The engine that joins sockets, if a listener wants it and the kernel has it.
    pub fn sockmap(&self) -> Option<&Sockmap> {
        self.sockmap.get()?.as_ref()
    }

    /// What the guard's maps call a listener.
    pub fn guard_id(&self, listener: &str) -> Option<u32> {
        self.guard.load().as_ref()?.listener_id(listener)
    }

    /// Takes the programs off the interfaces, at the end of the process, unless sessions go on in the kernel: then the
    /// next process finds everything as it is.
    pub fn stop_kernel(&self) {
        let Some(guard) = self.guard.swap(None) else { return };
        let sessions = self.splice().map_or(0, |splice| splice.table.live());
        if sessions > 0 {
            let pins = guard.kernel().pins().path().display();
            return tracing::info!(sessions, %pins, "sessions go on in the kernel, for the next start to adopt");
        }
        if let Err(error) = guard.stop() {
            tracing::warn!("the programs stay on their interfaces: {error}");
        }
    }

    /// Writes what is queued. Later lines are lost.
    pub fn close_log(&self) {
        drop(self.log.lock().take());
    }

    /// Every live session, unordered.
    pub fn sessions(&self) -> Vec<Arc<SessionRecord>> {
        self.registry.all()
    }

    /// How many sessions live; cheap.
    pub fn session_count(&self) -> usize {
        self.registry.len()
    }

    /// RST on both legs. Returns how many of them were alive.
    pub fn cut(&self, ids: &[SessionId], reason: Termination) -> usize {
        let mut by_thread = vec![Vec::new(); self.workers.len()];
        let mut count = 0;
        for id in ids.iter().filter(|id| self.registry.contains(**id)) {
            count += 1;
            if !self.cut_in_kernel(*id, reason)
                && let Some(thread) = by_thread.get_mut(id.thread())
            {
                thread.push(*id);
            }
        }
        for (worker, ids) in self.workers.iter().zip(by_thread).filter(|(_, ids)| !ids.is_empty()) {
            worker.send(Command::Cut(ids, reason));
        }
        count
    }

    /// Cuts a session that is in the kernel. False if it is not.
    pub(crate) fn cut_in_kernel(&self, id: SessionId, reason: Termination) -> bool {
        let Some(splice) = self.splice() else { return false };
        let Some(index) = self.registry.get(id).and_then(|record| record.slot()) else { return false };
        self.cut_spliced(&splice, index, id, reason)
    }

    /// Cuts up to `most` of the sessions that are at this backend, whichever they are.
    pub fn cut_at(&self, backend: &Arc<Backend>, most: usize, reason: Termination) -> usize {
        let is_there = |record: &SessionRecord| {
            record.backend().is_some_and(|at| at.pool == backend.pool && at.address == backend.address)
        };
        let mut ids: Vec<_> =
            self.registry.all().iter().filter(|record| is_there(record)).map(|record| record.id).collect();
        if most < ids.len() {
            // Not the oldest first, nor those of one thread.
            let random = std::hash::RandomState::new();
            ids.sort_by_cached_key(|id| std::hash::BuildHasher::hash_one(&random, id.0));
            ids.truncate(most);
        }
        self.cut(&ids, reason)
    }

    /// Read the file again. An error changes nothing.
    pub async fn reload(self: &Arc<Self>) -> Result<ReloadReport, String> {
        systemd::reloading();
        let result = self.try_reload().await;
        systemd::notify("READY=1");
        self.metrics.count_reload(result.is_ok());
        match &result {
            Ok(report) => {
                tracing::info!(changes = report.changes.len(), "configuration reloaded");
                report.changes.iter().for_each(|line| tracing::info!("reload: {line}"));
                report.needs_restart.iter().for_each(|line| tracing::warn!("reload: needs a restart: {line}"));
            }
            Err(error) => tracing::error!("reload refused, nothing was changed: {error}"),
        }
        result
    }

    async fn try_reload(self: &Arc<Self>) -> Result<ReloadReport, String> {
        let Some(source) = &self.source else {
            return Err("started with --listen and --backend: there is no file to read again".into());
        };
        if self.lifecycle() == Lifecycle::Draining {
            return Err("the proxy is draining".into());
        }
        if self.handover.is_under_way() {
            return Err("another process is taking over".into());
        }
        let mut control = self.control.lock().await;
        let (mut new, warnings) = source.load().map_err(|errors| errors.to_string())?;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let old = self.config.load_full();
        let diff = config::diff(&old, &new);
        // What cannot change stays what it is, so that `config` is always what runs.
        new.proxy = old.proxy.clone();
        new.admin = old.admin.clone();
        new.log.format = old.log.format;
        let deny = std::mem::take(&mut new.guard.deny);
        new.guard = config::Guard { deny, ..old.guard.clone() };
        let prepared = self.prepare(&new, &mut Inherited::default()).await.map_err(|error| error.to_string())?;
        if self.lifecycle() == Lifecycle::Draining {
            return Err("the proxy is draining".into());
        }
        if let (true, Some(log)) = (diff.log, &*self.log.lock()) {
            log.reconfigure(&new.log).map_err(|error| error.to_string())?;
        }
        if let Some(guard) = self.guard.load_full() {
            guard.reload(&new.guard, &self.addresses(&new, &prepared)).map_err(|error| error.to_string())?;
        }
        self.commit(&mut control, new, prepared).await;
        Ok(ReloadReport { changes: diff.lines, needs_restart: diff.needs_restart })
    }

    /// Stop or resume giving sessions to the backends with this name or `ip:port`, in one pool or all.
    /// Returns the `pool/name` of those it changed or found so already; empty means none has that name.
    pub fn set_drained(&self, backend: &str, pool: Option<&str>, drained: bool) -> Vec<String> {
        let pools = self.pools.load();
        let mut found = Vec::new();
        for one in pools.values().filter(|one| pool.is_none_or(|name| one.name == name)) {
            for member in one.backends.load().iter() {
                if member.name == backend || member.address.to_string() == backend {
                    member.set_drained(drained);
                    one.touch();
                    found.push(format!("{}/{}", one.name, member.name));
                }
            }
        }
        found
    }

    /// Sessions that end with this process: those in the kernel go on.
    fn in_user_space(&self) -> usize {
        self.registry.len().saturating_sub(self.splice().map_or(0, |splice| splice.table.live()))
    }

    /// Admits nothing new, waits for the sessions in user space to end, and cuts what is left after `limit`. Returns how
    /// many it cut. Sessions in the kernel are left alone: the next process adopts them.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.draining.store(true, Relaxed);
        self.stop_listening(None, self.when_closing()).await;
        // A reload that was past its check may have opened listeners since; it holds the lock until it is done.
        if self.control.try_lock().is_err() {
            drop(self.control.lock().await);
            self.stop_listening(None, self.when_closing()).await;
        }
        if tokio::time::timeout(limit, self.sessions_over()).await.is_ok() {
            return 0;
        }
        let all = self.registry.all();
        let ids: Vec<_> = all.iter().filter(|record| record.slot().is_none()).map(|record| record.id).collect();
        let cut = self.cut(&ids, Termination::DrainTimeout);
        // Their access lines and resets.
        let gone = async {
            while self.in_user_space() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), gone).await.is_err() {
            tracing::warn!(sessions = self.in_user_space(), "still there after they were cut");
        }
        cut
    }

    /// Returns when no session is left that ends with this process.
    pub async fn sessions_over(&self) {
        while self.in_user_space() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Everything that may fail: names resolved, new listening sockets bound.
    async fn prepare(&self, config: &Config, inherited: &mut Inherited) -> Result<Prepared, ApplyError> {
        let mut prepared = Prepared::default();
        for (name, pool) in &config.pools {
            let BackendSource::Static(entries) = &pool.source else { continue };
            let mut resolved: Vec<(BackendConfig, SocketAddr)> = Vec::new();
            for entry in entries {
                let address = resolve(config, name, entry).await?;
                if let Some((other, _)) = resolved.iter().find(|(_, known)| *known == address) {
                    let place = config.origin.blame(&format!("pool.{name}.backend"));
                    let names = [entry, other].map(|one: &BackendConfig| one.name.clone());
                    return Err(ApplyError::SameAddress { place, names, address });
                }
                resolved.push((entry.clone(), address));
            }
            prepared.resolved.insert(name.clone(), resolved);
        }
        let running = self.listeners.load();
        for (name, listener) in &config.listeners {
            let stays = |running: &Arc<Listener>| {
                let now = running.config.load();
                now.bind == listener.bind && now.backlog == listener.backlog
            };
            if running.get(name).is_some_and(stays) {
                continue;
            }
            let ours: Vec<SocketAddr> = running.values().flat_map(|running| running.bound.clone()).collect();
            let bound = self.bind(config, name, listener, &ours, inherited)?;
            prepared.sockets.insert(name.clone(), bound);
        }
        Ok(prepared)
    }

    /// Every listener's bound addresses once `prepared` is committed.
    fn addresses(&self, config: &Config, prepared: &Prepared) -> Vec<(String, SocketAddr)> {
        let running = self.listeners.load();
        let of = |name: &String| match prepared.sockets.get(name) {
            Some(bound) => bound.iter().map(|one| one.address).collect(),
            None => running.get(name).map(|listener| listener.bound.clone()).unwrap_or_default(),
        };
        config.listeners.keys().flat_map(|name| of(name).into_iter().map(|address| (name.clone(), address))).collect()
    }

    /// One socket an address and thread. `ours` are addresses this process holds already.
    fn bind(
        &self,
        config: &Config,
        name: &str,
        listener: &config::Listener,
        ours: &[SocketAddr],
        inherited: &mut Inherited,
    ) -> Result<Vec<Bound>, ApplyError> {
        let mut all = Vec::new();
        for &address in &listener.bind {
            let blame = |error: io::Error| {
                let place = config.origin.blame(&format!("listener.{name}.bind"));
                ApplyError::Bind { place, problem: config::port_owner::bind_problem(address, &error) }
            };
            let max_segment = crate::splice::max_segment(&config.splice.interfaces, address.is_ipv4());
            let sockets = inherited.take(name, address);
            let bound = if !sockets.is_empty() {
                Bound::adopt(address, sockets, self.threads, listener, max_segment)
            } else {
                // Among SO_REUSEPORT sockets of one user the kernel shares a port without a word: another pgsplice, or
                // anything else of ours, would take half of the clients.
                if address.port() != 0 && !ours.contains(&address) {
                    listening::probe_free(address).map_err(blame)?;
                }
                Bound::bind(address, self.threads, listener, max_segment)
            };
            all.push(bound.map_err(blame)?);
        }
        Ok(all)
    }

    /// Cannot fail: what runs becomes what `new` says. Live sessions keep the pool and the backend they have.
    async fn commit(self: &Arc<Self>, control: &mut Control, new: Config, mut prepared: Prepared) {
        let old = self.config.load_full();
        control.clusters.retain(|name, _| new.clusters.get(name) == old.clusters.get(name));
        for (name, cluster) in &new.clusters {
            control.clusters.entry(name.clone()).or_insert_with(|| cluster::watch(name, cluster));
        }
        let views: BTreeMap<_, _> =
            control.clusters.iter().map(|(name, handle)| (name.clone(), handle.view.clone())).collect();

        let running = self.pools.load_full();
        let mut pools = BTreeMap::new();
        for (name, config) in &new.pools {
            let pool = match running.get(name) {
                Some(pool) => {
                    pool.config.store(Arc::new(config.clone()));
                    pool.clone()
                }
                None => Arc::new(Pool::new(name, config.clone())),
            };
            let view = match &config.source {
                BackendSource::Static(_) => None,
                BackendSource::Fleet { cluster } | BackendSource::NodeLocal { cluster, .. } => {
                    views.get(cluster).cloned()
                }
            };
            let resolved = prepared.resolved.remove(name).unwrap_or_default();
            let same_cluster = match &config.source {
                BackendSource::Static(_) => true,
                BackendSource::Fleet { cluster } | BackendSource::NodeLocal { cluster, .. } => {
                    new.clusters.get(cluster) == old.clusters.get(cluster)
                }
            };
            // One that would do the same goes on: its probes keep their counts.
            let stays = same_cluster
                && old.pools.get(name) == Some(config)
                && control.directors.get(name).is_some_and(|director| director.resolved == resolved);
            if !stays {
                let director = Director::start(pool.clone(), resolved, view, Arc::downgrade(self));
                control.directors.insert(name.clone(), director);
            }
            pools.insert(name.clone(), pool);
        }
        control.directors.retain(|name, _| pools.contains_key(name));
        self.clusters.store(Arc::new(views));
        // A listener looks its pool up by name: the old pools stay until no listener has their names any more.
        let mut both = BTreeMap::clone(&running);
        both.extend(pools.clone());
        self.pools.store(Arc::new(both));
        self.commit_listeners(&new, prepared).await;
        self.pools.store(Arc::new(pools));
        self.config.store(Arc::new(new));
    }

    async fn commit_listeners(&self, new: &Config, mut prepared: Prepared) {
        if new.listeners.values().any(|listener| listener.splice == SpliceRoad::Sockmap) {
            self.sockmap.get_or_init(|| {
                let started = Sockmap::start(sockmap::MAX_SESSIONS);
                started.inspect_err(|error| tracing::error!("no sessions by sockmap, they are relayed: {error}")).ok()
            });
        }
        let running = self.listeners.load_full();
        let mut listeners = BTreeMap::new();
        for (name, config) in &new.listeners {
            let same = running.get(name);
            let listener = match (same, prepared.sockets.remove(name)) {
                (Some(same), None) => {
                    same.config.store(Arc::new(config.clone()));
                    same.clone()
                }
                (_, sockets) => {
                    let sockets = sockets.unwrap_or_default();
                    let listener = Arc::new(Listener {
                        name: name.clone(),
                        config: ArcSwap::from_pointee(config.clone()),
                        bound: sockets.iter().map(|bound| bound.address).collect(),
                        sockets: Mutex::new(sockets),
                        inherited: config.tcp.clone(),
                        counters: same.map(|one| one.counters.clone()).unwrap_or_default(),
                        live: same.map(|one| one.live.clone()).unwrap_or_default(),
                    });
                    // The new sockets accept before the old ones stop: an address that stays is never unattended.
                    self.start_listening(&listener);
                    if let Some(replaced) = same {
                        self.stop_listening(Some(replaced), Waiting::Serve).await;
                    }
                    listener
                }
            };
            listeners.insert(name.clone(), listener);
        }
        for (name, gone) in running.iter().filter(|(name, _)| !new.listeners.contains_key(*name)) {
            if self.kept.load(Relaxed) {
                systemd::forget(name);
            }
            self.stop_listening(Some(gone), Waiting::Serve).await;
            tracing::info!(listener = name, bound = ?gone.bound, "no longer listening");
        }
        self.listeners.store(Arc::new(listeners));
    }

    fn start_listening(&self, listener: &Arc<Listener>) {
        let config = listener.config.load();
        let sockets = listener.sockets.lock();
        for bound in sockets.iter() {
            bound.make_ours(&config);
            for (thread, worker) in self.workers.iter().enumerate() {
                for socket in bound.of_thread(thread, self.threads) {
                    worker.send(Command::Listen(listener.clone(), socket.clone()));
                }
            }
        }
        drop(sockets);
        if self.kept.load(Relaxed) {
            // Those of a listener of this name that is being replaced, first.
            systemd::forget(&listener.name);
            self.keep(listener);
        }
        tracing::info!(listener = listener.name, bound = ?listener.bound, "listening");
    }

    /// One listener, or all. Returns when no thread accepts for it any more.
    async fn stop_listening(&self, listener: Option<&Arc<Listener>>, waiting: Waiting) {
        for worker in &self.workers {
            let (done, stopped) = oneshot::channel();
            worker.send(Command::Unlisten(listener.cloned(), waiting, done));
            // A thread that is gone has stopped listening.
            let _ = stopped.await;
        }
        match listener {
            Some(listener) => listener.sockets.lock().clear(),
            None => self.listeners.load().values().for_each(|listener| listener.sockets.lock().clear()),
        }
    }
}

async fn resolve(config: &Config, pool: &str, entry: &BackendConfig) -> Result<SocketAddr, ApplyError> {
    let failed = |error: String| {
        let place = config.origin.blame(&format!("pool.{pool}.backend"));
        ApplyError::Resolve { place, address: entry.address.clone(), error }
    };
    let mut found = tokio::net::lookup_host(&entry.address).await.map_err(|error| failed(error.to_string()))?;
    found.next().ok_or_else(|| failed("the name has no address".into()))
}
