//! Prometheus metrics: the few histograms a session observes into, and everything else read at scrape time.
//!
//! Counters live with what they count (listener, backend, pool); the collectors only read them, so a metric costs the
//! data plane nothing. `docs/metrics.md` documents every name; a test holds the two together.

mod collect;
mod guard;
mod process;
mod splice;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::proxy::Proxy;

/// Of what [`render`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What sessions and reloads report themselves. Cheap to clone: all clones share the same numbers.
#[derive(Clone, Debug)]
pub struct Metrics {
    startup: Durations,
    queue_wait: Durations,
    connect: Durations,
    handshake: Durations,
    session: Durations,
    queue: Family<QueueLabels, Counter>,
    reload: Arc<Reloads>,
}

/// How a session's wait in a pool's queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOutcome {
    /// A backend became eligible in time.
    Served,
    /// The pool's queue time limit passed.
    TimedOut,
    /// The queue was full: refused without waiting.
    Full,
    /// The client went away, or the session was cut, while it waited.
    Gone,
}

#[derive(Debug, Default)]
struct Reloads {
    succeeded: AtomicU64,
    failed: AtomicU64,
    last_failed: AtomicBool,
    /// Unix seconds; 0: none since start.
    last_success: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    pool: String,
    outcome: &'static str,
}

type Durations = Family<PoolLabel, Histogram, fn() -> Histogram>;

impl Default for Metrics {
    fn default() -> Self {
        Self {
            startup: Family::new_with_constructor(steps),
            queue_wait: Family::new_with_constructor(steps),
            connect: Family::new_with_constructor(steps),
            handshake: Family::new_with_constructor(steps),
            session: Family::new_with_constructor(lifetimes),
            queue: Family::default(),
            reload: Arc::default(),
        }
    }
}

/// One scrape, as OpenMetrics text.
pub fn render(proxy: &Arc<Proxy>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    proxy.pools.load().keys().for_each(|pool| proxy.metrics.begin(pool));
    proxy.metrics.register(&mut registry);
    registry.register_collector(Box::new(collect::ProxyCollector(proxy.clone())));
    registry.register_collector(Box::new(process::ProcessCollector));
    let mut text = String::with_capacity(64 * 1024);
    text::encode(&mut text, &registry)?;
    Ok(text)
}

// === impl Metrics ===

impl Metrics {
    /// Accept to a whole first packet.
    pub fn observe_startup(&self, pool: &str, took: Duration) {
        observe(&self.startup, pool, took);
    }

    /// Every session that found no eligible backend at once; `waited` is zero when the queue was full.
    pub fn observe_queue(&self, pool: &str, outcome: QueueOutcome, waited: Duration) {
        let labels = QueueLabels { pool: pool.into(), outcome: outcome.as_str() };
        self.queue.get_or_create(&labels).inc();
        observe(&self.queue_wait, pool, waited);
    }

    /// All connect attempts of one session together, whether they succeeded or not.
    pub fn observe_connect(&self, pool: &str, took: Duration) {
        observe(&self.connect, pool, took);
    }

    /// Backend connected to authenticated, or to TLS agreed.
    pub fn observe_handshake(&self, pool: &str, took: Duration) {
        observe(&self.handshake, pool, took);
    }

    /// Accept to end.
    pub fn observe_session(&self, pool: &str, total: Duration) {
        observe(&self.session, pool, total);
    }

    /// Once for each try to load a new configuration, by signal or by command.
    pub fn count_reload(&self, succeeded: bool) {
        self.reload.last_failed.store(!succeeded, Relaxed);
        if succeeded {
            self.reload.succeeded.fetch_add(1, Relaxed);
            self.reload.last_success.store(unix_seconds(SystemTime::now()) as u64, Relaxed);
        } else {
            self.reload.failed.fetch_add(1, Relaxed);
        }
    }

    /// Has all of a pool's series from the first scrape on: a rate over one that appears with its first event misses it.
    fn begin(&self, pool: &str) {
        let label = PoolLabel { pool: pool.into() };
        for family in [&self.startup, &self.queue_wait, &self.connect, &self.handshake, &self.session] {
            drop(family.get_or_create(&label));
        }
        for outcome in QueueOutcome::ALL {
            drop(self.queue.get_or_create(&QueueLabels { pool: pool.into(), outcome: outcome.as_str() }));
        }
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("pgsplice_startup_duration_seconds", "Accept to a whole first packet", self.startup.clone());
        registry.register(
            "pgsplice_pool_queue_wait_seconds",
            "Wait of sessions that found no eligible backend at once",
            self.queue_wait.clone(),
        );
        registry.register(
            "pgsplice_connect_duration_seconds",
            "All attempts of a session to connect to a backend",
            self.connect.clone(),
        );
        registry.register(
            "pgsplice_handshake_duration_seconds",
            "Backend connected to authenticated, or to TLS agreed",
            self.handshake.clone(),
        );
        registry.register("pgsplice_session_duration_seconds", "Accept to end", self.session.clone());
        registry.register(
            "pgsplice_pool_queue_sessions",
            "Sessions that found no eligible backend at once, by how their wait ended",
            self.queue.clone(),
        );
    }
}

impl QueueOutcome {
    const ALL: [Self; 4] = [Self::Served, Self::TimedOut, Self::Full, Self::Gone];

    fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::TimedOut => "timed-out",
            Self::Full => "full",
            Self::Gone => "gone",
        }
    }
}

// === impl Reloads ===

impl Reloads {
    fn collect(&self, out: &mut collect::Families<'_>) -> std::fmt::Result {
        let results = [("success", &self.succeeded), ("failure", &self.failed)];
        out.counter(
            "pgsplice_config_reloads",
            "Tries to load the configuration anew, by result",
            results.map(|(result, count)| ([("result", result)], count.load(Relaxed))),
        )?;
        out.one_gauge(
            "pgsplice_config_last_reload_successful",
            "Whether the last try to load the configuration anew succeeded; 1 before the first",
            Some(u64::from(!self.last_failed.load(Relaxed))),
        )?;
        out.one_gauge(
            "pgsplice_config_last_reload_success_timestamp_seconds",
            "When the configuration was last loaded anew; 0 before the first time",
            Some(self.last_success.load(Relaxed)),
        )
    }
}

fn observe(family: &Durations, pool: &str, took: Duration) {
    family.get_or_create(&PoolLabel { pool: pool.into() }).observe(took.as_secs_f64());
}

/// 100 µs to 30 s: from a connect on the same switch to the default queue time limit.
fn steps() -> Histogram {
    Histogram::new([
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}

/// 10 ms to a day: from `pgbench -C` to an application server's connection pool.
fn lifetimes() -> Histogram {
    Histogram::new([0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0])
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
