//! The state of one session: its two sockets, whether they are joined, its two directions and its limits.

use std::io;

use tokio::sync::oneshot;

use super::flow::{Broken, Flow, Pumped};
use super::socket::Socket;
use super::{Moved, Outcome};
use crate::bpf::Joints;
use crate::session::Termination;
use crate::splice::Why;
use crate::splice::job::Job;
use crate::splice::side::{Second, Side};

/// What is left to do for a session after [`Session::pump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Wait,
    /// See [`Pumped::Unsettled`].
    Soon,
    /// See [`Pumped::More`].
    Again,
    End(Termination),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joined {
    No,
    Both,
    /// The kernel took the first and refused the second, which had ended meanwhile. What came up through the first would
    /// be lost if it were taken out, so the session is copied here to its end.
    First,
}

pub struct Session {
    pub job: Box<Job>,
    ended: oneshot::Sender<Outcome>,
    /// Its number in [`Joints`]; a socket's is [`Self::index`].
    slot: u32,
    sockets: [Socket; 2],
    cookies: [u64; 2],
    joined: Joined,
    /// By the side the bytes come from.
    flows: [Flow; 2],
    /// Something happened at that side's socket: its stream may have ended.
    pub look: [bool; 2],
    /// What epoll waits for at each side.
    pub interest: [u32; 2],
    /// It will be looked at again by itself.
    pub scheduled: bool,
    /// After how many milliseconds: each time twice as many.
    soon: u32,
    /// Who ended its direction first, and when.
    half_closed: Option<(Side, Second)>,
    last_active: Second,
    /// Of each direction: bytes that were added to the counters others read.
    counted: [Moved; 2],
}

/// In milliseconds.
const SOONEST: u32 = 1;
const LATEST: u32 = 128;

impl Session {
    /// An error gives the job back.
    pub fn new(
        mut job: Box<Job>,
        ended: oneshot::Sender<Outcome>,
        slot: u32,
        now: Second,
    ) -> Result<Self, (Box<Job>, oneshot::Sender<Outcome>, Why)> {
        let sockets = [Socket(job.client), Socket(job.backend)];
        let check = |socket: &Socket| {
            socket.check().map_err(|error| refusal(&error))??;
            socket.cookie().map_err(|error| refusal(&error))
        };
        let cookies = match sockets.each_ref().map(check) {
            [Ok(client), Ok(backend)] => [client, backend],
            [Err(why), _] | [_, Err(why)] => return Err((job, ended, why)),
        };
        let held = std::mem::take(&mut job.held);
        let [client, backend] = sockets;
        Ok(Self {
            flows: [Flow::new(client, backend, Vec::new()), Flow::new(backend, client, held)],
            job,
            ended,
            slot,
            sockets,
            cookies,
            joined: Joined::No,
            look: [false; 2],
            interest: [0; 2],
            scheduled: false,
            soon: SOONEST,
            half_closed: None,
            last_active: now,
            counted: [Moved::default(); 2],
        })
    }

    pub fn index(&self, side: Side) -> u32 {
        2 * self.slot + side as u32
    }

    pub fn socket(&self, side: Side) -> Socket {
        self.sockets[side as usize]
    }

    pub fn is_joined(&self) -> bool {
        self.joined == Joined::Both
    }

    pub fn flow(&self, from: Side) -> &Flow {
        &self.flows[from as usize]
    }

    /// Joins the sockets if that is due and may be: an skb that was read in part would be redirected whole, so neither
    /// may have anything unread, and what we hold for the backend could not be given back. Whether anything was done: what
    /// came meanwhile then waits for a receive. An error is final, and nothing but bytes for the client is held then.
    pub fn join(&mut self, joints: &mut Joints) -> io::Result<bool> {
        let ended = self.flows.iter().any(|flow| flow.has_ended() || flow.over);
        if self.joined != Joined::No || ended || !self.flows[Side::Client as usize].is_empty() {
            return Ok(false);
        }
        for socket in &self.sockets {
            if socket.unread()? > 0 {
                return Ok(false);
            }
        }
        let written = [self.sockets[0].written_exactly()?, self.sockets[1].written_exactly()?];
        let [client, backend] = Side::BOTH.map(|side| self.index(side));
        joints.insert(client, self.sockets[0].fd(), self.cookies[0])?;
        self.joined = Joined::First;
        if let Err(error) = joints.insert(backend, self.sockets[1].fd(), self.cookies[1]) {
            tracing::debug!(session = %self.job.record.id, "copied to its end, not joined: {error}");
            return Ok(true);
        }
        self.joined = Joined::Both;
        self.flows[0].join(client, written[1]);
        self.flows[1].join(backend, written[0]);
        Ok(true)
    }

