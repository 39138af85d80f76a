//! Time limits and cuts around operations that must not be dropped.
//!
//! A tokio-uring operation owns its buffer until the kernel is done with it; its future must run to completion. So a
//! limit does not drop the operation: it shuts the sockets down, which completes it, and waits for that.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::leg::Leg;
use super::{Session, Termination};

/// How often a client that should be silent is looked at for having gone away.
const GLANCE: Duration = Duration::from_millis(500);

/// An order to end a session, from its worker to its task.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    reason: Cell<Option<Termination>>,
    ordered: Notify,
}

impl Cut {
    /// The first order counts.
    pub(crate) fn order(&self, reason: Termination) {
        if self.reason.get().is_none() {
            self.reason.set(Some(reason));
        }
        self.ordered.notify_one();
    }

    pub(crate) async fn ordered(&self) -> Termination {
        loop {
            if let Some(reason) = self.reason.get() {
                return reason;
            }
            self.ordered.notified().await;
        }
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
    /// Runs `operation` to its end, within bounds. On `Err` the operation has completed and its result is gone.
    pub(crate) async fn within<T>(
        &self,
        bounds: Bounds<'_>,
        operation: impl Future<Output = T>,
    ) -> Result<T, Termination> {
        let mut operation = pin!(operation);
        let reason = tokio::select! {
            biased;
            done = &mut operation => return Ok(done),
            reason = self.struck(&bounds) => reason,
        };
        bounds.both.iter().for_each(|leg| leg.shut_down());
        operation.await;
        Err(reason)
    }

    /// Completes when a bound is reached or a cut is ordered. By itself only for waits that touch no ring.
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
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn hang_up(leg: Option<&Leg>) {
    let Some(leg) = leg else { return std::future::pending().await };
    loop {
        tokio::time::sleep(GLANCE).await;
        if leg.hung_up() {
            return;
        }
    }
}
