//! Sessions and backends made to end: cut, drained, waited for.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Proxy;
use crate::pool::Backend;
use crate::session::worker::Command;
use crate::session::{SessionId, SessionRecord, Termination};

impl Proxy {
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

    /// Stop or resume giving sessions to the backends with this name or `ip:port`, in one pool or all, also while they are
    /// not there.
    /// Returns the `pool/name` of those it changed or found so already; empty means none has that name.
    pub fn set_drained(&self, backend: &str, pool: Option<&str>, drained: bool) -> Vec<String> {
        let pools = self.pools.load();
        let mut found = Vec::new();
        for one in pools.values().filter(|one| pool.is_none_or(|name| one.name == name)) {
            let departed = one.departed.lock().clone();
            for member in one.backends.load().iter().chain(&departed) {
                if member.name == backend || member.address.to_string() == backend {
                    member.set_drained(drained);
                    one.touch();
                    found.push(format!("{}/{}", one.name, member.name));
                }
            }
        }
        found
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

    /// Sessions that end with this process: those in the kernel go on.
    fn in_user_space(&self) -> usize {
        self.registry.len().saturating_sub(self.splice().map_or(0, |splice| splice.table.live()))
    }
}
