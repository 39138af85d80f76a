//! Passive marking: failed connects of real sessions take a backend out before the next probe would notice.
//!
//! The data plane calls [`on_connect_failure`] and [`on_connect_success`], once a connect attempt each.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tokio::sync::Notify;

use crate::pool::{Backend, Health, Pool};

/// A backend's part of it, kept in [`Backend::passive`].
#[derive(Debug, Default)]
pub struct Passive {
    /// Failed connects since the last that succeeded.
    in_a_row: AtomicU32,
    /// Tells the backend's probe task that it was marked down.
    pub(super) marked: Notify,
}

/// A session's connect attempt failed. After the pool's `passive.failures` in a row the backend is down until a probe
/// succeeds or, in a pool without probes, until `retry_after` has passed. Returns whether it was marked down now.
pub fn on_connect_failure(pool: &Pool, backend: &Backend, error: &dyn std::fmt::Display) -> bool {
    let needed = pool.config.load().passive.failures;
    let in_a_row = backend.passive.in_a_row.fetch_add(1, Relaxed).saturating_add(1);
    if needed == 0 || in_a_row < needed || matches!(backend.health(), Health::Down { .. }) {
        return false;
    }
    let why = match in_a_row {
        1 => format!("a connect failed: {error}"),
        n => format!("{n} connects in a row failed: {error}"),
    };
    if !backend.set_health(Health::Down { why: why.clone() }) {
        return false;
    }
    tracing::warn!(pool = backend.pool, backend = backend.name, address = %backend.address, "backend is down: {why}");
    backend.passive.marked.notify_one();
    pool.touch();
    true
}

/// A session connected. Never brings a backend up: one that is down is not tried.
pub fn on_connect_success(backend: &Backend) {
    // Nearly always zero already: do not make the line dirty for every session.
    if backend.passive.in_a_row.load(Relaxed) != 0 {
        backend.passive.in_a_row.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn pool() -> (Pool, Backend) {
        let pool = Pool::new("rw", config::Pool::default());
        (pool, Backend::new("rw", "b1", "192.0.2.1:6432".parse().unwrap()))
    }

    #[test]
    fn three_failures_in_a_row_mark_it_down() {
        let (pool, backend) = pool();
        assert!(!on_connect_failure(&pool, &backend, &"refused"));
        assert!(!on_connect_failure(&pool, &backend, &"refused"));
        assert!(on_connect_failure(&pool, &backend, &"refused"));
        assert_eq!(backend.health(), Health::Down { why: "3 connects in a row failed: refused".into() });
        assert!(!on_connect_failure(&pool, &backend, &"refused"), "it is marked once");
    }

    #[test]
    fn a_success_between_starts_the_count_anew() {
        let (pool, backend) = pool();
        for _ in 0..5 {
            on_connect_failure(&pool, &backend, &"refused");
            on_connect_failure(&pool, &backend, &"refused");
            on_connect_success(&backend);
        }
        assert_eq!(backend.health(), Health::Unknown);
    }

    #[test]
    fn zero_turns_it_off() {
        let (pool, backend) = pool();
        let mut config = config::Pool::default();
        config.passive.failures = 0;
        pool.config.store(config.into());
        for _ in 0..9 {
            assert!(!on_connect_failure(&pool, &backend, &"refused"));
        }
    }
}
