//! Step 5: relay the handshake, message by message, until the session is authenticated or encrypted.
//!
//! Login is a dialogue: after each answer of the backend it is known who speaks next. Only that side is read, so
//! nothing is in flight on the other when the session moves on to its road. The last answer is not sent: while it is
//! held here neither side will speak, which is when the kernel can take over.

use std::io;
use std::time::Instant;

use super::bounds::Bounds;
use super::connect::Reached;
use super::leg::Leg;
use super::startup::{self, Opening};
use super::{Session, Termination};
use crate::pg::cancel::Remembered;
use crate::pg::frame::{Event, Framer};
use crate::pg::startup::FirstPacket;

/// Where the handshake led.
pub(crate) enum Outcome {
    Forward(Ready),
    /// Encryption was refused; this is what the client sent next. Never a request for encryption that is not answered.
    Again(Opening),
}

/// What a session's road begins with.
pub(crate) struct Ready {
    /// The backend's last bytes, counted and not sent to the client: the reply that ends in ReadyForQuery, or the byte
    /// that agrees to encryption. Empty under direct TLS.
    pub held: Vec<u8>,
    pub stream: Stream,
    /// The cancel key, if one was seen.
    pub key: Option<Remembered>,
}

/// What can be read from `held` on.
pub(crate) enum Stream {
    /// Messages. The framer follows the backend's, and has seen `held`.
    Plain(Framer),
    /// Nothing: TLS, or GSS encryption.
    Encrypted,
    /// Nothing: what the backend sent is not PostgreSQL's protocol.
    Unknown,
}

pub(crate) async fn run(
    session: &Session,
    client: &Leg,
    reached: &Reached,
    opening: &Opening,
) -> Result<Outcome, Termination> {
    match opening.packet {
        FirstPacket::DirectTls => Ok(Outcome::Forward(Ready::encrypted(Vec::new()))),
        FirstPacket::Ssl | FirstPacket::GssEnc => encryption(session, client, reached).await,
        FirstPacket::Startup(_) | FirstPacket::Cancel(_) => login(session, client, reached).await.map(Outcome::Forward),
    }
}

/// Sends a startup packet on a leg where encryption was refused, then logs in.
pub(crate) async fn plaintext(
    session: &Session,
    client: &Leg,
    reached: &Reached,
    opening: &Opening,
) -> Result<Ready, Termination> {
    to_backend(session, client, reached, opening.bytes.clone()).await?;
    login(session, client, reached).await
}

/// The one byte that answers SSLRequest or GSSENCRequest, then perhaps the other request, at most once each.
async fn encryption(session: &Session, client: &Leg, reached: &Reached) -> Result<Outcome, Termination> {
    // libpq asks for GSS, then for SSL; nobody asks more often.
    for _ in 0..3 {
        let mut answer = reached.answer.take();
        if answer.is_empty() {
            from_backend(session, client, reached, &mut answer).await?;
        }
        let first = answer.first().copied();
        // A byte more than the answer would be plaintext a client takes for ciphertext (CVE-2021-23222).
        if answer.len() > 1 && first != Some(b'E') {
            return Err(Termination::HandshakeFailed);
        }
        if let Some(b'S' | b'G') = first {
            session.record.update(|details| details.tls = true);
            session.record.count(0, answer.len() as u64);
            return Ok(Outcome::Forward(Ready::encrypted(answer)));
        }
        to_client(session, client, reached, answer).await?;
        match first {
            Some(b'N') => {}
            Some(b'E') => return Err(Termination::LoginFailed),
            _ => return Err(Termination::HandshakeFailed),
        }
        let next = startup::read(session, client, Vec::new()).await?;
        match next.packet {
            FirstPacket::Ssl | FirstPacket::GssEnc => to_backend(session, client, reached, next.bytes).await?,
            FirstPacket::DirectTls => return Err(Termination::Garbage),
            FirstPacket::Startup(_) | FirstPacket::Cancel(_) => return Ok(Outcome::Again(next)),
        }
    }
    Err(Termination::Garbage)
}

