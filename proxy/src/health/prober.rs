//! A pool's probes: a task a backend, coming and going as the pool's list does.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::check;
use super::track::Track;
use crate::config::{self, ProbeKind};
use crate::pool::{Backend, Health, Pool};

/// Probes of a new list are at least this far apart, as long as `fast_interval` has room for that.
const SPREAD: Duration = Duration::from_millis(5);

/// Keeps [`Backend::health`] of a pool's backends true. Dropping it ends the probes.
#[derive(Debug)]
pub struct Prober {
    pool: Arc<Pool>,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tasks: HashMap<SocketAddr, Task>,
    /// What the tasks were last told.
    config: (config::Probe, config::Passive),
}

#[derive(Debug)]
struct Task {
    backend: Arc<Backend>,
    /// The pool's configuration changed.
    reconfigured: Arc<Notify>,
    abort: AbortHandle,
}

// === impl Prober ===

impl Prober {
    /// To be called within a tokio runtime, which then runs the probes. Reads the pool's list and its configuration;
    /// call [`sync`](Self::sync) whenever either changed.
    pub fn start(pool: Arc<Pool>) -> Self {
        let config = configured(&pool);
        let state = Mutex::new(State { tasks: HashMap::new(), config });
        let prober = Self { pool, runtime: Handle::current(), state };
        prober.sync();
        prober
    }

    /// Starts probes of backends that are new in the pool's list, ends those of backends that left it, and has all of
    /// them follow a changed `probe` or `passive`. Cheap when nothing changed.
    pub fn sync(&self) {
        let backends = self.pool.backends.load_full();
        let mut state = self.state.lock();
        state.tasks.retain(|_, task| backends.iter().any(|backend| Arc::ptr_eq(backend, &task.backend)));
        let config = configured(&self.pool);
        if state.config != config {
            state.tasks.values().for_each(|task| task.reconfigured.notify_one());
            state.config = config;
        }
        let new: Vec<_> = backends.iter().filter(|backend| !state.tasks.contains_key(&backend.address)).collect();
        let room = state.config.0.fast_interval.min(SPREAD.saturating_mul(new.len() as u32));
        for (nth, backend) in new.iter().enumerate() {
            let delay = room.mul_f64(nth as f64 / new.len() as f64);
            state.tasks.insert(backend.address, self.spawn(backend, delay));
        }
    }

