//! Pools: who is eligible for a new session, who gets it, and who waits.
//!
//! [`Backend`] is shared by every thread and keeps its counters across reloads as long as its address stays in the pool.
//! [`Pool::candidates`] is an immutable list made by the control plane and read once a session.

pub mod backend;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

pub use backend::*;

use crate::config;

/// One pool as it runs.
#[derive(Debug)]
pub struct Pool {
    pub name: String,
    pub config: ArcSwap<config::Pool>,
    /// Everyone the pool knows, eligible or not.
    pub backends: ArcSwap<Vec<Arc<Backend>>>,
    /// Who may be given a new session now.
    pub candidates: ArcSwap<Candidates>,
    /// Told whenever health, drain state or the cluster changed, so that `candidates` are made anew.
    changed: Notify,
}

/// Who may be given a new session, in the pool's order, and why nobody if empty.
#[derive(Debug, Default)]
pub struct Candidates {
    pub list: Vec<Candidate>,
    pub why_empty: String,
}

#[derive(Clone, Debug)]
pub struct Candidate {
    pub backend: Arc<Backend>,
    pub weight: u32,
    pub backup: bool,
    pub max_sessions: u32,
    pub peer_id: Option<u16>,
}

impl Pool {
    pub fn new(name: &str, config: config::Pool) -> Self {
        Self {
            name: name.into(),
            config: ArcSwap::from_pointee(config),
            backends: ArcSwap::default(),
            candidates: ArcSwap::default(),
            changed: Notify::new(),
        }
    }

    /// Something that decides eligibility changed: health, a drain mark, the cluster.
    pub fn touch(&self) {
        self.changed.notify_one();
    }

    /// Sessions waiting for a backend.
    pub fn waiting(&self) -> usize {
        0
    }
}
