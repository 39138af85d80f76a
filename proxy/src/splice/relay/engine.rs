//! The relay's engine: forwards every session given to it, through the ring of its thread.
//!
//! A direction's life is receive → send → receive …; one operation of it is in flight at a time. The ring submits all
//! that the last batch of completions asked for and waits in the same system call.

use std::collections::HashMap;

use io_uring::{cqueue, opcode, squeue, types};
use slab::Slab;
use tokio::sync::oneshot;

use super::buffers::{self, Buffers, GROUP, SMALL};
use super::flow::{Chunk, Half, Session, State};
use super::pause::Received;
use super::{Outcome, Turn};
use crate::ring::{self, ENGINE, Ring};
use crate::session::{SessionId, Termination};
use crate::splice::job::Job;
use crate::splice::side::{Second, Side};

/// How often limits are looked at and counters published. The engine's clock counts these.
const TICK: types::Timespec = types::Timespec::new().sec(1);

pub(super) struct Engine {
    ring: Ring,
    /// `None` before Linux 5.19: every direction then has a buffer of its own.
    pub(super) buffers: Option<Buffers>,
    pub(super) sessions: Slab<Session>,
    by_id: HashMap<SessionId, usize>,
    pub(super) now: Second,
}

/// What a completion belongs to, packed into its `user_data`: the low 3 bits say what, the rest which session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    Tick,
    Cancel,
    /// A cancel that its session waits for.
    Pause(usize),
    Receive(usize, Side),
    Send(usize, Side),
}

impl Tag {
    pub(super) fn pack(self) -> u64 {
        let (what, session) = match self {
            Self::Tick => (1, 0),
            Self::Cancel => (2, 0),
            Self::Pause(session) => (3, session),
            Self::Receive(session, side) => (4 | side as u64, session),
            Self::Send(session, side) => (6 | side as u64, session),
        };
        ENGINE | (session as u64) << 3 | what
    }

    fn unpack(data: u64) -> Self {
        let session = ((data & !ENGINE) >> 3) as usize;
        let side = if data & 1 == 0 { Side::Client } else { Side::Backend };
        match data & 7 {
            1 => Self::Tick,
            3 => Self::Pause(session),
            4 | 5 => Self::Receive(session, side),
            6 | 7 => Self::Send(session, side),
            _ => Self::Cancel,
        }
    }
}

impl ring::Engine for Engine {
    fn completed(&mut self, entry: &cqueue::Entry) {
        match Tag::unpack(entry.user_data()) {
            Tag::Tick => {
                self.now = self.now.wrapping_add(1);
                self.start_tick();
                self.look_around();
            }
            Tag::Cancel => {}
            Tag::Pause(index) => self.paused(index),
            Tag::Receive(index, side) => self.received(index, side, entry),
            Tag::Send(index, side) => self.sent(index, side, entry.result()),
        }
    }
}

impl Engine {
    pub(super) fn new(ring: Ring) -> Self {
        let buffers = match ring.with_uring(|uring| Buffers::register(&uring.submitter())) {
            Ok(buffers) => Some(buffers),
            Err(error) => {
                tracing::warn!("no provided buffers ({error}): each session holds {} KiB", 2 * SMALL / 1024);
                None
            }
        };
        let mut engine = Self { ring, buffers, sessions: Slab::new(), by_id: HashMap::new(), now: 0 };
        engine.start_tick();
        engine
    }

    pub(super) fn begin(&mut self, job: Box<Job>, turn: Option<Turn>, ended: oneshot::Sender<Outcome>) {
        let id = job.record.id;
        let index = self.sessions.insert(Session::new(job, turn, ended, self.now));
        self.by_id.insert(id, index);
        Side::BOTH.into_iter().for_each(|side| match self.sessions[index].halves[side as usize].state {
            State::Sending { .. } => self.send(index, side),
            _ => self.receive(index, side),
        })
    }

    /// The one who cuts knows why.
    pub(super) fn cut(&mut self, id: SessionId) {
        if let Some(&index) = self.by_id.get(&id) {
            self.end(index, Termination::Killed);
        }
    }

