//! The relay's event loop: one io_uring, driven by one thread, that forwards every session given to it.
//!
//! A direction's life is receive → send → receive …; one operation of it is in flight at a time. The loop submits all
//! that the last batch of completions asked for and waits in the same system call.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;
use tokio::sync::oneshot;

use super::buffers::{self, Buffers, GROUP, SMALL};
use super::flow::{Chunk, Half, Second, Session, Side, State};
use super::pause::Received;
use super::{Inbox, Job, Order, Outcome};
use crate::session::{SessionId, Termination};

const SUBMISSIONS: u32 = 1024;
const COMPLETIONS: u32 = 8192;

/// How often limits are looked at and counters published. The engine's clock counts these.
const TICK: types::Timespec = types::Timespec::new().sec(1);

/// Fields are dropped in order: the io_uring before the buffers it points into.
pub(super) struct Engine {
    ring: IoUring,
    /// `None` before Linux 5.19: every direction then has a buffer of its own.
    pub(super) buffers: Option<Buffers>,
    pub(super) sessions: Slab<Session>,
    by_id: HashMap<SessionId, usize>,
    inbox: Arc<Inbox>,
    /// Where the read of the inbox's bell goes.
    rung: Box<u64>,
    pub(super) now: Second,
}

/// What a completion belongs to, packed into its `user_data`: the low 3 bits say what, the rest which session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    Bell,
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
            Self::Bell => (0, 0),
            Self::Tick => (1, 0),
            Self::Cancel => (2, 0),
            Self::Pause(session) => (3, session),
            Self::Receive(session, side) => (4 | side as u64, session),
            Self::Send(session, side) => (6 | side as u64, session),
        };
        (session as u64) << 3 | what
    }

    fn unpack(data: u64) -> Self {
        let session = (data >> 3) as usize;
        let side = if data & 1 == 0 { Side::Client } else { Side::Backend };
        match data & 7 {
            0 => Self::Bell,
            1 => Self::Tick,
            3 => Self::Pause(session),
            4 | 5 => Self::Receive(session, side),
            6 | 7 => Self::Send(session, side),
            _ => Self::Cancel,
        }
    }
}

