//! A session's life, a file a step: accept → startup → pick → connect → handshake → handoff → end.
//!
//! A session is one task on one data-plane thread ([`worker`]); it owns both sockets from accept to close. Steps
//! return `Err(Termination)` when they end it. What they wait for goes through the thread's [`crate::ring`], within
//! time limits and cuts ([`bounds`]).

pub mod accept;
mod bounds;
mod cancel;
pub mod connect;
pub(crate) mod end;
mod handoff;
mod handshake;
pub mod leg;
pub mod listening;
pub mod names;
mod packed;
mod pick;
pub mod record;
pub mod registry;
mod startup;
pub mod worker;

use std::rc::Rc;
use std::sync::Arc;

pub use record::*;

use crate::pg::startup::FirstPacket;
use crate::pool::Pool;
use crate::proxy::Listener;
use bounds::Cut;
use handoff::Life;
use leg::Leg;
use worker::Worker;

/// What every step needs. Lives as long as the session's task.
pub(crate) struct Session {
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    pool: Arc<Pool>,
    record: Arc<SessionRecord>,
    cut: Rc<Cut>,
}

/// All steps in order. What it returns is why the session ended.
async fn live(session: &Session, client: &Leg) -> Life {
    steps(session, client).await.unwrap_or_else(Life::Ended)
}

async fn steps(session: &Session, client: &Leg) -> Result<Life, Termination> {
    let mut opening = startup::read(session, client, Vec::new()).await?;
    // A full listener must not keep anybody from cancelling.
    if !matches!(opening.packet, FirstPacket::Cancel(_)) && session.listener.is_over_limit() {
        let limit = session.listener.config.load().max_sessions;
        let why = format!("sorry, too many clients: listener {} takes {limit} sessions", session.listener.name);
        return Err(end::refuse(session, client, opening, Termination::ListenerFull, &why).await);
    }
    loop {
        if let FirstPacket::Cancel(packet) = &opening.packet {
            return Ok(Life::Ended(cancel::deliver(session, packet).await));
        }
        let reached = match connect::reach(session, client, &opening).await {
            Ok(reached) => reached,
            Err(failed) => return Err(end::refuse(session, client, opening, failed.reason, &failed.why).await),
        };
        match handshake::run(session, client, &reached, &opening).await? {
            handshake::Outcome::Forward(ready) => return Ok(handoff::run(session, client, reached, ready).await),
            // Encryption was refused: the client goes on in plaintext on the same connection, or cancels.
            handshake::Outcome::Again(next) if matches!(next.packet, FirstPacket::Cancel(_)) => opening = next,
            handshake::Outcome::Again(next) => {
                let ready = handshake::plaintext(session, client, &reached, &next).await?;
                return Ok(handoff::run(session, client, reached, ready).await);
            }
        }
    }
}
