//! Step 6: hand the session to its road and wait for its end. Today the only road is the relay.

use std::sync::atomic::Ordering::Relaxed;

use super::connect::Reached;
use super::handshake::Ready;
use super::leg::Leg;
use super::{Phase, Session, Termination};
use crate::splice::relay::{Job, Outcome, ROAD};

pub(crate) async fn run(session: &Session, client: &Leg, reached: Reached, ready: Ready) -> Termination {
    // The key is remembered for as long as the session lives.
    let Ready { held, key: _key, .. } = ready;
    let backend = reached.place.backend().clone();
    session.record.update(|details| {
        details.phase = Phase::Forward;
        details.road = Some(ROAD);
    });
    if let Some(took) = session.record.details().times.handshake {
        session.worker.proxy.metrics.observe_handshake(&session.pool.name, took);
    }
    let (bytes_in, bytes_out) = session.record.bytes();
    backend.counters.bytes_in.fetch_add(bytes_in, Relaxed);
    backend.counters.bytes_out.fetch_add(bytes_out, Relaxed);
    session.listener.counters.bytes_in.fetch_add(bytes_in, Relaxed);
    session.listener.counters.bytes_out.fetch_add(bytes_out, Relaxed);
    let timeouts = session.pool.config.load().timeouts.clone();
    let job = Job {
        client: client.fd(),
        backend: reached.leg.fd(),
        record: session.record.clone(),
        at_backend: backend,
        at_listener: session.listener.clone(),
        idle: timeouts.idle,
        half_closed: timeouts.half_closed,
        held,
        turn: None,
    };
    let mut forwarding = session.worker.relay.forward(job);
    let reason = tokio::select! {
        outcome = forwarding.ended() => match outcome {
            Outcome::Ended(reason) => reason,
            Outcome::Turn { .. } => unreachable!("no turn was asked for"),
        },
        reason = session.cut.ordered() => {
            forwarding.cut();
            // Until the engine lets go of both descriptors they must stay open.
            forwarding.ended().await;
            reason
        }
    };
    if reason.resets() {
        client.reset_on_close();
        reached.leg.reset_on_close();
    }
    reason
}

impl Termination {
    /// Whether both legs end with RST: one side was reset, or the session is cut.
    fn resets(self) -> bool {
        !matches!(self, Self::ClientClosed | Self::BackendClosed)
    }
}
