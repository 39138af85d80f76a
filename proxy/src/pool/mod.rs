//! Pools: who is eligible for a new session, who gets it, and who waits.
//!
//! [`Backend`] is shared by every thread and keeps its counters across reloads as long as its address stays in the pool.
//! [`Pool::candidates`] is an immutable list made by the control plane ([`director`]) and read once a session.

pub mod backend;
pub mod balance;
pub mod director;
pub mod eligibility;
mod pace;
pub mod queue;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use backend::*;

use crate::config;
use queue::Queue;

/// One pool as it runs.
#[derive(Debug)]
pub struct Pool {
    pub name: String,
    pub config: ArcSwap<config::Pool>,
    /// Everyone the pool knows, eligible or not.
    pub backends: ArcSwap<Vec<Arc<Backend>>>,
    /// Those that left it and still have sessions, or are drained and may come back.
    pub departed: Mutex<Vec<Arc<Backend>>>,
    /// What configuration and cluster say of each of them, before health is asked.
    pub members: ArcSwap<Vec<eligibility::Named>>,
    /// Who may be given a new session now.
    pub candidates: ArcSwap<Candidates>,
    pub queue: Queue,
    pub counters: PoolCounters,
    /// Told whenever health, drain state or the cluster changed, so that `candidates` are made anew.
    changed: Notify,
    turn: AtomicUsize,
}

/// Since start; only ever grow.
#[derive(Debug, Default)]
pub struct PoolCounters {
    /// Connects that failed and were followed by another try.
    pub retries: AtomicU64,
}

/// Who may be given a new session, in the pool's order, and why nobody if empty.
#[derive(Debug, Default)]
pub struct Candidates {
    pub list: Vec<Candidate>,
    pub why_empty: String,
    /// What the policy needs besides, as indices of `list`: see [`balance::table`].
    pub table: Vec<u16>,
}

#[derive(Clone, Debug)]
pub struct Candidate {
    pub backend: Arc<Backend>,
    pub weight: u32,
    /// 0 is the best; others are offered a session while nobody of a better one has room. [`FULL`] is none of these.
    pub tier: u8,
    /// 0 means no limit.
    pub max_sessions: u32,
    pub peer_id: Option<u16>,
}

/// Preferred ones; the others, and configured backups; the primary where it serves reads for want of replicas.
const TIERS: [u8; 3] = [0, 1, 2];
/// Those that are [`Health::Full`]: offered a session only where there is nobody else to wait for.
const FULL: u8 = 3;

/// What [`Pool::pick`] found.
#[derive(Debug)]
pub enum Picked {
    Place(Place),
    /// Some are eligible, and each has as many sessions as it may.
    Full,
    /// Nobody is eligible (or each was tried and failed).
    Nobody {
        why: String,
    },
}

impl Pool {
    pub fn new(name: &str, config: config::Pool) -> Self {
        Self {
            name: name.into(),
            config: ArcSwap::from_pointee(config),
            backends: ArcSwap::default(),
            departed: Mutex::default(),
            members: ArcSwap::default(),
            candidates: ArcSwap::from_pointee(Candidates { why_empty: "starting".into(), ..Candidates::default() }),
            queue: Queue::default(),
            counters: PoolCounters::default(),
            changed: Notify::new(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Something that decides eligibility changed: health, a drain mark, the cluster.
    pub fn touch(&self) {
        self.changed.notify_one();
    }

    pub async fn touched(&self) {
        self.changed.notified().await;
    }

    /// Sessions waiting for a backend.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Takes a place at a backend by the pool's policy. `tried` are addresses that failed for this session.
    pub fn pick(&self, client: IpAddr, tried: &[SocketAddr]) -> Picked {
        let candidates = self.candidates.load();
        let balance = self.config.load().balance;
        let is_left = |one: &Candidate| !tried.contains(&one.backend.address);
        let is_other = |one: &Candidate| one.tier != FULL && one.weight > 0 && is_left(one);
        let tiers = if candidates.list.iter().any(is_other) { &TIERS[..] } else { &[FULL] };
        for &tier in tiers {
            let order = balance::order(balance, &candidates, tier, client, self.turn.fetch_add(1, Relaxed));
            for candidate in order.filter(|candidate| is_left(candidate)) {
                if let Some(place) = Place::take(&candidate.backend, candidate.max_sessions) {
                    return Picked::Place(place);
                }
            }
        }
        if candidates.list.iter().any(is_left) {
            return Picked::Full;
        }
        let why =
            if candidates.list.is_empty() { candidates.why_empty.clone() } else { "every backend was tried".into() };
        Picked::Nobody { why }
    }

    /// A session left its place: whoever waits longest may try.
    pub fn place_freed(&self) {
        self.queue.wake_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Backends with room for one session each.
    fn pool(tiers: &[u8]) -> (Pool, Vec<SocketAddr>) {
        let address = |last: usize| SocketAddr::from(([10, 0, 0, last as u8], 6432));
        let list = tiers.iter().enumerate().map(|(last, &tier)| Candidate {
            backend: Arc::new(Backend::new("p", "b", address(last))),
            weight: 1,
            tier,
            max_sessions: 1,
            peer_id: None,
        });
        let pool = Pool::new("p", config::Pool::default());
        pool.candidates.store(Arc::new(Candidates { list: list.collect(), ..Candidates::default() }));
        (pool, (0..tiers.len()).map(address).collect())
    }

    fn pick(pool: &Pool, tried: &[SocketAddr]) -> Picked {
        pool.pick(IpAddr::from([10, 0, 0, 9]), tried)
    }

    fn place(picked: Picked) -> Place {
        match picked {
            Picked::Place(place) => place,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_session_waits_for_one_that_works_rather_than_go_to_one_without_connections() {
        let (pool, addresses) = pool(&[FULL, 0, 1]);
        let held = [place(pick(&pool, &[])), place(pick(&pool, &[]))];
        assert_eq!(held.each_ref().map(|place| place.backend().address), [addresses[1], addresses[2]]);
        assert!(matches!(pick(&pool, &[]), Picked::Full));
        // Those that failed are not waited for.
        assert_eq!(place(pick(&pool, &addresses[1..])).backend().address, addresses[0]);
    }

    #[test]
    fn where_all_are_without_connections_they_are_offered_what_comes() {
        let (pool, addresses) = pool(&[FULL, FULL]);
        let _held = [place(pick(&pool, &[])), place(pick(&pool, &[]))];
        assert!(matches!(pick(&pool, &[]), Picked::Full));
        assert!(matches!(pick(&pool, &addresses), Picked::Nobody { .. }));
    }
}
