//! Requests at a fixed rate on standing sessions: what those feel while something else goes on.

use anyhow::{Result, ensure};

use super::super::window::{now, sleep_until};
use super::super::wire;
use super::session::Session;
use super::{Outcome, Share};

/// One session a thread, so that each sleeps to the moment of its own request.
pub fn work(share: Share) -> Result<Outcome> {
    let session = share.connections().next().map(|number| Session::open(share.args, number));
    share.stands();
    let Some(session) = session else { return Ok(Outcome::default()) };
    let mut session = session?;
    ensure!(share.args.rate.is_some_and(|rate| rate > 0.0), "--rate must be above 0");
    let between = (share.of as f64 / share.args.rate.unwrap_or(1.0) * 1e9) as u64;
    exact_timer();
    let mut outcome = Outcome::default();
    let mut due = now() + between * share.number as u64 / share.of as u64;
    while !share.window.is_over(now()) {
        let late = now() > due;
        sleep_until(due);
        // A request that had to wait for the reply before it counts from when it was due (no coordinated omission); a
        // wake-up that came late is our own.
        let began = if late { due } else { now() };
        session.ask(wire::REPLY_LEN)?;
        due += between;
        let at = now();
        if share.window.holds(at) {
            outcome.done += 1;
            outcome.latency.record(at - began);
        }
    }
    session.close()?;
    Ok(outcome)
}

/// Wakes this thread when it asked for, not up to 50 µs later.
fn exact_timer() {
    // SAFETY: a system call without pointers; it changes only this thread's timer slack, and may fail without harm.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}
