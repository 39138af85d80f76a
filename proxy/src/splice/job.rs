//! What a session gives to an engine that moves its bytes through sockets: the relay's, or sockmap's.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::side::{Second, Side};
use crate::pool::Backend;
use crate::proxy::Listener;
use crate::session::{SessionRecord, Termination};

/// One session. Whoever submits it keeps both descriptors open and untouched until the engine is done with it.
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
}

impl Job {
    pub fn fd(&self, side: Side) -> RawFd {
        match side {
            Side::Client => self.client,
            Side::Backend => self.backend,
        }
    }

    /// Adds what was forwarded to the counters others read.
    pub fn count(&self, bytes_in: u64, bytes_out: u64) {
        self.record.count(bytes_in, bytes_out);
        self.at_backend.counters.bytes_in.fetch_add(bytes_in, Relaxed);
        self.at_backend.counters.bytes_out.fetch_add(bytes_out, Relaxed);
        self.at_listener.counters.bytes_in.fetch_add(bytes_in, Relaxed);
        self.at_listener.counters.bytes_out.fetch_add(bytes_out, Relaxed);
    }

    /// Which limit has passed, if any. `half_closed`: since when one direction is over.
    pub fn overdue(&self, half_closed: Option<Second>, last_active: Second, now: Second) -> Option<Termination> {
        let passed =
            |since: Second, limit: Duration| !limit.is_zero() && u64::from(now.wrapping_sub(since)) > limit.as_secs();
        match half_closed {
            Some(since) if passed(since, self.half_closed) => Some(Termination::HalfClosedTimeout),
            _ if passed(last_active, self.idle) => Some(Termination::IdleTimeout),
            _ => None,
        }
    }
}