    pub(super) fn receive(&mut self, index: usize, side: Side) {
        let session = &mut self.sessions[index];
        let fd = types::Fd(session.fd(side));
        let half = &mut session.halves[side as usize];
        if self.buffers.is_none() && half.private.is_none() {
            half.private = Some(vec![0; SMALL].into_boxed_slice());
        }
        let operation = match &mut half.private {
            Some(buffer) => opcode::Recv::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).build(),
            None => opcode::Recv::new(fd, std::ptr::null_mut(), SMALL as u32)
                .buf_group(GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
        };
        session.in_flight += 1;
        self.push(operation.user_data(Tag::Receive(index, side).pack()));
    }

    fn received(&mut self, index: usize, side: Side, entry: &cqueue::Entry) {
        let now = self.now;
        let pooled = cqueue::buffer_select(entry.flags());
        let session = &mut self.sessions[index];
        session.in_flight -= 1;
        let result = entry.result();
        if session.ending.is_some() || result <= 0 {
            if let (Some(id), Some(buffers)) = (pooled, &mut self.buffers) {
                buffers.give_back(id);
            }
            if session.ending.is_some() {
                return self.reap(index);
            }
        }
        let pausing = session.pausing.is_some();
        match result {
            0 => {
                session.last_active = now;
                if let Some(reason) = session.end_of(side, now) {
                    // The close that follows says it to the sink.
                    return self.end(index, reason);
                }
                let sink = session.fd(side.other());
                // SAFETY: plain system call on a descriptor that stays open until the job has ended.
                // ENOTCONN: the sink was reset, which its own direction will report.
                unsafe { libc::shutdown(sink, libc::SHUT_WR) };
                if pausing {
                    self.received_in_pause(index, side, Received::Something);
                }
            }
            length if length > 0 => {
                session.last_active = now;
                let half = &mut session.halves[side as usize];
                half.received(length as usize, pooled.map_or(Chunk::Private, Chunk::Pooled), now);
                let turn = session.watch.is_some() && self.is_turn(index, side);
                match (pausing, turn) {
                    (true, _) => self.received_in_pause(index, side, Received::Something),
                    (false, true) => self.hold(index),
                    (false, false) => self.send(index, side),
                }
            }
            error => match -error {
                libc::ECANCELED | libc::EINTR | libc::EAGAIN if pausing => {
                    self.received_in_pause(index, side, Received::Nothing)
                }
                libc::EINTR | libc::EAGAIN => self.receive(index, side),
                libc::ENOBUFS => {
                    session.halves[side as usize].private = Some(vec![0; SMALL].into_boxed_slice());
                    if pausing {
                        return self.received_in_pause(index, side, Received::Something);
                    }
                    self.receive(index, side)
                }
                _ => self.end(index, side.reset()),
            },
        }
    }

    pub(super) fn send(&mut self, index: usize, side: Side) {
        let session = &mut self.sessions[index];
        let sink = types::Fd(session.fd(side.other()));
        let half = &session.halves[side as usize];
        let State::Sending { chunk, at, end, .. } = half.state else {
            unreachable!("a send follows a receive or a partial send")
        };
        // SAFETY: `at` is below `end`, which is how many bytes lie in the buffer that starts here.
        let start = unsafe { start_of(chunk, half, self.buffers.as_ref()).add(at as usize) };
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let operation = opcode::Send::new(sink, start, end - at).flags(flags).build();
        session.in_flight += 1;
        self.push(operation.user_data(Tag::Send(index, side).pack()));
    }

    fn sent(&mut self, index: usize, side: Side, result: i32) {
        let now = self.now;
        let session = &mut self.sessions[index];
        session.in_flight -= 1;
        let State::Sending { chunk, at, end, .. } = session.halves[side as usize].state else {
            unreachable!("a send completes in the state it was made in")
        };
        let done = u32::try_from(result).ok().map(|sent| at + sent);
        if session.ending.is_none() && done.is_some_and(|done| done < end)
            || matches!(-result, libc::EINTR | libc::EAGAIN) && session.ending.is_none()
        {
            session.last_active = now;
            session.halves[side as usize].state = State::Sending { chunk, at: done.unwrap_or(at), end, since: now };
            return self.send(index, side);
        }
        if let (Chunk::Pooled(id), Some(buffers)) = (chunk, &mut self.buffers) {
            buffers.give_back(id);
        }
        let half = &mut session.halves[side as usize];
        half.sent();
        if session.ending.is_some() {
            return self.reap(index);
        }
        match done {
            Some(_) => {
                session.last_active = now;
                self.receive(index, side)
            }
            None => self.end(index, side.other().reset()),
        }
    }

