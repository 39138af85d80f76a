//! Time limits and cuts around the steps of a session.
//!
//! A bound that is reached drops the operation, which cancels it, and shuts the sockets down.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::leg::Leg;
use super::{Session, Termination};
use crate::ring;

/// How often a client that should be silent is looked at for having gone away.
const GLANCE: Duration = Duration::from_millis(500);

/// An order to end a session, from its worker to its task, which alone waits for it.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    reason: Cell<Option<Termination>>,
    waiting: RefCell<Option<Waker>>,
}

impl Cut {
    /// The first order counts.
    pub(crate) fn order(&self, reason: Termination) {
        if self.reason.get().is_none() {
            self.reason.set(Some(reason));
        }
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// The order, if there is one by now.
    pub(crate) fn is_ordered(&self) -> Option<Termination> {
        self.reason.get()
    }

    pub(crate) async fn ordered(&self) -> Termination {
        std::future::poll_fn(|context| match self.reason.get() {
            Some(reason) => Poll::Ready(reason),
            None => {
                self.waiting.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

/// What ends an operation early.
pub(crate) struct Bounds<'a> {
    /// Shut down both ways when a bound is reached; one leg may stand twice.
    pub both: [&'a Leg; 2],
    pub deadline: Option<Instant>,
    /// What the session ends with when the deadline passes.
    pub late: Termination,
    /// End when this leg's peer hangs up meanwhile.
    pub watch: Option<&'a Leg>,
}

impl Session {
    /// Runs `operation` to its end, within bounds. On `Err` it was dropped half-way.
    pub(crate) async fn within<T>(
        &self,
        bounds: Bounds<'_>,
        operation: impl Future<Output = T>,
    ) -> Result<T, Termination> {
        let (mut operation, mut struck) = (pin!(operation), pin!(self.struck(&bounds)));
        let done = std::future::poll_fn(|context| match operation.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => struck.as_mut().poll(context).map(Err),
        });
        done.await.inspect_err(|_| bounds.both.iter().for_each(|leg| leg.shut_down()))
    }

    /// Completes when a bound is reached or a cut is ordered.
    pub(crate) async fn struck(&self, bounds: &Bounds<'_>) -> Termination {
        tokio::select! {
            biased;
            reason = self.cut.ordered() => reason,
            () = until(bounds.deadline) => bounds.late,
            () = hang_up(bounds.watch) => Termination::ClientGone,
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => ring::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn hang_up(leg: Option<&Leg>) {
    let Some(leg) = leg else { return std::future::pending().await };
    loop {
        ring::sleep(GLANCE).await;
        if leg.hung_up() {
            return;
        }
    }
}
