//! From one process to the next without a refused client: listening sockets are handed over, never closed.
//!
//! Either a running process gives them to another one over its admin socket ([`give`], [`take`]), or systemd keeps them
//! between two ([`systemd`]). Sessions on the relay end in the process they began in.

pub mod fds;
pub mod give;
mod inherited;
pub mod successor;
pub mod systemd;
pub mod take;
mod talk;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};

use parking_lot::Mutex;
use tokio::sync::watch;

pub use inherited::Inherited;
pub use talk::PROTOCOL;

/// A process's own part in handing itself over.
#[derive(Debug)]
pub struct Handover {
    /// Copies of the admin interface's sockets, as long as it serves.
    admin: Mutex<Option<AdminSockets>>,
    under_way: AtomicBool,
    done: watch::Sender<Option<Done>>,
}

#[derive(Debug)]
pub struct AdminSockets {
    pub unix: (PathBuf, OwnedFd),
    pub http: Option<(SocketAddr, OwnedFd)>,
}

/// What became of the process when it had handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The new process serves the admin interface on our Unix socket: its file must stay.
    pub admin_kept: bool,
}

/// One takeover, until dropped.
#[derive(Debug)]
pub struct UnderWay(Arc<Handover>);

impl Default for Handover {
    fn default() -> Self {
        Self { admin: Mutex::default(), under_way: AtomicBool::new(false), done: watch::Sender::new(None) }
    }
}

impl Handover {
    /// They serve from now on.
    pub fn set_admin(&self, sockets: Option<AdminSockets>) {
        *self.admin.lock() = sockets;
    }

    /// `None` while another one is under way.
    pub fn begin(self: &Arc<Self>) -> Option<UnderWay> {
        (!self.under_way.swap(true, AcqRel)).then(|| UnderWay(self.clone()))
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Acquire)
    }

    pub fn complete(&self, done: Done) {
        self.admin.lock().take();
        self.done.send_replace(Some(done));
    }

    /// Returns once this process has handed over.
    pub async fn completed(&self) -> Done {
        let mut done = self.done.subscribe();
        let done = done.wait_for(Option::is_some).await.expect("the sender is ours");
        done.expect("it was waited for")
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.store(false, Release);
    }
}