/// From the forwarded StartupMessage to ReadyForQuery.
async fn login(session: &Session, client: &Leg, reached: &Reached) -> Result<Ready, Termination> {
    let backend = reached.place.backend();
    let mut from_server = Framer::default();
    let mut from_user = Framer::of_client();
    let mut key = None;
    let mut refused = false;
    loop {
        let mut answer = reached.answer.take();
        if answer.is_empty() {
            match from_backend(session, client, reached, &mut answer).await {
                Ok(()) => {}
                Err(Termination::HandshakeFailed) if refused => return Err(Termination::LoginFailed),
                Err(reason) => return Err(reason),
            }
        }
        let (mut ready, mut asks, mut lost) = (false, false, false);
        from_server.feed(&answer, |event| match event {
            Event::AuthenticationAsks => asks = true,
            Event::BackendKeyData(data) => key = Some(data),
            Event::ReadyForQuery => ready = true,
            Event::ErrorResponse => refused = true,
            Event::Lost => lost = true,
            // A client's.
            Event::ReplyDue => {}
        });
        if ready || lost {
            session.record.count(0, answer.len() as u64);
            let key = key.map(|key| session.worker.proxy.cancel_keys.remember(&key, backend));
            session.record.update(|details| {
                let took = session.record.age();
                let before = [details.times.startup, details.times.queue, details.times.connect];
                details.times.handshake =
                    Some(before.into_iter().flatten().fold(took, |left, one| left.saturating_sub(one)));
            });
            let stream = if lost { Stream::Unknown } else { Stream::Plain(from_server) };
            return Ok(Ready { held: answer, stream, key });
        }
        to_client(session, client, reached, answer).await?;
        while asks && !refused {
            let mut reply = Vec::new();
            from_client(session, client, reached, &mut reply).await?;
            let mut lost = false;
            from_user.feed(&reply, |event| lost |= event == Event::Lost);
            to_backend(session, client, reached, reply).await?;
            if lost {
                // The server will say what it thinks of it.
                break;
            }
            asks = !from_user.at_boundary();
        }
    }
}

impl Ready {
    fn encrypted(held: Vec<u8>) -> Self {
        Self { held, stream: Stream::Encrypted, key: None }
    }
}

async fn from_backend(
    session: &Session,
    client: &Leg,
    reached: &Reached,
    into: &mut Vec<u8>,
) -> Result<(), Termination> {
    let bounds = bounds(client, reached, Some(client));
    match session.within(bounds, reached.leg.read_more(into)).await? {
        Ok(0) | Err(_) => Err(Termination::HandshakeFailed),
        Ok(_) => Ok(()),
    }
}

async fn from_client(
    session: &Session,
    client: &Leg,
    reached: &Reached,
    into: &mut Vec<u8>,
) -> Result<(), Termination> {
    let bounds = bounds(client, reached, None);
    match session.within(bounds, client.read_more(into)).await? {
        Ok(0) => Err(Termination::ClientGone),
        Ok(_) => Ok(()),
        Err(_) => Err(Termination::ClientReset),
    }
}

async fn to_client(session: &Session, client: &Leg, reached: &Reached, bytes: Vec<u8>) -> Result<(), Termination> {
    session.record.count(0, bytes.len() as u64);
    let sent: io::Result<()> = session.within(bounds(client, reached, None), client.write_all(bytes)).await?;
    sent.map_err(|_| Termination::ClientReset)
}

async fn to_backend(session: &Session, client: &Leg, reached: &Reached, bytes: Vec<u8>) -> Result<(), Termination> {
    session.record.count(bytes.len() as u64, 0);
    let sent: io::Result<()> = session.within(bounds(client, reached, None), reached.leg.write_all(bytes)).await?;
    sent.map_err(|_| Termination::BackendReset)
}

fn bounds<'a>(client: &'a Leg, reached: &'a Reached, watch: Option<&'a Leg>) -> Bounds<'a> {
    let deadline: Instant = reached.handshake_deadline;
    Bounds { both: [client, &reached.leg], deadline: Some(deadline), late: Termination::HandshakeTimeout, watch }
}
