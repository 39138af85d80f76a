//! From one process to the next: what the proxy gives up, keeps and takes back.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;

use super::reload::Prepared;
use super::{Lifecycle, Listener, Proxy};
use crate::guard::GuardError;
use crate::handover::{Inherited, UnderWay, systemd};
use crate::session::worker::Waiting;

impl Proxy {
    /// Has the service manager keep the listening sockets, and give up those of before that are not used.
    pub fn keep_sockets(&self, unused: Inherited) {
        if !systemd::keeps_sockets() {
            return;
        }
        unused.listening.iter().for_each(|one| systemd::forget(&one.name));
        self.kept.store(true, Relaxed);
        self.listeners.load().values().for_each(|listener| self.keep(listener));
    }

    pub(super) fn keep(&self, listener: &Listener) {
        let sockets = listener.listening_sockets();
        systemd::store(&listener.name, sockets.iter().map(|socket| socket.as_fd()));
    }

    /// What becomes of those that wait when this process stops listening.
    pub(super) fn when_closing(&self) -> Waiting {
        if self.kept.load(Relaxed) { Waiting::Leave } else { Waiting::Serve }
    }

    /// Lets another process begin to take over. No reload changes the listeners meanwhile.
    pub async fn begin_takeover(&self) -> Result<UnderWay, &'static str> {
        if self.lifecycle() == Lifecycle::Draining {
            return Err("the proxy is draining");
        }
        let under_way = self.handover.begin().ok_or("another process is taking over already")?;
        // A reload that was past its check.
        drop(self.control.lock().await);
        Ok(under_way)
    }

    /// Lets another process steer what is in the kernel. Programs and maps stay where they are, and work.
    pub async fn give_up_kernel(&self) {
        if let Some(splice) = self.splice() {
            splice.lend().await;
        }
        if let Some(guard) = &*self.guard.load()
            && let Err(error) = guard.kernel().pins().unlock()
        {
            tracing::warn!("{error}");
        }
    }

    /// What is in the kernel is ours alone from now on.
    pub fn settle_kernel(&self) {
        if let Some(guard) = self.guard.load_full()
            && let Err(error) = guard.settle()
        {
            tracing::error!("the maps of another pgsplice version stay: {error}");
        }
        if let Some(splice) = self.splice() {
            splice.take_back();
        }
    }

    /// It stays the other process's: this one ends.
    pub fn leave_kernel(&self) {
        if let Some(guard) = self.guard.load_full()
            && let Err(error) = guard.kernel().give_back()
        {
            tracing::error!("{error}");
        }
    }

    /// The takeover came to nothing.
    pub fn take_kernel_back(&self) {
        let Some(guard) = self.guard.load_full() else { return };
        let config = self.config.load();
        let addresses = self.addresses(&config, &Prepared::default());
        let locked = guard.kernel().pins().lock_again().map_err(GuardError::from);
        // The other process may have put its own programs on the interfaces.
        if let Err(error) = locked.and_then(|()| guard.reload(&config.guard, &addresses)) {
            tracing::error!("what is in the kernel goes on as it is, and cannot be steered any more: {error}");
        }
        if let Some(splice) = self.splice() {
            splice.take_back();
        }
    }

    /// Another process accepts on our sockets: stop, and leave them open for it. Sessions go on here until they end.
    pub async fn hand_over(&self) {
        self.draining.store(true, Relaxed);
        self.stop_listening(None, Waiting::Leave).await;
        if let Some(splice) = self.splice.swap(None) {
            splice.forget_sessions(self);
        }
        // Not stopped: it is the other process's.
        drop(self.guard.swap(None));
    }
}
