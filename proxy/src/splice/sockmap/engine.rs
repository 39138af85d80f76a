//! The sockmap road's event loop: one epoll, driven by one thread, that sees to every session given to it.
//!
//! While a session's gates are open it costs this thread nothing: epoll waits for the end of the streams and for
//! failures only, and the program rings when it closes a gate.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::oneshot;

use super::flow::CHUNK;
use super::session::{Next, Session};
use super::{Inbox, Order, Outcome, StartError};
use crate::bpf::Joints;
use crate::session::{SessionId, Termination};
use crate::splice::Why;
use crate::splice::job::Job;
use crate::splice::side::{Second, Side};

/// How often limits are looked at and counters published. The engine's clock counts these.
const TICK: Duration = Duration::from_secs(1);
const EVENTS: usize = 512;

/// What an event belongs to, besides a socket, which is named by its index.
const BELL: u64 = u64::MAX;
const GATES: u64 = u64::MAX - 1;

struct Engine {
    epoll: OwnedFd,
    joints: Joints,
    sessions: Slab<Session>,
    capacity: usize,
    by_id: HashMap<SessionId, usize>,
    inbox: Arc<Inbox>,
    /// Sessions to look at: in this round, and by themselves at a later time.
    due: Vec<usize>,
    later: BinaryHeap<Reverse<(Instant, usize)>>,
    room: Box<[u8]>,
    now: Second,
}

/// Starts the thread. An error of its set-up comes back here; later ones end the process, for without the engine sessions
/// would be handed over that nobody serves.
pub fn start(sessions: u32, inbox: Arc<Inbox>) -> Result<(), StartError> {
    let mut engine = Engine::new(sessions, inbox)?;
    std::thread::Builder::new().name("sockmap".into()).spawn(move || {
        let _guard = AbortOnPanic;
        if let Err(error) = engine.run() {
            tracing::error!("the sockmap engine's epoll failed, its sessions cannot be served: {error}");
            std::process::abort();
        }
    })?;
    Ok(())
}

