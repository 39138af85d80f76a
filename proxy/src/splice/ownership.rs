//! Whether this process still steers what is in the kernel, or another one that takes over does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::Splice;
use crate::proxy::Proxy;

/// Hand-offs take some milliseconds each.
const HAND_OFFS: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub struct Ownership {
    lent: AtomicBool,
    /// Held while the sweep works on the maps.
    sweeping: Mutex<()>,
    hand_offs: AtomicUsize,
}

/// A hand-off under way.
pub struct HandingOff(Arc<Splice>);

impl Ownership {
    /// For the sweep's work. `None`: the maps are not ours.
    pub fn sweep(&self) -> Option<MutexGuard<'_, ()>> {
        Some(self.sweeping.lock()).filter(|_| !self.is_lent())
    }

    /// Whether another process steers what is in the kernel.
    pub fn is_lent(&self) -> bool {
        self.lent.load(SeqCst)
    }
}

impl Splice {
    /// `None`: a session that is not in the kernel yet stays out of it.
    pub fn begin_hand_off(self: &Arc<Self>) -> Option<HandingOff> {
        // Counted before it is asked: `lend` sees one of the two.
        self.ownership.hand_offs.fetch_add(1, SeqCst);
        let under_way = HandingOff(self.clone());
        Some(under_way).filter(|_| !self.ownership.is_lent())
    }

    /// Touches the maps no more, from when this returns on.
    pub async fn lend(&self) {
        self.ownership.lent.store(true, SeqCst);
        drop(self.ownership.sweeping.lock());
        let over = async {
            while self.ownership.hand_offs.load(SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(HAND_OFFS, over).await.is_err() {
            tracing::warn!("a session was being handed to the kernel when another process took over");
        }
    }

    /// A process before us still steers what is in the kernel.
    pub fn wait(&self) {
        self.ownership.lent.store(true, SeqCst);
    }

    /// The other process is gone.
    pub fn take_back(&self) {
        self.ownership.lent.store(false, SeqCst);
    }

    /// The sessions in the kernel are the other process's now: they neither end here nor count.
    pub fn forget_sessions(&self, proxy: &Proxy) {
        for session in (0..self.table.end()).filter_map(|index| self.table.take_session(index)) {
            proxy.registry.remove(session.record.id);
            if let Some(listener) = &session.listener {
                listener.live.fetch_sub(1, Relaxed);
            }
        }
    }
}

impl Drop for HandingOff {
    fn drop(&mut self) {
        self.0.ownership.hand_offs.fetch_sub(1, SeqCst);
    }
}
