//! `[listener.NAME]` as it runs, and how the threads begin and stop to accept for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use socket2::Socket;
use tokio::sync::oneshot;

use super::Proxy;
use crate::config;
use crate::handover::systemd;
use crate::session::Termination;
use crate::session::listening::Bound;
use crate::session::worker::{Command, Waiting};
use crate::splice::brief::Brief;

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

impl Proxy {
    pub(super) fn start_listening(&self, listener: &Arc<Listener>) {
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
    pub(super) async fn stop_listening(&self, listener: Option<&Arc<Listener>>, waiting: Waiting) {
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
