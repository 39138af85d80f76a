//! The sockmap road: a session's two sockets joined in the kernel, for legs on this host, where XDP has no say.
//!
//! An SK_SKB program queues what arrives at one socket to the other, and the kernel's worker sends it. One thread of ours
//! ([`engine`]) sees to all that the program cannot do. It moves the bytes that were
//! there before, carries over FIN and RST, keeps the limits, and takes over the copying of a direction whose reader is
//! slow ([`flow`] says how no byte is lost, doubled or overtaken on the way).
//!
//! Bounds: the program redirects only what the other socket's send buffer has room for, so a session's memory is bounded
//! as the relay's is: the kernel's four socket buffers, and at most [`flow::CHUNK`] bytes a direction in user space.

mod engine;
mod flow;
mod session;
mod socket;

use std::fs::File;
use std::io;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use socket::Socket;

use super::Why;
use super::job::Job;
use crate::bpf::{Joints, SockmapError};
use crate::session::{SessionId, Termination};

/// What became of a session. The engine does not touch its descriptors any more.
#[derive(Debug)]
pub enum Outcome {
    Ended(Termination),
    /// Not joined, for the relay to take: nothing is in flight but `held`, which goes to the client first.
    Refused {
        why: Why,
        held: Vec<u8>,
    },
}

/// Sessions that are joined at most. What the kernel sets aside for them is about 0.5 KiB each.
pub const MAX_SESSIONS: u32 = 16_384;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Load(#[from] SockmapError),
    #[error("the kernel takes no socket ({0}): the sockmap road needs CONFIG_BPF_STREAM_PARSER")]
    Insert(io::Error),
    #[error("cannot start the sockmap engine: {0}")]
    Thread(#[from] io::Error),
}

/// The engine, as the session threads see it.
#[derive(Clone, Debug)]
pub struct Sockmap(Arc<Inbox>);

#[derive(Debug)]
struct Inbox {
    orders: Mutex<Vec<Order>>,
    /// An eventfd the engine reads.
    bell: File,
    joined: AtomicU64,
    moved: [AtomicU64; 2],
}

/// Bytes forwarded, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From socket to socket in the kernel.
    pub redirected: u64,
    /// Through user space: before the sockets were joined, and while a reader was slow.
    pub copied: u64,
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
    sockmap: Sockmap,
    ended: oneshot::Receiver<Outcome>,
}

/// Whether this host has the road: its program loaded, and a connection of our own inserted, for the length of the call.
pub fn try_out() -> Result<(), StartError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let _far = listener.accept()?;
    let cookie = Socket(near.as_raw_fd()).cookie()?;
    Joints::load(1)?.insert(0, near.as_fd(), cookie).map_err(StartError::Insert)
}

impl Sockmap {
    /// Starts an engine with room for this many sessions. It runs until the process ends.
    pub fn start(sessions: u32) -> Result<Self, StartError> {
        // SAFETY: plain system call; the descriptor it returns is ours alone.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if bell < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: just made, owned by nobody else.
        let bell = unsafe { File::from_raw_fd(bell) };
        let sockmap = Self(Arc::new(Inbox {
            orders: Mutex::default(),
            bell,
            joined: AtomicU64::default(),
            moved: Default::default(),
        }));
        engine::start(sessions, sockmap.0.clone())?;
        Ok(sockmap)
    }

    pub fn forward(&self, job: Job) -> Forwarding {
        let (sender, ended) = oneshot::channel();
        let id = job.record.id;
        self.0.put(Order::Forward(Box::new(job), sender));
        Forwarding { id, sockmap: self.clone(), ended }
    }

    /// Sessions whose sockets were joined, since the engine's start.
    pub fn joined(&self) -> u64 {
        self.0.joined.load(Relaxed)
    }

    /// Since the engine's start, as of its last tick.
    pub fn moved(&self) -> Moved {
        let [redirected, copied] = self.0.moved.each_ref().map(|bytes| bytes.load(Relaxed));
        Moved { redirected, copied }
    }
}

impl Forwarding {
    /// Why it ended, or was not joined. May be called again after it was dropped half-way.
    pub async fn ended(&mut self) -> Outcome {
        // The engine answers every job; it cannot end before the process does.
        (&mut self.ended).await.unwrap_or(Outcome::Ended(Termination::Resource))
    }

    /// Stop forwarding at once. [`Self::ended`] then completes soon.
    pub fn cut(&self) {
        self.sockmap.0.put(Order::Cut(self.id));
    }
}

impl Inbox {
    fn count(&self, moved: Moved) {
        self.moved[0].fetch_add(moved.redirected, Relaxed);
        self.moved[1].fetch_add(moved.copied, Relaxed);
    }

    fn put(&self, order: Order) {
        let first = {
            let mut orders = self.orders.lock();
            orders.push(order);
            orders.len() == 1
        };
        // The engine takes all orders at each ring of the bell.
        if first && let Err(error) = (&self.bell).write_all(&1u64.to_ne_bytes()) {
            tracing::error!("the sockmap engine's bell does not ring: {error}");
        }
    }
}
