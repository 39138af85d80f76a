//! Step 6: hand the session to its road. The kernel's if the listener wants it and the session qualifies; the relay
//! until then, and for good where it does not.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::connect::Reached;
use super::handshake::{Ready, Stream};
use super::leg::Leg;
use super::{Phase, Session, Termination};
use crate::config::{SpliceAfter, SpliceRoad};
use crate::pg::cancel::Remembered;
use crate::splice::brief::BRIEF;
use crate::splice::handoff::{Attempt, Legs, Live};
use crate::splice::job::Job;
use crate::splice::ownership::HandingOff;
use crate::splice::relay::{Outcome, Turn};
use crate::splice::sockmap::{self, Sockmap};
use crate::splice::{Road, Splice, Why, table};

/// Attempts that a session gets one after the other; it is tried again after [`PAUSE`] each time then.
const TRIES: u32 = 16;
const PAUSE: Duration = Duration::from_secs(10);

/// What a session's task ends with.
pub(crate) enum Life {
    Ended(Termination),
    /// It goes on in the kernel, and in the splice's table.
    Spliced,
}

/// A session's prospect of the kernel's road.
struct Prospect {
    way: Way,
    /// Replies to come before it is due.
    turns: u32,
    not_before: Instant,
    tries: u32,
}

/// What the kernel would forward.
enum Way {
    /// By which program.
    Packets(Arc<Splice>, SpliceRoad),
    /// `None`: this host has no sockmap.
    Sockets(Option<Sockmap>),
}

pub(crate) async fn run(session: &Session, client: &Leg, reached: Reached, ready: Ready) -> Life {
    begin(session, &reached);
    let life = forward(session, client, reached, ready).await;
    if let Life::Ended(_) = life {
        session.listener.counters.brief.ended(session.record.age());
    }
    life
}

async fn forward(session: &Session, client: &Leg, reached: Reached, ready: Ready) -> Life {
    let Ready { mut held, mut stream, key } = ready;
    let mut prospect = Prospect::of(session);
    loop {
        // Bytes behind its ReadyForQuery belong to a message that is not whole: the backend is about to say more.
        let whole = !matches!(&stream, Stream::Plain(framer) if !framer.is_ready());
        if let Some(due) = prospect.as_mut().filter(|prospect| whole && prospect.is_due()) {
            let stays = match &due.way {
                Way::Packets(splice, wanted) => {
                    let under_way = splice.begin_hand_off();
                    match attempt(session, splice, *wanted, client, &reached, &held, under_way.is_some()).await {
                        Attempt::Live(live) => {
                            return spliced(session, client, reached, key, live, under_way).await;
                        }
                        Attempt::Dead(reason) => {
                            client.reset_on_close();
                            reached.leg.reset_on_close();
                            return Life::Ended(reason);
                        }
                        Attempt::Stay(why) => why,
                    }
                }
                Way::Sockets(sockmap) => match join(session, client, &reached, held, sockmap.as_ref()).await {
                    sockmap::Outcome::Ended(reason) => return Life::Ended(reason),
                    sockmap::Outcome::Refused { why, held: given_back } => {
                        held = given_back;
                        why
                    }
                },
            };
            session.worker.proxy.hand_offs.count_stay(stays);
            session.record.update(|details| details.why = Some(stays));
            due.tries += 1;
            if !stays.may_pass() {
                prospect = None;
            } else if due.tries >= TRIES {
                due.not_before = Instant::now() + PAUSE;
            }
        }
        let turn = prospect.as_mut().map(|prospect| prospect.turn(stream, client));
        match relay(session, client, &reached, held, turn).await {
            Outcome::Ended(reason) => return Life::Ended(reason),
            Outcome::Turn { held: reply, framer } => {
                held = reply;
                stream = framer.map_or(Stream::Encrypted, Stream::Plain);
            }
        }
    }
}

/// The bytes of the handshake, which the session's steps have counted for itself only.
fn begin(session: &Session, reached: &Reached) {
    session.record.update(|details| details.phase = Phase::Forward);
    if let Some(took) = session.record.details().times.handshake {
        session.worker.proxy.metrics.observe_handshake(&session.pool.name, took);
    }
    let (bytes_in, bytes_out) = session.record.bytes();
    let backend = reached.place.backend();
    backend.counters.bytes_in.fetch_add(bytes_in, Relaxed);
    backend.counters.bytes_out.fetch_add(bytes_out, Relaxed);
    session.listener.counters.bytes_in.fetch_add(bytes_in, Relaxed);
    session.listener.counters.bytes_out.fetch_add(bytes_out, Relaxed);
}

/// `ours`: whether the kernel's maps are.
async fn attempt(
    session: &Session,
    splice: &Arc<Splice>,
    wanted: SpliceRoad,
    client: &Leg,
    reached: &Reached,
    held: &[u8],
    ours: bool,
) -> Attempt {
    let listener = session.worker.proxy.guard_id(&session.listener.name);
    match ours {
        true => {
            splice.hand_off(legs(client, reached), held, wanted, reached.port.as_ref(), listener, &session.record).await
        }
        false => Attempt::Stay(Why::NotWanted),
    }
}

/// Has the kernel join the two sockets, until the session ends or it turns out that they cannot be.
async fn join(
    session: &Session,
    client: &Leg,
    reached: &Reached,
    held: Vec<u8>,
    sockmap: Option<&Sockmap>,
) -> sockmap::Outcome {
    let Some(sockmap) = sockmap else { return sockmap::Outcome::Refused { why: Why::Unavailable, held } };
    session.record.update(|details| {
        details.road = Some(Road::Sockmap.as_str());
        details.why = None;
    });
    let mut forwarding = sockmap.forward(job(session, client, reached, held));
    let outcome = tokio::select! {
        outcome = forwarding.ended() => outcome,
        reason = session.cut.ordered() => {
            forwarding.cut();
            // Until the engine lets go of both descriptors they must stay open.
            forwarding.ended().await;
            sockmap::Outcome::Ended(reason)
        }
    };
    if let sockmap::Outcome::Ended(reason) = outcome {
        close(client, reached, reason);
    }
    outcome
}