    /// Forwards what there is both ways. `room` is scratch.
    pub fn pump(&mut self, joints: &Joints, room: &mut [u8], now: Second) -> Next {
        let mut next = Next::Wait;
        for side in Side::BOTH {
            let look = std::mem::take(&mut self.look[side as usize]);
            if look && self.sockets[side as usize].has_failed() {
                return Next::End(side.reset());
            }
            match self.flows[side as usize].pump(joints, look, room) {
                Ok(Pumped::Open | Pumped::Waiting) => {}
                Ok(Pumped::Unsettled) if next == Next::Wait => next = Next::Soon,
                Ok(Pumped::Unsettled) => {}
                Ok(Pumped::More) => next = Next::Again,
                Ok(Pumped::Over) => {
                    if let Some(reason) = self.end_of(side, now) {
                        return Next::End(reason);
                    }
                }
                Err(Broken::Source) => return Next::End(side.reset()),
                Err(Broken::Sink) => return Next::End(side.other().reset()),
            }
        }
        next
    }

    /// Whether something came up through a gate that was open.
    pub fn has_come_up(&self, joints: &Joints) -> bool {
        self.flows.iter().any(|flow| flow.is_open() && flow.has_come_up(joints))
    }

    /// Everything from this side was sent on, then it ended. Returns how the session ends if both have.
    fn end_of(&mut self, from: Side, now: Second) -> Option<Termination> {
        if let Some((first, _)) = self.half_closed {
            // The close that follows says it to the sink.
            return self.flows.iter().all(|flow| flow.over).then(|| first.closed());
        }
        self.half_closed = Some((from, now));
        self.sockets[from.other() as usize].end_of_stream();
        None
    }

    /// How long to wait before it is looked at again by itself, in milliseconds.
    pub fn next_look(&mut self) -> u64 {
        let wait = self.soon;
        self.soon = (wait * 2).min(LATEST);
        u64::from(wait)
    }

    pub fn settled(&mut self) {
        self.soon = SOONEST;
    }

    /// Adds what was forwarded since the last time to the counters others read, and notes whether it was anything.
    pub fn publish(&mut self, joints: &Joints, now: Second) -> Moved {
        let moved = self.flows.each_ref().map(|flow| flow.moved(joints));
        let before = std::mem::replace(&mut self.counted, moved);
        let redirected = [0, 1].map(|from: usize| moved[from].redirected - before[from].redirected);
        let copied = [0, 1].map(|from: usize| moved[from].copied - before[from].copied);
        let [bytes_in, bytes_out] = [redirected[0] + copied[0], redirected[1] + copied[1]];
        let moved = Moved { redirected: redirected[0] + redirected[1], copied: copied[0] + copied[1] };
        if moved == Moved::default() {
            return moved;
        }
        self.last_active = now;
        self.job.count(bytes_in, bytes_out);
        moved
    }

    /// Which limit has passed, if any.
    pub fn overdue(&self, now: Second) -> Option<Termination> {
        self.job.overdue(self.half_closed.map(|(_, since)| since), self.last_active, now)
    }

    /// Takes the sockets apart and tells the one who waits. The descriptors are its again.
    pub fn finish(self, joints: &mut Joints, reason: Termination) {
        self.part(joints);
        // Nobody waits only when the process is ending.
        let _ = self.ended.send(Outcome::Ended(reason));
    }

    /// Gives the session back. Nothing was joined, and only bytes for the client are held.
    pub fn refuse(self, error: &io::Error) {
        let why = refusal(error);
        let [_, to_client] = self.flows;
        let _ = self.ended.send(Outcome::Refused { why, held: to_client.into_held() });
    }

    /// After this the slot may be used again.
    fn part(&self, joints: &mut Joints) {
        if self.joined != Joined::No {
            for side in Side::BOTH {
                joints.remove(self.index(side), self.cookies[side as usize]);
            }
            self.sockets.iter().for_each(Socket::pass_the_lock);
        }
    }
}

/// Why the kernel does not join two sockets.
fn refusal(error: &io::Error) -> Why {
    if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
        // It was in ESTABLISHED when we looked.
        return Why::Ended;
    }
    tracing::warn!("a session's sockets cannot be joined: {error}");
    Why::Error
}