    /// Starts no new operation, cancels those in flight, and finishes the session when they have completed.
    fn end(&mut self, index: usize, reason: Termination) {
        let session = &mut self.sessions[index];
        if session.ending.is_none() {
            session.ending = Some(reason);
            let pending: Vec<Tag> = Side::BOTH
                .into_iter()
                .filter_map(|side| match session.halves[side as usize].state {
                    State::Receiving => Some(Tag::Receive(index, side)),
                    State::Sending { .. } => Some(Tag::Send(index, side)),
                    State::Held { .. } | State::Idle | State::Over => None,
                })
                .collect();
            if session.in_flight > 0 {
                for tag in pending {
                    // ENOENT for one that has completed meanwhile; its completion is already on its way.
                    self.push(opcode::AsyncCancel::new(tag.pack()).build().user_data(Tag::Cancel.pack()));
                }
            }
        }
        self.reap(index)
    }

    pub(super) fn reap(&mut self, index: usize) {
        let session = &self.sessions[index];
        if let (0, Some(reason)) = (session.in_flight, session.ending) {
            let session = self.forget(index);
            self.let_go(&session);
            session.finish(reason);
        }
    }

    /// Only with nothing in flight.
    pub(super) fn forget(&mut self, index: usize) -> Session {
        let session = self.sessions.remove(index);
        self.by_id.remove(&session.job.record.id);
        session
    }

    /// Once a tick: publish counters, end what is overdue, give back what stands still and is to be, and notice a reset
    /// on a side nobody reads from.
    fn look_around(&mut self) {
        let now = self.now;
        let (mut ends, mut quiet) = (Vec::new(), Vec::new());
        for (index, session) in &mut self.sessions {
            session.publish();
            if session.ending.is_some() {
                continue;
            }
            let unread = Side::BOTH.into_iter().find(|&side| match session.halves[side as usize].state {
                State::Receiving | State::Held { .. } | State::Idle => false,
                State::Sending { since, .. } => since != now && is_reset(session.fd(side)),
                State::Over => is_reset(session.fd(side)),
            });
            if let Some(reason) = unread.map(Side::reset).or_else(|| session.overdue(now)) {
                ends.push((index, reason));
            } else if session.stands_still(now) {
                quiet.push(index);
            }
        }
        quiet.into_iter().for_each(|index| self.pause(index));
        ends.into_iter().for_each(|(index, reason)| self.end(index, reason));
    }

    fn start_tick(&mut self) {
        self.push(opcode::Timeout::new(&raw const TICK_AT).build().user_data(Tag::Tick.pack()));
    }

    pub(super) fn push(&mut self, operation: squeue::Entry) {
        // SAFETY: every buffer an operation points to lives in the session or in `buffers` until its completion was
        // taken: a session is removed only with nothing in flight, its descriptors likewise, and our drop forgets
        // neither while there are sessions.
        unsafe { self.ring.push(operation) };
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(buffers) = self.buffers.take() {
            let unregistered = self.ring.with_uring(|uring| buffers.unregister(&uring.submitter()));
            if !self.sessions.is_empty() || unregistered.is_err() {
                // The kernel may still write there.
                std::mem::forget(buffers);
            }
        }
        self.sessions.drain().for_each(std::mem::forget);
    }
}

/// Where the bytes of a chunk lie.
pub(super) fn start_of(chunk: Chunk, half: &Half, buffers: Option<&Buffers>) -> *const u8 {
    match (chunk, &half.private, buffers) {
        (Chunk::Pooled(id), _, Some(buffers)) => buffers.start_of(id),
        (Chunk::Private, Some(buffer), _) => buffer.as_ptr(),
        _ => unreachable!("a chunk lies where it was received"),
    }
}

/// The kernel reads it when the timeout is submitted.
static TICK_AT: types::Timespec = TICK;

/// Whether the peer reset the connection. A FIN that waits behind data is not that.
fn is_reset(fd: std::os::fd::RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: 0, revents: 0 };
    // SAFETY: `poll` is one valid pollfd for the length of the call, which does not wait.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & libc::POLLERR != 0
}

const _: () = assert!(buffers::LARGE <= u32::MAX as usize);

#[cfg(test)]
mod tests;
