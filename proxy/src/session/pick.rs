//! Step 3: a place at a backend, at once or after a wait in the pool's bounded queue.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::bounds::Bounds;
use super::leg::Leg;
use super::{Phase, Session, Termination};
use crate::admin::metrics::QueueOutcome;
use crate::pool::{Picked, Place};
use crate::ring;

/// Why a session got no backend: how it ends, and the sentence its client reads.
pub(crate) struct Failed {
    pub reason: Termination,
    pub why: String,
}

impl From<Termination> for Failed {
    fn from(reason: Termination) -> Self {
        Self { reason, why: String::new() }
    }
}

/// How long a session that failed to connect everywhere waits before it tries again, unless it is woken sooner.
const PAUSE: Duration = Duration::from_millis(250);

/// Which backends failed for this session since it last waited, and what the last of them said.
#[derive(Default)]
pub(crate) struct Tried {
    pub addresses: Vec<SocketAddr>,
    pub last: Option<String>,
}

/// `deadline` is set at the session's first wait and holds for all of them together.
pub(crate) async fn place(
    session: &Session,
    client: &Leg,
    tried: &mut Tried,
    deadline: &mut Option<Instant>,
) -> Result<Place, Failed> {
    let pool = &session.pool;
    let attempts = pool.config.load().connect_attempts as usize;
    let exhausted = tried.addresses.len() >= attempts;
    // Nobody overtakes the queue, except a session that had a place and lost it to a failed connect.
    if !exhausted
        && (pool.queue.is_empty() || !tried.addresses.is_empty())
        && let Picked::Place(place) = pool.pick(client.peer.ip(), &tried.addresses)
    {
        return Ok(place);
    }
    session.record.update(|details| details.phase = Phase::Queue);
    let started = Instant::now();
    let config = pool.config.load_full();
    let deadline = *deadline.get_or_insert(started + config.queue.timeout);
    let Some(ticket) = pool.queue.enter(config.queue.size) else {
        session.worker.proxy.metrics.observe_queue(&pool.name, QueueOutcome::Full, Duration::ZERO);
        let why = format!("{}; {} sessions wait already", explain(session, tried), config.queue.size);
        return Err(Failed { reason: Termination::QueueFull, why });
    };
    // A session that failed everywhere starts a new round, but not in a tight loop.
    let mut hold = !tried.addresses.is_empty();
    let waiting = async {
        loop {
            if !std::mem::take(&mut hold) {
                tried.addresses.clear();
                if let Picked::Place(place) = pool.pick(client.peer.ip(), &[]) {
                    return place;
                }
                ticket.woken().await;
            } else {
                ring::sleep(PAUSE).await;
            }
        }
    };
    let bounds = Bounds {
        both: [client, client],
        deadline: Some(deadline),
        late: Termination::QueueTimeout,
        watch: Some(client),
    };
    let outcome = tokio::select! {
        biased;
        place = waiting => Ok(place),
        reason = session.struck(&bounds) => Err(reason),
    };
    drop(ticket);
    let waited = started.elapsed();
    session.record.update(|details| *details.times.queue.get_or_insert_default() += waited);
    let (result, counted) = match outcome {
        Ok(place) => (Ok(place), QueueOutcome::Served),
        Err(Termination::QueueTimeout) => {
            let why = format!("{} (waited {:.1} s)", explain(session, tried), config.queue.timeout.as_secs_f64());
            let reason = if tried.last.is_some() { Termination::ConnectFailed } else { Termination::QueueTimeout };
            (Err(Failed { reason, why }), QueueOutcome::TimedOut)
        }
        Err(reason) => (Err(reason.into()), QueueOutcome::Gone),
    };
    session.worker.proxy.metrics.observe_queue(&pool.name, counted, waited);
    result
}

/// What a psql user reads when there is no backend.
fn explain(session: &Session, tried: &Tried) -> String {
    let pool = &session.pool;
    let candidates = pool.candidates.load();
    match &tried.last {
        Some(last) => format!("no backend of pool {} could be reached: {last}", pool.name),
        None if candidates.list.is_empty() => {
            format!("no backend of pool {} is available: {}", pool.name, candidates.why_empty)
        }
        None => format!("every backend of pool {} has as many sessions as it may", pool.name),
    }
}
