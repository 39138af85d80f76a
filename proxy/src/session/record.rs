//! What is known about one session while it lives, readable from any thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use pgsplice_ebpf::flow::NO_SLOT;

use super::names::Name;
use super::packed::{Address, Packed};
use crate::pool::Backend;
use crate::splice::Why;

/// Unique within a process's life; the top two bytes are the data-plane thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl std::str::FromStr for SessionId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// One session. The data-plane thread that owns it writes, everyone may read. While it is forwarded it takes less than
/// 250 bytes, with all it points to and its place in the registry.
#[derive(Debug)]
pub struct SessionRecord {
    pub id: SessionId,
    pub listener: Name,
    pub pool: Name,
    client: Address,
    /// Microseconds since [`START`]; below zero for a session of a process before us.
    accepted: i64,
    /// Microseconds of Unix time.
    accepted_at: u64,
    /// Client to backend.
    pub bytes_in: AtomicU64,
    /// Backend to client.
    pub bytes_out: AtomicU64,
    /// In the splice's table, [`NO_SLOT`] while user space forwards it.
    slot: AtomicU32,
    details: Mutex<Stage>,
}

/// What a record's times count from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

#[derive(Debug)]
enum Stage {
    /// Before it is forwarded: often changed, not for long.
    Made(Box<Details>),
    Forwarded(Packed),
}

/// Filled in step by step.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub phase: Phase,
    /// From a plaintext StartupMessage; under TLS never known.
    pub user: Option<String>,
    pub database: Option<String>,
    pub application_name: Option<String>,
    pub tls: bool,
    pub backend: Option<Arc<Backend>>,
    /// Our own address on the backend leg.
    pub backend_local: Option<SocketAddr>,
    /// Which road forwards it: `relay`, `xdp`, `tc`, `sockmap`.
    pub road: Option<&'static str>,
    /// Why the kernel does not.
    pub why: Option<Why>,
    pub times: Times,
}

/// How long each step took; `None` where a session did not get that far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Accept to a whole first packet.
    pub startup: Option<Duration>,
    /// In the pool's queue.
    pub queue: Option<Duration>,
    /// All connect attempts together.
    pub connect: Option<Duration>,
    /// Backend connected to authenticated (or TLS agreed).
    pub handshake: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Startup,
    Queue,
    Connect,
    Handshake,
    Forward,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Queue => "queue",
            Self::Connect => "connect",
            Self::Handshake => "handshake",
            Self::Forward => "forward",
        }
    }
}

impl SessionRecord {
    pub fn new(id: SessionId, listener: &str, pool: &str, client: SocketAddr) -> Self {
        Self {
            id,
            listener: Name::of(listener),
            pool: Name::of(pool),
            client: client.into(),
            accepted: START.elapsed().as_micros() as i64,
            accepted_at: unix_micros(SystemTime::now()),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            slot: AtomicU32::new(NO_SLOT),
            details: Mutex::new(Stage::Made(Box::default())),
        }
    }

    /// For a session of a process before us: it was accepted then, and not now.
    pub fn set_accepted_at(&mut self, at: SystemTime) {
        let age = at.elapsed().unwrap_or_default();
        self.accepted = START.elapsed().as_micros() as i64 - i64::try_from(age.as_micros()).unwrap_or_default();
        self.accepted_at = unix_micros(at);
    }

    pub fn client(&self) -> SocketAddr {
        self.client.into()
    }

    /// Microseconds of a monotonic clock, below zero for a session of a process before us: for the order.
    pub fn accepted(&self) -> i64 {
        self.accepted
    }

    /// Since the accept.
    pub fn age(&self) -> Duration {
        let age = START.elapsed().as_micros() as i64 - self.accepted;
        Duration::from_micros(u64::try_from(age).unwrap_or_default())
    }

