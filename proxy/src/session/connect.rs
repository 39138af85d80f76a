//! Step 4: a connected backend that has answered the first packet, with retries on others.
//!
//! A backend that refuses, times out, or closes before its first byte costs the client nothing: the first packet is
//! still in our hands and goes to another one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::bounds::Bounds;
use super::leg::{self, Leg};
use super::pick::{self, Failed, Tried};
use super::startup::Opening;
use super::{Phase, Session, Termination};
use crate::config::SpliceAfter;
use crate::health::passive;
use crate::pg::startup::FirstPacket;
use crate::pool::Place;
use crate::splice::watch::BackendPort;
use crate::{config, ring};

/// Ports of ours that are tried before the kernel chooses one.
const PORT_TRIES: usize = 3;

/// How long a backend may think about an SSLRequest or GSSENCRequest before another is tried.
const ANSWER_LIMIT: std::time::Duration = std::time::Duration::from_secs(3);

/// A backend leg and its place, with the first bytes it answered (none under direct TLS, where we do not wait).
pub(crate) struct Reached {
    pub place: PlaceGuard,
    pub leg: Leg,
    pub answer: std::cell::RefCell<Vec<u8>>,
    pub handshake_deadline: Instant,
    /// Where the leg leaves from, if that is a port of ours.
    pub port: Option<BackendPort>,
}

/// Gives the place back and wakes whoever waits for it.
#[derive(Debug)]
pub struct PlaceGuard {
    place: Option<Place>,
    pool: std::sync::Arc<crate::pool::Pool>,
}

impl PlaceGuard {
    pub fn new(place: Place, pool: &std::sync::Arc<crate::pool::Pool>) -> Self {
        Self { place: Some(place), pool: pool.clone() }
    }

    pub fn backend(&self) -> &std::sync::Arc<crate::pool::Backend> {
        self.place.as_ref().expect("held until drop").backend()
    }
}

impl Drop for PlaceGuard {
    fn drop(&mut self) {
        drop(self.place.take());
        self.pool.place_freed();
    }
}

pub(crate) async fn reach(session: &Session, client: &Leg, opening: &Opening) -> Result<Reached, Failed> {
    let mut tried = Tried::default();
    let mut deadline = None;
    let mut connecting = std::time::Duration::ZERO;
    loop {
        let place = pick::place(session, client, &mut tried, &mut deadline).await?;
        let place = PlaceGuard::new(place, &session.pool);
        session.record.update(|details| {
            details.phase = Phase::Connect;
            details.backend = Some(place.backend().clone());
        });
        let started = Instant::now();
        let attempt = attempt(session, client, place, opening, &mut connecting).await;
        match attempt {
            Ok(reached) => {
                session.record.update(|details| {
                    details.phase = Phase::Handshake;
                    details.backend_local = reached.leg.local_addr();
                    details.times.connect = Some(connecting);
                });
                session.worker.proxy.metrics.observe_connect(&session.pool.name, connecting);
                passive::on_connect_success(reached.place.backend());
                reached.place.backend().counters.sessions.fetch_add(1, Relaxed);
                return Ok(reached);
            }
            Err(Attempt::Ended(Termination::HandshakeTimeout)) => {
                let (at, limit) = (session.record.details().backend, session.pool.config.load().timeouts.handshake);
                let name = at.map(|backend| backend.name.clone()).unwrap_or_default();
                let why = format!("backend {name} of pool {} did not answer within {limit:?}", session.pool.name);
                return Err(Failed { reason: Termination::HandshakeTimeout, why });
            }
            Err(Attempt::Ended(reason)) => return Err(reason.into()),
            // It is this host that lacks something; no backend is to blame, and another would fail alike.
            Err(Attempt::Failed(_, error)) if is_local(&error) => {
                tracing::warn!(session = %session.record.id, "no connect: {error}");
                let why = format!("the proxy cannot connect to a backend of pool {}: {error}", session.pool.name);
                return Err(Failed { reason: Termination::Resource, why });
            }
            Err(Attempt::Failed(place, error)) => {
                connecting += started.elapsed();
                let backend = place.backend();
                backend.counters.connect_failures.fetch_add(1, Relaxed);
                session.pool.counters.retries.fetch_add(1, Relaxed);
                passive::on_connect_failure(&session.pool, backend, &error);
                tracing::debug!(session = %session.record.id, backend = %backend.address, "connect: {error}");
                tried.addresses.push(backend.address);
                tried.last = Some(format!("{} ({}): {error}", backend.name, backend.address));
                session.record.update(|details| details.backend = None);
            }
        }
    }
}

enum Attempt {
    /// This backend failed; another may be tried.
    Failed(PlaceGuard, io::Error),
    /// The session itself ended meanwhile.
    Ended(Termination),
}

impl From<Termination> for Attempt {
    fn from(reason: Termination) -> Self {
        Self::Ended(reason)
    }
}

