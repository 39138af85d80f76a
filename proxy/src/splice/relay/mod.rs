//! The relay: forwarding in user space, one io_uring and one thread for each data-plane thread.
//!
//! It drives its ring itself ([`engine`]) rather than through tokio-uring, which has no provided buffers: there a
//! pending read owns its buffer, so that 10,000 idle sessions would hold 10,000 × 2 of them. Here an idle session holds
//! none ([`buffers`]).
//!
//! Bounds: a direction is either receiving or sending, never both, so what a session holds in user space is at most one
//! chunk a direction: [`buffers::SMALL`] or, while it streams, [`buffers::LARGE`] bytes. A reader that stops therefore
//! stops the other side through TCP's own window, after both kernel socket buffers are full.
//!
//! A session may be given back at its next [`Turn`], for another road to take over ([`pause`]).

mod buffers;
mod engine;
mod flow;
mod pause;
mod turn;

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::{FromRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use turn::Turn;

use crate::pg::frame::Framer;
use crate::pool::Backend;
use crate::proxy::Listener;
use crate::session::{SessionId, SessionRecord, Termination};

/// As in access lines and metrics.
pub const ROAD: &str = "relay";

/// One session to forward. Whoever submits it keeps both descriptors open and untouched until it has ended.
#[derive(Debug)]
pub struct Job {
    pub client: RawFd,
    pub backend: RawFd,
    pub record: Arc<SessionRecord>,
    pub at_backend: Arc<Backend>,
    pub at_listener: Arc<Listener>,
    /// Zero: no limit.
    pub idle: Duration,
    /// Zero: no limit.
    pub half_closed: Duration,
    /// From the backend, counted already: sent to the client before anything else.
    pub held: Vec<u8>,
    /// Give the session back at such a moment; `None`: forward to the end.
    pub turn: Option<Turn>,
}

/// What became of a session. The engine does not touch its descriptors any more.
#[derive(Debug)]
pub enum Outcome {
    Ended(Termination),
    /// It is given back: nothing is in flight, and neither side owes a word. `held` came from the backend and was
    /// counted, but not sent to the client; the framer has seen it. Both are empty after [`Turn::Quiet`].
    Turn {
        held: Vec<u8>,
        framer: Option<Framer>,
    },
}

/// A relay engine, seen from the session thread it belongs to.
#[derive(Clone, Debug)]
pub struct Relay(Arc<Inbox>);

#[derive(Debug)]
struct Inbox {
    orders: Mutex<Vec<Order>>,
    /// An eventfd the engine reads.
    bell: File,
}

#[derive(Debug)]
enum Order {
    Forward(Box<Job>, oneshot::Sender<Outcome>),
    Cut(SessionId),
}

/// A session under way.
#[derive(Debug)]
pub struct Forwarding {
    id: SessionId,
    relay: Relay,
    ended: oneshot::Receiver<Outcome>,
}

impl Relay {
    /// Starts engine number `thread`. It runs until the process ends.
    pub fn start(thread: usize) -> io::Result<Self> {
        // SAFETY: plain system call; the descriptor it returns is ours alone.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if bell < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let bell = unsafe { File::from_raw_fd(bell) };
        let relay = Self(Arc::new(Inbox { orders: Mutex::default(), bell }));
        engine::start(thread, relay.0.clone())?;
        Ok(relay)
    }

    pub fn forward(&self, job: Job) -> Forwarding {
        let (sender, ended) = oneshot::channel();
        let id = job.record.id;
        self.0.put(Order::Forward(Box::new(job), sender));
        Forwarding { id, relay: self.clone(), ended }
    }
}

impl Forwarding {
    /// Why it ended, or its turn. From then on the engine does not touch the descriptors any more. May be called again
    /// after it was dropped half-way.
    pub async fn ended(&mut self) -> Outcome {
        // The engine answers every job; it cannot end before the process does.
        (&mut self.ended).await.unwrap_or(Outcome::Ended(Termination::Resource))
    }

    /// Stop forwarding at once. [`Self::ended`] then completes soon; a turn may have come first.
    pub fn cut(&self) {
        self.relay.0.put(Order::Cut(self.id));
    }
}

impl Inbox {
    fn put(&self, order: Order) {
        let first = {
            let mut orders = self.orders.lock();
            orders.push(order);
            orders.len() == 1
        };
        // The engine takes all orders at each ring of the bell.
        if first && let Err(error) = (&self.bell).write_all(&1u64.to_ne_bytes()) {
            tracing::error!("the relay's bell does not ring: {error}");
        }
    }
}