/// An engine that unwound would leave its sessions, and all that are given to it, hanging without a word.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Engine {
    fn new(sessions: u32, inbox: Arc<Inbox>) -> Result<Self, StartError> {
        let joints = Joints::load(sessions)?;
        // SAFETY: plain system call; the descriptor it returns is ours alone.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: just made, owned by nobody else.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let engine = Self {
            epoll,
            joints,
            sessions: Slab::new(),
            capacity: sessions as usize,
            by_id: HashMap::new(),
            inbox,
            due: Vec::new(),
            later: BinaryHeap::new(),
            room: vec![0; CHUNK].into_boxed_slice(),
            now: 0,
        };
        engine.watch(libc::EPOLL_CTL_ADD, engine.inbox.bell.as_raw_fd(), libc::EPOLLIN as u32, BELL)?;
        engine.watch(libc::EPOLL_CTL_ADD, engine.joints.bell().as_raw_fd(), libc::EPOLLIN as u32, GATES)?;
        Ok(engine)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let mut tick = Instant::now() + TICK;
        loop {
            let ready = self.wait(&mut events, tick)?;
            for event in &events[..ready] {
                self.happened(event.events, event.u64)?;
            }
            let time = Instant::now();
            while let Some(Reverse((at, session))) = self.later.peek().copied()
                && at <= time
            {
                self.later.pop();
                self.due.push(session);
                if let Some(session) = self.sessions.get_mut(session) {
                    session.scheduled = false;
                }
            }
            let mut due = std::mem::take(&mut self.due);
            due.sort_unstable();
            due.dedup();
            for session in due {
                self.serve(session)?;
            }
            if time >= tick {
                tick = time + TICK;
                self.now = self.now.wrapping_add(1);
                self.look_around();
            }
        }
    }

    /// Until something happens or is due.
    fn wait(&self, events: &mut [libc::epoll_event], tick: Instant) -> io::Result<usize> {
        let until = self.later.peek().map_or(tick, |Reverse((at, _))| tick.min(*at));
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up: to wake too early is to wake twice.
        let timeout = if self.due.is_empty() { left.as_micros().div_ceil(1000) as i32 } else { 0 };
        let (start, length) = (events.as_mut_ptr(), events.len() as i32);
        // SAFETY: the events live through the call and their number is their own.
        let ready = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), start, length, timeout) };
        match usize::try_from(ready) {
            Ok(ready) => Ok(ready),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            },
        }
    }

    fn happened(&mut self, what: u32, key: u64) -> io::Result<()> {
        match key {
            BELL => {
                // Full or empty, it has rung.
                let _ = (&self.inbox.bell).read(&mut [0; 8]);
                let orders = std::mem::take(&mut *self.inbox.orders.lock());
                for order in orders {
                    match order {
                        Order::Forward(job, ended) => self.begin(job, ended)?,
                        // The one who cuts knows why.
                        Order::Cut(id) => {
                            if let Some(&session) = self.by_id.get(&id) {
                                self.end(session, Termination::Killed);
                            }
                        }
                    }
                }
            }
            GATES => {
                while let Some(index) = self.joints.next_closed() {
                    self.due.push(index as usize / 2);
                }
            }
            index => {
                // It may belong to a session that ended in this round, and name another: a look costs little.
                let (session, side) = (index as usize / 2, index as usize % 2);
                if let Some(found) = self.sessions.get_mut(session) {
                    found.look[side] |= what & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
                    self.due.push(session);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, mut job: Box<Job>, ended: oneshot::Sender<Outcome>) -> io::Result<()> {
        if self.sessions.len() >= self.capacity {
            let (why, held) = (Why::Full, std::mem::take(&mut job.held));
            let _ = ended.send(Outcome::Refused { why, held });
            return Ok(());
        }
        let id = job.record.id;
        let entry = self.sessions.vacant_entry();
        let key = entry.key();
        match Session::new(job, ended, key as u32, self.now) {
            Ok(session) => {
                entry.insert(session);
            }
            Err((mut job, ended, why)) => {
                let held = std::mem::take(&mut job.held);
                let _ = ended.send(Outcome::Refused { why, held });
                return Ok(());
            }
        }
        self.by_id.insert(id, key);
        for side in Side::BOTH {
            let session = &mut self.sessions[key];
            session.interest[side as usize] = interest(session, side);
            let (fd, index) = (session.socket(side).0, session.index(side));
            let wanted = session.interest[side as usize];
            self.watch(libc::EPOLL_CTL_ADD, fd, wanted, u64::from(index))?;
        }
        self.serve(key)
    }

    /// Does for a session all that can be done now.
    fn serve(&mut self, key: usize) -> io::Result<()> {
        let Some(session) = self.sessions.get_mut(key) else { return Ok(()) };
        let mut next = session.pump(&self.joints, &mut self.room, self.now);
        if !matches!(next, Next::End(_)) {
            match session.join(&mut self.joints) {
                Ok(false) => {}
                Ok(true) => {
                    self.inbox.joined.fetch_add(u64::from(session.is_joined()), Relaxed);
                    next = session.pump(&self.joints, &mut self.room, self.now);
                }
                Err(error) => {
                    self.forget(key).refuse(&error);
                    return Ok(());
                }
            }
        }
        match next {
            Next::End(reason) => {
                self.end(key, reason);
                return Ok(());
            }
            Next::Again => self.due.push(key),
            Next::Soon if session.scheduled => {}
            Next::Soon => {
                session.scheduled = true;
                self.later.push(Reverse((Instant::now() + Duration::from_millis(session.next_look()), key)));
            }
            Next::Wait => session.settled(),
        }
        self.adjust(key)
    }

    /// Tells epoll what the session waits for now.
    fn adjust(&mut self, key: usize) -> io::Result<()> {
        for side in Side::BOTH {
            let session = &mut self.sessions[key];
            let wanted = interest(session, side);
            if session.interest[side as usize] != wanted {
                session.interest[side as usize] = wanted;
                let (fd, index) = (session.socket(side).0, session.index(side));
                self.watch(libc::EPOLL_CTL_MOD, fd, wanted, u64::from(index))?;
            }
        }
        Ok(())
    }

    fn end(&mut self, key: usize, reason: Termination) {
        let session = self.forget(key);
        session.finish(&mut self.joints, reason);
    }

    fn forget(&mut self, key: usize) -> Session {
        let mut session = self.sessions.remove(key);
        self.inbox.count(session.publish(&self.joints, self.now));
        self.by_id.remove(&session.job.record.id);
        for side in Side::BOTH {
            // It goes on living, in other hands.
            let _ = self.watch(libc::EPOLL_CTL_DEL, session.socket(side).0, 0, 0);
        }
        session
    }

    /// Once a tick: publish counters, end what is overdue, and miss no gate whose closing could not be told.
    fn look_around(&mut self) {
        let mut ends = Vec::new();
        for (key, session) in &mut self.sessions {
            self.inbox.count(session.publish(&self.joints, self.now));
            if let Some(reason) = session.overdue(self.now) {
                ends.push((key, reason));
            } else if session.has_come_up(&self.joints) {
                self.due.push(key);
            }
        }
        ends.into_iter().for_each(|(key, reason)| self.end(key, reason));
    }

    fn watch(&self, operation: i32, fd: RawFd, events: u32, key: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: key };
        // SAFETY: the event lives through the call.
        if unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &raw mut event) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// What epoll is to wait for at one side, edge-triggered: data and room only where we copy. With the gate open both would
/// wake this thread for every message.
fn interest(session: &Session, side: Side) -> u32 {
    let (from, to) = (session.flow(side), session.flow(side.other()));
    let copies = |flow: &super::flow::Flow| !flow.over && !flow.is_open();
    let mut events = libc::EPOLLET;
    if !from.has_ended() {
        events |= libc::EPOLLRDHUP;
    }
    if copies(from) {
        events |= libc::EPOLLIN;
    }
    if copies(to) {
        events |= libc::EPOLLOUT;
    }
    events as u32
}