async fn attempt(
    session: &Session,
    client: &Leg,
    place: PlaceGuard,
    opening: &Opening,
    connecting: &mut std::time::Duration,
) -> Result<Reached, Attempt> {
    let config = session.pool.config.load_full();
    let address = place.backend().address;
    let started = Instant::now();
    let bounds =
        Bounds { both: [client, client], deadline: None, late: Termination::ConnectFailed, watch: Some(client) };
    let connected = tokio::select! {
        biased;
        connected = leave(session, client, address, &config) => connected,
        reason = session.struck(&bounds) => return Err(reason.into()),
    };
    let (leg, port) = match connected {
        Ok(connected) => connected,
        Err(error) => return Err(Attempt::Failed(place, error)),
    };
    let handshake_deadline = Instant::now() + config.timeouts.handshake;
    let mut answer = Vec::new();
    let direct = opening.packet == FirstPacket::DirectTls;
    let operation = async {
        leg.write_all(opening.bytes.clone()).await?;
        if direct {
            return Ok(());
        }
        match leg.read_more(&mut answer).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection without an answer")),
            _ => Ok(()),
        }
    };
    // PostgreSQL and PgBouncer answer a request for encryption at once; a login may wait for a server connection.
    let prompt = matches!(opening.packet, FirstPacket::Ssl | FirstPacket::GssEnc);
    let limit = if prompt { config.timeouts.handshake.min(ANSWER_LIMIT) } else { config.timeouts.handshake };
    let bounds = Bounds {
        both: [&leg, &leg],
        deadline: Some(Instant::now() + limit),
        late: Termination::HandshakeTimeout,
        watch: Some(client),
    };
    match session.within(bounds, operation).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(Attempt::Failed(place, error)),
        Err(Termination::HandshakeTimeout) if prompt => {
            let late =
                io::Error::new(io::ErrorKind::TimedOut, format!("it accepted, and no answer came within {limit:?}"));
            return Err(Attempt::Failed(place, late));
        }
        Err(reason) => return Err(reason.into()),
    }
    *connecting += started.elapsed();
    session.record.count(opening.bytes.len() as u64, 0);
    Ok(Reached { place, leg, answer: answer.into(), handshake_deadline, port })
}

/// Connects, from a port of ours if the session may go into the kernel later.
async fn leave(
    session: &Session,
    client: &Leg,
    backend: SocketAddr,
    config: &config::Pool,
) -> io::Result<(Leg, Option<BackendPort>)> {
    let listener = session.listener.config.load();
    if let Some(splice) = session.worker.proxy.splice_for(&listener) {
        let watched = listener.splice_after != SpliceAfter::Auto || !session.listener.counters.brief.are_most();
        // What the client can take in one segment must be the most the backend sends in one.
        let max_segment = client.max_segment();
        for _ in 0..PORT_TRIES {
            let Some(port) = splice.leg_to(backend, watched) else { break };
            let outbound = Outbound { local: Some(port.address()), max_segment };
            match connect(backend, config, outbound).await {
                // The port is ours, but a connection of before is still in TIME_WAIT, or somebody listens on it.
                Err(error) if is_port_taken(&error) => splice.sources.forget(backend.ip()),
                connected => return Ok((connected?, Some(port))),
            }
        }
    }
    Ok((connect(backend, config, Outbound::default()).await?, None))
}

/// Whether a failed connect tells of a shortage on this host: descriptors, memory, source ports.
pub fn is_local(error: &io::Error) -> bool {
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| shortages.contains(&code))
}

/// How a backend leg leaves this host; by default as the kernel likes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outbound {
    /// Where the leg is bound. When that port is taken the connect fails with [`is_port_taken`].
    pub local: Option<SocketAddr>,
    /// TCP_MAXSEG: the largest segment announced and sent, in bytes.
    pub max_segment: Option<u32>,
}

impl Outbound {
    /// SO_REUSEADDR lets one port serve several backends at once; whether the whole 4-tuple is free is then told by
    /// connect(2) with EADDRNOTAVAIL.
    fn apply(&self, socket: SockRef<'_>) -> io::Result<()> {
        if let Some(most) = self.max_segment {
            socket.set_tcp_mss(most)?;
        }
        if let Some(local) = self.local {
            socket.set_reuse_address(true)?;
            socket.bind(&local.into())?;
        }
        Ok(())
    }
}

/// Whether another connection of this host holds [`Outbound::local`] towards this backend: another port may do.
pub fn is_port_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL))
}

/// One TCP connect under the pool's limit, tuned.
pub async fn connect(address: SocketAddr, config: &config::Pool, outbound: Outbound) -> io::Result<Leg> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    leg::tune_new(SockRef::from(&socket), &config.tcp)?;
    outbound.apply(SockRef::from(&socket))?;
    let limit = config.timeouts.connect;
    match ring::timeout(limit, ring::connect(socket.as_fd(), address.into())).await {
        Some(connected) => connected?,
        None => return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"))),
    }
    Ok(Leg::new(socket.into(), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_port_serves_each_backend_once() {
        ring::block_on(async {
            let backends = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
            let [one, two] = [&backends[0], &backends[1]].map(|backend| backend.local_addr().unwrap());
            let config = config::Pool::default();
            // Port 0: one the kernel finds free. Both must be bound with SO_REUSEADDR to share it.
            let any = Outbound { local: Some("127.0.0.1:0".parse().unwrap()), max_segment: None };
            let first = connect(one, &config, any).await.unwrap();
            let local = first.local_addr();
            let outbound = Outbound { local, max_segment: None };
            let second = connect(two, &config, outbound).await.unwrap();
            assert_eq!(second.local_addr(), local);
            let taken = connect(one, &config, outbound).await.err().expect("the 4-tuple is in use");
            assert!(is_port_taken(&taken), "{taken}");
            // A listening socket keeps its port to itself.
            let outbound = Outbound { local: Some(one), max_segment: None };
            let taken = connect(two, &config, outbound).await.err().expect("somebody listens there");
            assert!(is_port_taken(&taken), "{taken}");
        })
        .unwrap();
    }

    #[test]
    fn a_leg_announces_the_segment_size_it_is_given() {
        ring::block_on(async {
            let backend = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let outbound = Outbound { local: None, max_segment: Some(1000) };
            let _leg = connect(backend.local_addr().unwrap(), &config::Pool::default(), outbound).await.unwrap();
            let (accepted, _) = backend.accept().unwrap();
            let mss = SockRef::from(&accepted).tcp_mss().unwrap();
            assert!((900..=1000).contains(&mss), "timestamps may take twelve bytes of 1000: {mss}");
        })
        .unwrap();
    }
}