async fn spliced(
    session: &Session,
    client: &Leg,
    reached: Reached,
    cancel_key: Option<Remembered>,
    mut live: Live,
    under_way: Option<HandingOff>,
) -> Life {
    let (splice, road) = (live.splice().clone(), live.road);
    session.record.update(|details| {
        details.road = Some(road.as_str());
        details.why = None;
    });
    session.worker.proxy.hand_offs.count_hand_off(road);
    let Reached { place, leg, port, .. } = reached;
    let (Some(slot), Some(port)) = (live.slot.take(), port) else {
        unreachable!("a session without a port of ours is never handed off, and its slot is taken once")
    };
    let index = slot.index();
    let entry = table::Session {
        record: session.record.clone(),
        listener: Some(session.listener.clone()),
        pool: Some(session.pool.clone()),
        place: Some(place),
        cancel_key,
    };
    splice.table.insert(slot, live.keys[0], port.into_port(), entry, None);
    // Another process may have it now, whose start must not wait for the client.
    drop(under_way);
    let legs = Legs { client: borrow(client), backend: borrow(&leg) };
    if let Err(why) = live.release(legs, &session.record).await {
        tracing::error!(session = %session.record.id, "the hand-off failed: {why}; the session is cut");
        session.worker.proxy.cut_spliced(&splice, index, session.record.id, Termination::HandoffFailed);
    }
    // A cut that was ordered before the session was in the table.
    if let Some(reason) = session.cut.is_ordered() {
        session.worker.proxy.cut_spliced(&splice, index, session.record.id, reason);
    }
    Life::Spliced
}

/// Forwards in user space until the session ends or its turn has come.
async fn relay(session: &Session, client: &Leg, reached: &Reached, held: Vec<u8>, turn: Option<Turn>) -> Outcome {
    session.record.update(|details| details.road = Some(Road::Relay.as_str()));
    let mut forwarding = session.worker.relay.forward(job(session, client, reached, held), turn);
    let outcome = tokio::select! {
        outcome = forwarding.ended() => outcome,
        reason = session.cut.ordered() => {
            forwarding.cut();
            // Until the engine lets go of both descriptors they must stay open.
            forwarding.ended().await;
            Outcome::Ended(reason)
        }
    };
    if let Outcome::Ended(reason) = outcome {
        close(client, reached, reason);
    }
    outcome
}

fn job(session: &Session, client: &Leg, reached: &Reached, held: Vec<u8>) -> Job {
    let pool = session.pool.config.load();
    Job {
        client: client.fd(),
        backend: reached.leg.fd(),
        record: session.record.clone(),
        at_backend: reached.place.backend().clone(),
        at_listener: session.listener.clone(),
        idle: pool.timeouts.idle,
        half_closed: pool.timeouts.half_closed,
        held,
    }
}

/// How both legs will close.
fn close(client: &Leg, reached: &Reached, reason: Termination) {
    if reason.resets() {
        client.reset_on_close();
        reached.leg.reset_on_close();
    }
}

impl Prospect {
    fn of(session: &Session) -> Option<Self> {
        let config = session.listener.config.load();
        let way = match config.splice {
            SpliceRoad::Sockmap => Way::Sockets(session.worker.proxy.sockmap().cloned()),
            wanted => Way::Packets(session.worker.proxy.splice_for(&config)?, wanted),
        };
        let now = Instant::now();
        let brief = &session.listener.counters.brief;
        let most_are_brief = brief.logged_in();
        // The next, whose SYN may come before it is asked again.
        let watches_late = brief.are_most() && config.splice_after == SpliceAfter::Auto;
        if let Way::Packets(splice, _) = &way {
            brief.tell(watches_late, || {
                let listener = session.worker.proxy.guard_id(&session.listener.name);
                listener.inspect(|id| splice.maps().watch_from_syn(*id, !watches_late)).is_some()
            });
        }
        let (turns, not_before) = match config.splice_after {
            SpliceAfter::Auto if most_are_brief => (0, now + BRIEF),
            SpliceAfter::Auto => (0, now),
            SpliceAfter::Turns(turns) => (turns, now),
            SpliceAfter::Time(time) => (0, now + time),
        };
        Some(Self { way, turns, not_before, tries: 0 })
    }

    fn is_due(&self) -> bool {
        self.turns == 0 && Instant::now() >= self.not_before
    }

    /// When the relay shall give the session back; it is due then.
    fn turn(&mut self, stream: Stream, client: &Leg) -> Turn {
        // The reply that is the turn itself is one of them.
        let turns = std::mem::take(&mut self.turns).saturating_sub(1);
        match stream {
            Stream::Plain(framer) => {
                Turn::Reply { framer, turns, not_before: self.not_before, held_max: client.less_than_a_segment() }
            }
            Stream::Encrypted | Stream::Unknown => Turn::Quiet { not_before: self.not_before },
        }
    }
}

fn legs<'a>(client: &'a Leg, reached: &'a Reached) -> Legs<'a> {
    Legs { client: borrow(client), backend: borrow(&reached.leg) }
}

fn borrow(leg: &Leg) -> BorrowedFd<'_> {
    // SAFETY: the leg keeps its descriptor open for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(leg.fd()) }
}

impl Termination {
    /// Whether both legs end with RST: one side was reset, or the session is cut.
    fn resets(self) -> bool {
        !matches!(self, Self::ClientClosed | Self::BackendClosed)
    }
}
