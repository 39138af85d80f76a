//! One backend of one pool: identity, state and counters.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::health::Passive;

/// A PgBouncer (or PostgreSQL) address as a member of a pool. Identity is `(pool, address)`.
#[derive(Debug)]
pub struct Backend {
    pub pool: String,
    pub address: SocketAddr,
    /// What an operator calls it: the configured name, the member's or the bouncer's.
    pub name: String,
    /// Drained by `pgsplice drain`; survives reloads and that its cluster does not list it for a while, not restarts.
    drained: AtomicBool,
    /// Paused for a switchover by its agent: that a probe waits there is no failure.
    held: AtomicBool,
    health: Mutex<Health>,
    /// Sessions that hold or are making a connection here.
    sessions: AtomicU32,
    pub counters: BackendCounters,
    /// Failed connects of real sessions.
    pub passive: Passive,
}

/// Since start; only ever grow. Bytes are added while a session runs, not only at its end.
#[derive(Debug, Default)]
pub struct BackendCounters {
    pub sessions: AtomicU64,
    pub connect_failures: AtomicU64,
    pub probe_failures: AtomicU64,
    /// Client to backend.
    pub bytes_in: AtomicU64,
    /// Backend to client.
    pub bytes_out: AtomicU64,
}

/// What probes and failed connects say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not probed yet. Eligible only while its pool has no probe.
    Unknown,
    Up,
    /// Alive, and without a connection to spare when it was asked last. It is offered a session while nobody else is
    /// left: a PgBouncer may have a server connection for it, and anybody else says itself that there is none.
    Full {
        why: String,
    },
    Down {
        why: String,
    },
}

impl Backend {
    pub fn new(pool: &str, name: &str, address: SocketAddr) -> Self {
        Self {
            pool: pool.into(),
            address,
            name: name.into(),
            drained: AtomicBool::new(false),
            held: AtomicBool::new(false),
            health: Mutex::new(Health::Unknown),
            sessions: AtomicU32::new(0),
            counters: BackendCounters::default(),
            passive: Passive::default(),
        }
    }

    pub fn health(&self) -> Health {
        self.health.lock().clone()
    }

    /// Returns whether it changed; the caller then has the pool's candidates made anew.
    pub fn set_health(&self, health: Health) -> bool {
        let mut now = self.health.lock();
        let changed = *now != health;
        *now = health;
        changed
    }

    pub fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    pub fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Relaxed);
    }

    pub fn is_held(&self) -> bool {
        self.held.load(Relaxed)
    }

    pub fn set_held(&self, held: bool) {
        self.held.store(held, Relaxed);
    }

    pub fn sessions(&self) -> u32 {
        self.sessions.load(Relaxed)
    }
}

/// A place at a backend, given back when dropped.
#[derive(Debug)]
pub struct Place(std::sync::Arc<Backend>);

impl Place {
    /// `limit` 0 means none. `None` when the backend is full.
    pub fn take(backend: &std::sync::Arc<Backend>, limit: u32) -> Option<Self> {
        let took =
            backend.sessions.fetch_update(Relaxed, Relaxed, |now| (limit == 0 || now < limit).then_some(now + 1));
        took.ok().map(|_| Self(backend.clone()))
    }

    pub fn backend(&self) -> &std::sync::Arc<Backend> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Relaxed);
    }
}
