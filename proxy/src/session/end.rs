//! The last step: say no to a client so that a person can read it, count, log, forget.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::bounds::Bounds;
use super::leg::Leg;
use super::startup::{self, Opening};
use super::{Session, Termination};
use crate::pg::error::{SqlState, fatal};
use crate::pg::startup::FirstPacket;
use crate::proxy::Proxy;
use crate::splice::table;

/// How long a refused client may take to read its refusal.
const REFUSAL_LIMIT: Duration = Duration::from_secs(5);

/// Sends a FATAL ErrorResponse with `why`. A client that asked for encryption is told `N` first: libpq throws away an
/// error that comes in place of the answer, and with `sslmode=prefer` goes on in plaintext and reads this one. With
/// `sslmode=require` it reports that the server does not support SSL.
pub(crate) async fn refuse(
    session: &Session,
    client: &Leg,
    mut opening: Opening,
    reason: Termination,
    why: &str,
) -> Termination {
    let state = match reason {
        Termination::ListenerFull => SqlState::TooManyConnections,
        Termination::Resource => SqlState::TooManyConnections,
        Termination::QueueFull
        | Termination::QueueTimeout
        | Termination::ConnectFailed
        | Termination::HandshakeTimeout => SqlState::CannotConnectNow,
        _ => return reason,
    };
    for _ in 0..3 {
        let bytes = match opening.packet {
            FirstPacket::Startup(_) => fatal(state, why),
            FirstPacket::Ssl | FirstPacket::GssEnc => vec![b'N'],
            FirstPacket::Cancel(_) | FirstPacket::DirectTls => break,
        };
        let bounds = Bounds {
            both: [client, client],
            deadline: Some(Instant::now() + REFUSAL_LIMIT),
            late: reason,
            watch: None,
        };
        if !matches!(session.within(bounds, client.write_all(bytes)).await, Ok(Ok(()))) {
            break;
        }
        if matches!(opening.packet, FirstPacket::Startup(_)) {
            break;
        }
        match startup::read(session, client, Vec::new()).await {
            Ok(next) => opening = next,
            Err(_) => break,
        }
    }
    reason
}

/// Counts the end and writes the access line. The session's sockets and place are gone by now.
pub(crate) fn account(session: &Session, reason: Termination) {
    let total = session.record.age();
    session.listener.counters.count_end(reason);
    session.worker.proxy.metrics.observe_session(&session.pool.name, total);
    crate::log::access(&session.record, reason, total);
}

/// The same for a session that ended in the kernel.
pub(crate) fn account_spliced(proxy: &Proxy, session: table::Session, reason: Termination) {
    let table::Session { record, listener, pool, place, cancel_key } = session;
    drop((place, cancel_key));
    proxy.registry.remove(record.id);
    let total = record.age();
    if let Some(listener) = listener {
        listener.live.fetch_sub(1, Relaxed);
        listener.counters.count_end(reason);
        listener.counters.brief.ended(total);
    }
    if let Some(pool) = pool {
        proxy.metrics.observe_session(&pool.name, total);
    }
    crate::log::access(&record, reason, total);
}
