//! Giving a session back: cancel its pending receives, and see whether they had received something after all.
//!
//! From the first cancel on no operation is started for the session, until every receive and every cancel has
//! completed, in whatever order they do. Only then is it looked at what they brought: nothing, and the session is given
//! back; or bytes, an end or a full buffer ring, and it goes on from there as if nothing had happened. That the cancels
//! are waited for keeps them from hitting a later receive of the same side.

use io_uring::opcode;

use super::engine::{Engine, Tag};
use super::flow::{Chunk, Half, Pause, Session, State};
use super::turn::Verdict;
use crate::splice::side::Side;

impl Engine {
    /// Shows a chunk that `side` sent to the session's watch. Whether it is to be held.
    pub(super) fn is_turn(&mut self, index: usize, side: Side) -> bool {
        let session = &mut self.sessions[index];
        let Some(watch) = &mut session.watch else { return false };
        let half = &session.halves[side as usize];
        let State::Sending { chunk, end, .. } = half.state else { return false };
        let start = super::engine::start_of(chunk, half, self.buffers.as_ref());
        // SAFETY: the kernel wrote `end` bytes from `start` on, and nothing writes there before the chunk is let go.
        let bytes = unsafe { std::slice::from_raw_parts(start, end as usize) };
        let verdict = match side {
            Side::Client => watch.client_sent(bytes),
            Side::Backend => watch.backend_sent(bytes),
        };
        if verdict == Verdict::Lost {
            session.watch = None;
        }
        // Receiving means that nothing has come since: a chunk under way would be Sending.
        verdict == Verdict::Hold && session.halves[side.other() as usize].state == State::Receiving
    }

    /// Holds what the backend sent, and cancels the client's receive.
    pub(super) fn hold(&mut self, index: usize) {
        let half = &mut self.sessions[index].halves[Side::Backend as usize];
        if let State::Sending { chunk, end, .. } = half.state {
            half.state = State::Held { chunk, end };
        }
        self.pause(index)
    }

    /// Cancels the receives in flight.
    pub(super) fn pause(&mut self, index: usize) {
        self.sessions[index].pausing = Some(Pause::Silent);
        for side in Side::BOTH {
            let session = &mut self.sessions[index];
            if session.halves[side as usize].state == State::Receiving {
                session.in_flight += 1;
                let cancel = opcode::AsyncCancel::new(Tag::Receive(index, side).pack()).build();
                self.push(cancel.user_data(Tag::Pause(index).pack()));
            }
        }
    }

    /// A cancel of [`Self::pause`] completed. Its own result says nothing that the receive's does not.
    pub(super) fn paused(&mut self, index: usize) {
        self.sessions[index].in_flight -= 1;
        self.settle(index)
    }

    /// A receive that was being cancelled completed.
    pub(super) fn received_in_pause(&mut self, index: usize, side: Side, outcome: Received) {
        let session = &mut self.sessions[index];
        if outcome != Received::Nothing {
            session.pausing = Some(Pause::Spoke);
        }
        let half = &mut session.halves[side as usize];
        if half.state == State::Receiving {
            half.state = State::Idle;
        }
        self.settle(index)
    }

    /// Once nothing is in flight: gives the session back, or goes on.
    fn settle(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        if session.ending.is_some() {
            return self.reap(index);
        }
        if session.in_flight > 0 {
            return;
        }
        if session.pausing.take() == Some(Pause::Silent) {
            self.give_back(index);
            return;
        }
        for side in Side::BOTH {
            let half = &mut self.sessions[index].halves[side as usize];
            match half.state {
                State::Idle => {
                    half.state = State::Receiving;
                    self.receive(index, side);
                }
                State::Held { chunk, end } => {
                    half.state = State::Sending { chunk, at: 0, end, since: self.now };
                    self.send(index, side);
                }
                State::Sending { .. } => self.send(index, side),
                State::Over => {}
                State::Receiving => unreachable!("nothing is in flight"),
            }
        }
    }

    fn give_back(&mut self, index: usize) {
        let session = self.forget(index);
        let half = &session.halves[Side::Backend as usize];
        let held = match half.state {
            State::Held { chunk, end } => {
                let start = super::engine::start_of(chunk, half, self.buffers.as_ref());
                // SAFETY: the kernel wrote `end` bytes from `start` on, and the chunk was not let go yet.
                unsafe { std::slice::from_raw_parts(start, end as usize) }.to_vec()
            }
            _ => Vec::new(),
        };
        self.let_go(&session);
        session.give_back(held);
    }

    /// The ring gets back what the session had received and not begun to send.
    pub(super) fn let_go(&mut self, session: &Session) {
        for half in &session.halves {
            if let (Some(id), Some(buffers)) = (pooled(half), &mut self.buffers) {
                buffers.give_back(id);
            }
        }
    }
}

/// What a receive brought that was being cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Nothing,
    /// Bytes or an end, and the half's state has them; or bytes wait for which the ring had no buffer.
    Something,
}

fn pooled(half: &Half) -> Option<u16> {
    match half.state {
        State::Sending { chunk: Chunk::Pooled(id), .. } | State::Held { chunk: Chunk::Pooled(id), .. } => Some(id),
        _ => None,
    }
}