    fn spawn(&self, backend: &Arc<Backend>, delay: Duration) -> Task {
        let reconfigured = Arc::new(Notify::new());
        let watch = watch(self.pool.clone(), backend.clone(), delay, reconfigured.clone());
        let abort = self.runtime.spawn(watch).abort_handle();
        Task { backend: backend.clone(), reconfigured, abort }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

fn configured(pool: &Pool) -> (config::Probe, config::Passive) {
    let config = pool.config.load();
    (config.probe.clone(), config.passive.clone())
}

// === One backend ===

/// Probes one backend for as long as it is in the pool.
async fn watch(pool: Arc<Pool>, backend: Arc<Backend>, mut delay: Duration, reconfigured: Arc<Notify>) {
    let jitter = RandomState::new();
    let mut round = 0_u64;
    let mut track = match backend.health() {
        Health::Unknown => Track::Unknown,
        Health::Up => Track::UP,
        Health::Full { .. } => Track::FULL,
        Health::Down { .. } => Track::Marked,
    };
    loop {
        let (probe, passive) = configured(&pool);
        if probe.kind == ProbeKind::None {
            forgive(&pool, &backend, passive.retry_after, &reconfigured).await;
            track = Track::Unknown;
            delay = Duration::ZERO;
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = reconfigured.notified() => {}
            () = backend.passive.marked.notified() => {
                track.marked_down();
                delay = probe.fast_interval;
                continue;
            }
        }
        // It would let a query wait, and log it in before anybody else once it goes on. Others are answered all the same.
        let may_wait = matches!(probe.kind, ProbeKind::Query { .. });
        if may_wait && backend.is_held() {
            delay = probe.fast_interval;
            continue;
        }
        let started = Instant::now();
        let result = check::probe(backend.address, &probe).await;
        if result.is_err() && may_wait && backend.is_held() {
            delay = probe.fast_interval;
            continue;
        }
        if result.is_err() {
            backend.counters.probe_failures.fetch_add(1, Relaxed);
        }
        if let Some(health) = track.observe(result, &probe) {
            set(&pool, &backend, health);
        }
        let next = if track.is_changing() { probe.fast_interval } else { probe.interval };
        round += 1;
        delay = jittered(next, jitter.hash_one(round)).saturating_sub(started.elapsed());
    }
}

/// Without probes: wait for a passive mark, or take one back after `retry_after`. Returns after every step, for the
/// configuration and the health to be read again.
async fn forgive(pool: &Pool, backend: &Backend, retry_after: Duration, reconfigured: &Notify) {
    if !matches!(backend.health(), Health::Down { .. }) {
        tokio::select! {
            () = backend.passive.marked.notified() => {}
            () = reconfigured.notified() => {}
        }
        return;
    }
    tokio::select! {
        () = tokio::time::sleep(retry_after) => set(pool, backend, Health::Unknown),
        () = reconfigured.notified() => {}
    }
}

fn set(pool: &Pool, backend: &Backend, health: Health) {
    let before = backend.health();
    if !backend.set_health(health.clone()) {
        return;
    }
    let (name, address) = (&backend.name, backend.address);
    match (before, health) {
        // Only the reason is another: no state changed, so nobody has to be told.
        (Health::Down { .. }, Health::Down { why }) => {
            tracing::info!(pool = backend.pool, backend = name, %address, "backend is still down: {why}");
            return;
        }
        (Health::Full { .. }, Health::Full { .. }) => return,
        (_, Health::Full { why }) => {
            tracing::warn!(pool = backend.pool, backend = name, %address, "backend is full: {why}");
        }
        (_, Health::Down { why }) => {
            tracing::warn!(pool = backend.pool, backend = name, %address, "backend is down: {why}");
        }
        (Health::Full { .. }, Health::Up) => {
            tracing::info!(pool = backend.pool, backend = name, %address, "backend has room again");
        }
        (Health::Unknown, Health::Up) => {
            tracing::info!(pool = backend.pool, backend = name, %address, "backend is up");
        }
        (_, Health::Up) => {
            tracing::info!(pool = backend.pool, backend = name, %address, "backend is up again");
        }
        (_, Health::Unknown) => {
            tracing::info!(pool = backend.pool, backend = name, %address, "backend may be tried again");
        }
    }
    pool.touch();
}

/// Within a tenth of `interval` either way, so that many proxies do not fall into step.
fn jittered(interval: Duration, random: u64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * (random as f64 / u64::MAX as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::passive;
    use tokio::net::TcpListener;

    fn pool(probe: config::Probe, passive: config::Passive, backends: &[SocketAddr]) -> Arc<Pool> {
        let pool = Pool::new("rw", config::Pool { probe, passive, ..config::Pool::default() });
        let backend = |address: &SocketAddr| Arc::new(Backend::new("rw", &address.to_string(), *address));
        pool.backends.store(Arc::new(backends.iter().map(backend).collect()));
        Arc::new(pool)
    }

    fn fast(kind: ProbeKind) -> config::Probe {
        let tick = Duration::from_millis(20);
        config::Probe { kind, interval: tick, fast_interval: tick, timeout: tick * 10, rise: 2, fall: 3 }
    }

    async fn until(what: &str, mut is: impl FnMut() -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(5), async {
            while !is() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("never came: {what}"));
    }

    #[tokio::test]
    async fn it_follows_a_backend_down_and_up_again() {
        // An address of its own: nobody else takes the port while it is down.
        let listener = TcpListener::bind("127.7.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pool = pool(fast(ProbeKind::Tcp), config::Passive::default(), &[address]);
        let backend = pool.backends.load()[0].clone();
        let _prober = Prober::start(pool);
        until("up", || backend.health() == Health::Up).await;
        drop(listener);
        until("down", || backend.health() == Health::Down { why: "connect: connection refused".into() }).await;
        assert!(backend.counters.probe_failures.load(Relaxed) >= 3);
        let _listener = TcpListener::bind(address).await.unwrap();
        until("up again", || backend.health() == Health::Up).await;
    }

    #[tokio::test]
    async fn one_that_is_held_is_found_dead_without_a_query() {
        let listener = TcpListener::bind("127.7.0.2:0").await.unwrap();
        let pool = pool(fast(ProbeKind::Tcp), config::Passive::default(), &[listener.local_addr().unwrap()]);
        let backend = pool.backends.load()[0].clone();
        backend.set_held(true);
        let _prober = Prober::start(pool);
        until("up", || backend.health() == Health::Up).await;
        drop(listener);
        until("down", || matches!(backend.health(), Health::Down { .. })).await;
    }

    #[tokio::test]
    async fn backends_come_and_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pool = pool(fast(ProbeKind::Tcp), config::Passive::default(), &[]);
        let prober = Prober::start(pool.clone());
        let backend = Arc::new(Backend::new("rw", "late", address));
        pool.backends.store(Arc::new(vec![backend.clone()]));
        prober.sync();
        until("up", || backend.health() == Health::Up).await;
        pool.backends.store(Arc::default());
        prober.sync();
        until("the task's share of it is gone", || Arc::strong_count(&backend) == 1).await;
    }

    #[tokio::test]
    async fn a_passive_mark_is_taken_back_by_the_next_probe() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let passive = config::Passive { failures: 1, ..config::Passive::default() };
        let probe = config::Probe { interval: Duration::from_secs(600), ..fast(ProbeKind::Tcp) };
        let pool = pool(probe, passive, &[listener.local_addr().unwrap()]);
        let backend = pool.backends.load()[0].clone();
        let _prober = Prober::start(pool.clone());
        until("up", || backend.health() == Health::Up).await;
        assert!(passive::on_connect_failure(&pool, &backend, &"refused"));
        assert!(matches!(backend.health(), Health::Down { .. }));
        until("up again", || backend.health() == Health::Up).await;
    }

    #[tokio::test]
    async fn without_a_probe_a_mark_ends_after_a_while() {
        let passive = config::Passive { failures: 1, retry_after: Duration::from_millis(30) };
        let pool = pool(fast(ProbeKind::None), passive, &["127.0.0.1:1".parse().unwrap()]);
        let backend = pool.backends.load()[0].clone();
        let _prober = Prober::start(pool.clone());
        for _ in 0..2 {
            assert!(passive::on_connect_failure(&pool, &backend, &"refused"));
            until("tried again", || backend.health() == Health::Unknown).await;
        }
    }

    #[tokio::test]
    async fn a_new_configuration_is_followed_at_once() {
        let probe = config::Probe { interval: Duration::from_secs(600), ..fast(ProbeKind::None) };
        let pool = pool(probe.clone(), config::Passive::default(), &["127.0.0.1:1".parse().unwrap()]);
        let backend = pool.backends.load()[0].clone();
        let prober = Prober::start(pool.clone());
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(backend.health(), Health::Unknown);
        let probe = config::Probe { kind: ProbeKind::Tcp, ..probe };
        pool.config.store(Arc::new(config::Pool { probe, ..config::Pool::default() }));
        prober.sync();
        until("down", || matches!(backend.health(), Health::Down { .. })).await;
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        let second = Duration::from_secs(1);
        assert_eq!(jittered(second, 0), Duration::from_millis(900));
        assert!(jittered(second, u64::MAX) <= Duration::from_millis(1100));
    }
}