/// Starts the thread. An error of its set-up comes back here; later ones end the process, for without its relay a
/// thread would accept sessions and never serve them.
pub fn start(thread: usize, inbox: Arc<Inbox>) -> io::Result<()> {
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::Builder::new().name(format!("relay-{thread}")).spawn(move || {
        let mut engine = match Engine::new(inbox) {
            Ok(engine) => engine,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let _ = ready.send(Ok(()));
        let _guard = AbortOnPanic;
        if let Err(error) = engine.run() {
            tracing::error!("the relay's io_uring failed, nothing can be forwarded: {error}");
            std::process::abort();
        }
    })?;
    started.recv().map_err(|_| io::Error::other("the relay ended at its start"))?
}

/// A relay that unwound would leave its sessions, and all that are given to it, hanging without a word.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Engine {
    fn new(inbox: Arc<Inbox>) -> io::Result<Self> {
        let ring = build_ring()?;
        let buffers = match Buffers::register(&ring.submitter()) {
            Ok(buffers) => Some(buffers),
            Err(error) => {
                tracing::warn!("no provided buffers ({error}): each session holds {} KiB", 2 * SMALL / 1024);
                None
            }
        };
        let (sessions, by_id) = (Slab::new(), HashMap::new());
        let mut engine = Self { ring, buffers, sessions, by_id, inbox, rung: Box::new(0), now: 0 };
        engine.listen_for_bell()?;
        engine.start_tick()?;
        Ok(engine)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut batch: Vec<cqueue::Entry> = Vec::with_capacity(COMPLETIONS as usize);
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                // EBUSY: completions must be taken first. EAGAIN: the kernel was out of memory for a request.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => return Err(error),
            }
            batch.extend(self.ring.completion());
            for entry in batch.drain(..) {
                self.completed(&entry)?;
            }
        }
    }

    fn completed(&mut self, entry: &cqueue::Entry) -> io::Result<()> {
        match Tag::unpack(entry.user_data()) {
            Tag::Bell => {
                self.listen_for_bell()?;
                let orders = std::mem::take(&mut *self.inbox.orders.lock());
                orders.into_iter().try_for_each(|order| match order {
                    Order::Forward(job, ended) => self.begin(job, ended),
                    Order::Cut(id) => match self.by_id.get(&id) {
                        // The one who cuts knows why.
                        Some(&index) => self.end(index, Termination::Killed),
                        None => Ok(()),
                    },
                })
            }
            Tag::Tick => {
                self.now = self.now.wrapping_add(1);
                self.start_tick()?;
                self.look_around()
            }
            Tag::Cancel => Ok(()),
            Tag::Pause(index) => self.paused(index),
            Tag::Receive(index, side) => self.received(index, side, entry),
            Tag::Send(index, side) => self.sent(index, side, entry.result()),
        }
    }

    fn begin(&mut self, job: Box<Job>, ended: oneshot::Sender<Outcome>) -> io::Result<()> {
        let id = job.record.id;
        let index = self.sessions.insert(Session::new(job, ended, self.now));
        self.by_id.insert(id, index);
        Side::BOTH.into_iter().try_for_each(|side| match self.sessions[index].halves[side as usize].state {
            State::Sending { .. } => self.send(index, side),
            _ => self.receive(index, side),
        })
    }

    pub(super) fn receive(&mut self, index: usize, side: Side) -> io::Result<()> {
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
        self.push(operation.user_data(Tag::Receive(index, side).pack()))
    }

    fn received(&mut self, index: usize, side: Side, entry: &cqueue::Entry) -> io::Result<()> {
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
                if pausing { self.received_in_pause(index, side, Received::Something) } else { Ok(()) }
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

    pub(super) fn send(&mut self, index: usize, side: Side) -> io::Result<()> {
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
        self.push(operation.user_data(Tag::Send(index, side).pack()))
    }

    fn sent(&mut self, index: usize, side: Side, result: i32) -> io::Result<()> {
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
    fn end(&mut self, index: usize, reason: Termination) -> io::Result<()> {
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
                    self.push(opcode::AsyncCancel::new(tag.pack()).build().user_data(Tag::Cancel.pack()))?;
                }
            }
        }
        self.reap(index)
    }

    pub(super) fn reap(&mut self, index: usize) -> io::Result<()> {
        let session = &self.sessions[index];
        if let (0, Some(reason)) = (session.in_flight, session.ending) {
            let session = self.forget(index);
            self.let_go(&session);
            session.finish(reason);
        }
        Ok(())
    }

    /// Only with nothing in flight.
    pub(super) fn forget(&mut self, index: usize) -> Session {
        let session = self.sessions.remove(index);
        self.by_id.remove(&session.job.record.id);
        session
    }

    /// Once a tick: publish counters, end what is overdue, give back what stands still and is to be, and notice a reset
    /// on a side nobody reads from.
    fn look_around(&mut self) -> io::Result<()> {
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
        quiet.into_iter().try_for_each(|index| self.pause(index))?;
        ends.into_iter().try_for_each(|(index, reason)| self.end(index, reason))
    }

    fn listen_for_bell(&mut self) -> io::Result<()> {
        let bell = types::Fd(self.inbox.bell.as_raw_fd());
        let into = (&raw mut *self.rung).cast::<u8>();
        self.push(opcode::Read::new(bell, into, 8).build().user_data(Tag::Bell.pack()))
    }

    fn start_tick(&mut self) -> io::Result<()> {
        self.push(opcode::Timeout::new(&raw const TICK_AT).build().user_data(Tag::Tick.pack()))
    }

    pub(super) fn push(&mut self, operation: squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: every buffer an operation points to lives in the session, in `buffers` or in `rung` until its
            // completion was taken: a session is removed only with nothing in flight, its descriptors likewise.
            if unsafe { self.ring.submission().push(&operation) }.is_ok() {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(error) => return Err(error),
            }
        }
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

/// With everything the kernel has: deferred task work (6.1) spares interrupts of a thread that is busy anyway.
fn build_ring() -> io::Result<IoUring> {
    let newest = IoUring::builder()
        .setup_cqsize(COMPLETIONS)
        .setup_clamp()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(SUBMISSIONS);
    match newest {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_cqsize(COMPLETIONS).setup_clamp().build(SUBMISSIONS)
        }
        built => built,
    }
}

const _: () = assert!(buffers::LARGE <= u32::MAX as usize);

#[cfg(test)]
mod tests;
