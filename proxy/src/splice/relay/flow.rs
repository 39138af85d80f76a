//! The state of one relayed session: two directions, each receiving, sending or over.

use std::os::fd::RawFd;

use tokio::sync::oneshot;

use super::buffers::{LARGE, SMALL};
use super::turn::Watch;
use super::{Outcome, Turn};
use crate::session::Termination;
use crate::splice::job::Job;
use crate::splice::side::{Second, Side};

/// One session in the engine.
pub struct Session {
    pub job: Box<Job>,
    ended: oneshot::Sender<Outcome>,
    /// By the side the bytes come from.
    pub halves: [Half; 2],
    /// Operations the kernel has not completed. The session is forgotten only at zero.
    pub in_flight: u8,
    /// Set: no new operation is started.
    pub ending: Option<Termination>,
    /// Who ended its direction first, and when.
    pub half_closed: Option<(Side, Second)>,
    pub last_active: Second,
    /// Looks for the moment to give the session back.
    pub watch: Option<Box<Watch>>,
    /// Its receives are being cancelled, to give it back if they turn out to have received nothing.
    pub pausing: Option<Pause>,
}

/// What a session's sides did while its receives were being cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    Silent,
    /// One sent something after all: the session goes on.
    Spoke,
}

/// One direction.
pub struct Half {
    pub state: State,
    /// A buffer of its own: while it streams, or when the ring had none left.
    pub private: Option<Box<[u8]>>,
    /// Chunks in a row that did (positive) or did not (negative) fill their buffer.
    streak: i8,
    /// Received and not yet added to the counters others read.
    uncounted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Receiving,
    Sending {
        chunk: Chunk,
        at: u32,
        end: u32,
        since: Second,
    },
    /// Received, and perhaps given back instead of sent. Only while [`Session::pausing`].
    Held {
        chunk: Chunk,
        end: u32,
    },
    /// Its receive was cancelled and had received nothing. Only while [`Session::pausing`].
    Idle,
    /// The source sent FIN, and it was passed on.
    Over,
}

/// Where the bytes of a send lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    Pooled(u16),
    Private,
}

impl Session {
    pub fn new(mut job: Box<Job>, turn: Option<Turn>, ended: oneshot::Sender<Outcome>, now: Second) -> Self {
        let halves = [Half::new(), Half::holding(std::mem::take(&mut job.held), now)];
        let watch = turn.map(|turn| Box::new(Watch::new(turn)));
        Self {
            job,
            ended,
            halves,
            in_flight: 0,
            ending: None,
            half_closed: None,
            last_active: now,
            watch,
            pausing: None,
        }
    }

    pub fn fd(&self, side: Side) -> RawFd {
        self.job.fd(side)
    }

    /// `from` sent FIN. Returns how the session ends if both have now.
    pub fn end_of(&mut self, from: Side, now: Second) -> Option<Termination> {
        // A road takes whole sessions only.
        self.watch = None;
        self.halves[from as usize].state = State::Over;
        let (first, _) = *self.half_closed.get_or_insert((from, now));
        self.halves.iter().all(|half| half.state == State::Over).then(|| first.closed())
    }

    /// Which limit has passed, if any.
    pub fn overdue(&self, now: Second) -> Option<Termination> {
        self.job.overdue(self.half_closed.map(|(_, since)| since), self.last_active, now)
    }

    /// Whether it is to be given back because nothing moved for a whole tick.
    pub fn stands_still(&self, now: Second) -> bool {
        let waits = |half: &Half| half.state == State::Receiving;
        self.pausing.is_none()
            && now.wrapping_sub(self.last_active) > 1
            && self.halves.iter().all(waits)
            && self.watch.as_ref().is_some_and(|watch| watch.wants_quiet())
    }

    /// Adds what was forwarded since the last time to the counters others read.
    pub fn publish(&mut self) {
        let [bytes_in, bytes_out] = [0, 1].map(|half: usize| std::mem::take(&mut self.halves[half].uncounted));
        if bytes_in == 0 && bytes_out == 0 {
            return;
        }
        self.job.count(bytes_in, bytes_out);
    }

    /// Tells the one who waits. The descriptors are its again.
    pub fn finish(mut self, reason: Termination) {
        self.publish();
        // Nobody waits only when the process is ending.
        let _ = self.ended.send(Outcome::Ended(reason));
    }

    /// The session is its task's again, with what the backend said last.
    pub fn give_back(mut self, held: Vec<u8>) {
        self.publish();
        let framer = self.watch.take().and_then(|watch| watch.into_framer());
        let _ = self.ended.send(Outcome::Turn { held, framer });
    }
}

impl Half {
    fn new() -> Self {
        Self { state: State::Receiving, private: None, streak: 0, uncounted: 0 }
    }

    /// One that begins by sending bytes which were counted already.
    fn holding(held: Vec<u8>, now: Second) -> Self {
        if held.is_empty() {
            return Self::new();
        }
        let state = State::Sending { chunk: Chunk::Private, at: 0, end: held.len() as u32, since: now };
        // The streak lets go of the buffer once it is sent.
        Self { state, private: Some(held.into_boxed_slice()), streak: -1, uncounted: 0 }
    }

    /// A chunk of `length` bytes arrived.
    pub fn received(&mut self, length: usize, chunk: Chunk, now: Second) {
        self.uncounted += length as u64;
        let room = self.private.as_ref().map_or(SMALL, |buffer| buffer.len());
        let filled = if length == room { 1 } else { -1 };
        self.streak = if self.streak.signum() == filled { self.streak.saturating_add(filled) } else { filled };
        self.state = State::Sending { chunk, at: 0, end: length as u32, since: now };
    }

    /// Everything received was sent: choose the buffer of the next receive.
    pub fn sent(&mut self) {
        self.state = State::Receiving;
        let room = self.private.as_ref().map(|buffer| buffer.len());
        match room {
            // Two full chunks in a row: it streams.
            None | Some(SMALL) if self.streak >= 2 => self.private = Some(vec![0; LARGE].into_boxed_slice()),
            // It was not filled: what the source had is drained, and waiting must cost nothing.
            Some(_) if self.streak < 0 => self.private = None,
            _ => {}
        }
    }
}
