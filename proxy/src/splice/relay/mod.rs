//! The relay: forwarding in user space, on the data-plane thread the session is at and through that thread's ring.
//!
//! It is an engine beside the tasks ([`engine`]) and not a task a session: there a pending read would own its buffer, and
//! 10,000 idle sessions hold 10,000 × 2 of them. Here an idle session holds none ([`buffers`]).
//!
//! Bounds: a direction is either receiving or sending, never both, so what a session holds in user space is at most one
//! chunk a direction: [`buffers::SMALL`] or, while it streams, [`buffers::LARGE`] bytes. A reader that stops therefore
//! stops the other side through TCP's own window, after both kernel socket buffers are full.
//!
//! A session may be given back at its next [`Turn`], for another road to take over ([`pause`]).

mod buffers;
mod engine;
mod flow;
mod pause;
mod turn;

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::oneshot;

use engine::Engine;
pub use turn::Turn;

use crate::pg::frame::Framer;
use crate::ring::Ring;
use crate::session::{SessionId, Termination};
use crate::splice::job::Job;

/// As in access lines and metrics.
pub const ROAD: &str = "relay";

/// What became of a session. The engine does not touch its descriptors any more.
#[derive(Debug)]
pub enum Outcome {
    Ended(Termination),
    /// It is given back: nothing is in flight, and neither side owes a word. `held` came from the backend and was
    /// counted, but not sent to the client; the framer has seen it. Both are empty after [`Turn::Quiet`].
    Turn {
        held: Vec<u8>,
        framer: Option<Framer>,
    },
}

/// The relay engine of a thread.
#[derive(Clone)]
pub struct Relay(Rc<RefCell<Engine>>);

/// A session under way.
pub struct Forwarding {
    id: SessionId,
    relay: Relay,
    ended: oneshot::Receiver<Outcome>,
}

impl Relay {
    /// Makes the engine of this thread's ring.
    pub fn start() -> Self {
        let ring = Ring::current();
        let engine = Rc::new(RefCell::new(Engine::new(ring.clone())));
        ring.serve(&engine);
        Self(engine)
    }

    /// `turn`: give the session back at such a moment; `None`: forward to the end.
    pub fn forward(&self, job: Job, turn: Option<Turn>) -> Forwarding {
        let (sender, ended) = oneshot::channel();
        let id = job.record.id;
        self.0.borrow_mut().begin(Box::new(job), turn, sender);
        Forwarding { id, relay: self.clone(), ended }
    }
}

impl Forwarding {
    /// Why it ended, or its turn. From then on the engine does not touch the descriptors any more. May be called again
    /// after it was dropped half-way.
    pub async fn ended(&mut self) -> Outcome {
        (&mut self.ended).await.expect("the engine answers every job")
    }

    /// Stop forwarding at once. [`Self::ended`] then completes soon; a turn may have come first.
    pub fn cut(&self) {
        self.relay.0.borrow_mut().cut(self.id);
    }
}
