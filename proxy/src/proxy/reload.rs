//! The configuration becomes what runs: first everything that may fail, then what cannot.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use thiserror::Error;

use super::{Control, Lifecycle, Listener, Proxy};
use crate::cluster::{self, Floor};
use crate::config::{self, BackendConfig, BackendSource, Config, SpliceRoad};
use crate::guard::GuardError;
use crate::handover::take::TakeError;
use crate::handover::{Inherited, systemd};
use crate::pool::Pool;
use crate::pool::director::Director;
use crate::session::listening::{self, Bound};
use crate::session::worker::Waiting;
use crate::splice::sockmap::{self, Sockmap};

/// What a reload did, for the log and the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReloadReport {
    /// One line each: `listener.rw: added`, `pool.rw: backend 10.0.0.7:6432 removed`.
    pub changes: Vec<String>,
    /// Changes that need a restart and were not made.
    pub needs_restart: Vec<String>,
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
pub(super) struct Prepared {
    pub resolved: BTreeMap<String, Vec<(BackendConfig, SocketAddr)>>,
    /// By listener: its addresses, bound.
    pub sockets: BTreeMap<String, Vec<Bound>>,
    /// By cluster, of the process before this one.
    pub floors: BTreeMap<String, Floor>,
}

impl Proxy {
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

    /// Everything that may fail: names resolved, new listening sockets bound.
    pub(super) async fn prepare(&self, config: &Config, inherited: &mut Inherited) -> Result<Prepared, ApplyError> {
        let mut prepared = Prepared { floors: std::mem::take(&mut inherited.floors), ..Prepared::default() };
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
    pub(super) fn addresses(&self, config: &Config, prepared: &Prepared) -> Vec<(String, SocketAddr)> {
        let running = self.listeners.load();
        let of = |name: &String| match prepared.sockets.get(name) {
            Some(bound) => bound.iter().map(|one| one.address).collect(),
            None => running.get(name).map(|listener| listener.bound.clone()).unwrap_or_default(),
        };
        config.listeners.keys().flat_map(|name| of(name).into_iter().map(|address| (name.clone(), address))).collect()
    }

    /// One socket an address and thread, those of the listener of this name where it has the address. `ours` are addresses
    /// this process holds already.
    fn bind(
        &self,
        config: &Config,
        name: &str,
        listener: &config::Listener,
        ours: &[SocketAddr],
        inherited: &mut Inherited,
    ) -> Result<Vec<Bound>, ApplyError> {
        let mut all = Vec::new();
        // Clients that wait in these, for an accept or to speak first, go on doing so.
        let mut staying = self.listeners.load().get(name).map(|same| same.sockets.lock().clone()).unwrap_or_default();
        for &address in &listener.bind {
            if let Some(at) = staying.iter().position(|bound| bound.configured == address) {
                all.push(staying.swap_remove(at));
                continue;
            }
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
    pub(super) async fn commit(self: &Arc<Self>, control: &mut Control, new: Config, mut prepared: Prepared) {
        let old = self.config.load_full();
        let mut floors = std::mem::take(&mut prepared.floors);
        floors.extend(control.floors());
        control.clusters.retain(|name, _| new.clusters.get(name) == old.clusters.get(name));
        for (name, cluster) in &new.clusters {
            control
                .clusters
                .entry(name.clone())
                .or_insert_with(|| cluster::watch_on(name, cluster, floors.remove(name)));
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
                    same.sockets.lock().iter().for_each(|bound| bound.defer_accept(config));
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
                    // The new listener accepts before the old one stops: an address that stays is never unattended.
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
}

async fn resolve(config: &Config, pool: &str, entry: &BackendConfig) -> Result<SocketAddr, ApplyError> {
    let failed = |error: String| {
        let place = config.origin.blame(&format!("pool.{pool}.backend"));
        ApplyError::Resolve { place, address: entry.address.clone(), error }
    };
    let mut found = tokio::net::lookup_host(&entry.address).await.map_err(|error| failed(error.to_string()))?;
    found.next().ok_or_else(|| failed("the name has no address".into()))
}