    pub fn accepted_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.accepted_at)
    }

    pub fn details(&self) -> Details {
        match &*self.details.lock() {
            Stage::Made(details) => (**details).clone(),
            Stage::Forwarded(packed) => packed.unpack(),
        }
    }

    /// These two of the details, for those who ask every session.
    pub fn phase_and_road(&self) -> (Phase, Option<&'static str>) {
        match &*self.details.lock() {
            Stage::Made(details) => (details.phase, details.road),
            Stage::Forwarded(packed) => packed.phase_and_road(),
        }
    }

    /// This one of the details.
    pub fn backend(&self) -> Option<Arc<Backend>> {
        match &*self.details.lock() {
            Stage::Made(details) => details.backend.clone(),
            Stage::Forwarded(packed) => packed.backend().cloned(),
        }
    }

    /// [`Phase::Forward`] packs the details: from then on a change costs more.
    pub fn update(&self, change: impl FnOnce(&mut Details)) {
        let mut stage = self.details.lock();
        let details = match &mut *stage {
            Stage::Made(details) => {
                change(details);
                if details.phase != Phase::Forward {
                    return;
                }
                std::mem::take(&mut **details)
            }
            Stage::Forwarded(packed) => {
                let mut details = packed.unpack();
                change(&mut details);
                details
            }
        };
        *stage = Stage::Forwarded(details.into());
    }

    /// Where it stands in the splice's table while the kernel forwards it.
    pub fn slot(&self) -> Option<u32> {
        Some(self.slot.load(Relaxed)).filter(|slot| *slot != NO_SLOT)
    }

    pub fn set_slot(&self, slot: Option<u32>) {
        self.slot.store(slot.unwrap_or(NO_SLOT), Relaxed);
    }

    pub fn count(&self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in.fetch_add(bytes_in, Relaxed);
        self.bytes_out.fetch_add(bytes_out, Relaxed);
    }

    /// (client to backend, backend to client)
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_in.load(Relaxed), self.bytes_out.load(Relaxed))
    }
}

fn unix_micros(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Why a session ended: one per access line, one label value of `pgsplice_sessions_ended_total`.
///
/// `docs/metrics.md` says for each what an operator should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Termination {
    /// The client ended the session and everything was forwarded.
    ClientClosed,
    BackendClosed,
    ClientReset,
    BackendReset,
    /// The client went away before a backend was reached.
    ClientGone,
    StartupTimeout,
    /// The first packet was none of PostgreSQL's.
    Garbage,
    /// The first packet said it is longer than `max_startup_size`.
    Oversized,
    ListenerFull,
    QueueFull,
    QueueTimeout,
    /// Every connect attempt failed.
    ConnectFailed,
    HandshakeTimeout,
    /// The backend broke the protocol or closed during the handshake.
    HandshakeFailed,
    /// The backend refused the login (its ErrorResponse was passed on).
    LoginFailed,
    IdleTimeout,
    HalfClosedTimeout,
    /// A CancelRequest that was delivered.
    CancelDelivered,
    /// A CancelRequest that no backend took.
    CancelFailed,
    /// Cut: the backend is no longer the primary.
    Demoted,
    /// `pgsplice kill`.
    Killed,
    /// Still there when the drain time was over.
    DrainTimeout,
    /// Out of descriptors, memory or another resource of this host.
    Resource,
    /// Bytes got past the hand-off to the kernel, and rather than go on with a gap the session was cut.
    HandoffFailed,
    /// Cut: it was in the kernel, and the next process has no program of the kind on its interfaces.
    Stranded,
    /// Cut: the reply that was held at the hand-off has not reached the client, and nobody is left who has it.
    ReplyLost,
}

impl Termination {
    pub const ALL: &'static [Self] = &[
        Self::ClientClosed,
        Self::BackendClosed,
        Self::ClientReset,
        Self::BackendReset,
        Self::ClientGone,
        Self::StartupTimeout,
        Self::Garbage,
        Self::Oversized,
        Self::ListenerFull,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::ConnectFailed,
        Self::HandshakeTimeout,
        Self::HandshakeFailed,
        Self::LoginFailed,
        Self::IdleTimeout,
        Self::HalfClosedTimeout,
        Self::CancelDelivered,
        Self::CancelFailed,
        Self::Demoted,
        Self::Killed,
        Self::DrainTimeout,
        Self::Resource,
        Self::HandoffFailed,
        Self::Stranded,
        Self::ReplyLost,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client-closed",
            Self::BackendClosed => "backend-closed",
            Self::ClientReset => "client-reset",
            Self::BackendReset => "backend-reset",
            Self::ClientGone => "client-gone",
            Self::StartupTimeout => "startup-timeout",
            Self::Garbage => "garbage",
            Self::Oversized => "oversized",
            Self::ListenerFull => "listener-full",
            Self::QueueFull => "queue-full",
            Self::QueueTimeout => "queue-timeout",
            Self::ConnectFailed => "connect-failed",
            Self::HandshakeTimeout => "handshake-timeout",
            Self::HandshakeFailed => "handshake-failed",
            Self::LoginFailed => "login-failed",
            Self::IdleTimeout => "idle-timeout",
            Self::HalfClosedTimeout => "half-closed-timeout",
            Self::CancelDelivered => "cancel-delivered",
            Self::CancelFailed => "cancel-failed",
            Self::Demoted => "demoted",
            Self::Killed => "killed",
            Self::DrainTimeout => "drain-timeout",
            Self::Resource => "resource",
            Self::HandoffFailed => "handoff-failed",
            Self::Stranded => "stranded",
            Self::ReplyLost => "reply-lost",
        }
    }
}
