//! What is the same for every store: one session after another, word when none can be had, and a registration that is
//! taken up again when it was lost.

use std::fmt::Display;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{Places, Registration, StoreEvent};

/// A lost endpoint is no news as long as another takes over within this time.
const GRACE: Duration = Duration::from_secs(1);

/// How a store is followed through one endpoint at a time.
pub(super) trait Follow: Send {
    type Session: Send;
    type Error: Display + Send;

    /// Connects and reads everything.
    fn establish(&mut self, places: &Places) -> impl Future<Output = Result<Self::Session, Self::Error>> + Send;

    /// Hands over snapshots until something is wrong. `Ok`: nobody listens any more.
    fn keep(
        &mut self,
        session: Self::Session,
        places: &Places,
        events: &mpsc::Sender<StoreEvent>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Takes the next endpoint.
    fn turn(&mut self);

    fn endpoints(&self) -> usize;
}

/// How an entry is kept through one endpoint at a time.
pub(super) trait Hold: Send {
    type Error: Display + Send;

    /// Registers once and keeps it. `Ok`: the value's sender is gone and the entry taken out. Resets the backoff once
    /// the entry stands.
    fn hold(
        &mut self,
        entry: &mut Registration,
        backoff: &mut Backoff,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Takes the next endpoint.
    fn turn(&mut self);
}

/// Sends events for ever. Returns once nobody receives them.
pub(super) async fn follow<S: Follow>(mut store: S, places: Places, events: mpsc::Sender<StoreEvent>) {
    let mut backoff = Backoff::default();
    let mut told: Option<String> = None;
    let mut failures = 0;
    let mut tell_at = Instant::now() + GRACE;
    let mut last_error = String::from("no answer yet");
    loop {
        let established = {
            let attempt = store.establish(&places);
            tokio::pin!(attempt);
            loop {
                tokio::select! {
                    done = &mut attempt => break done,
                    () = events.closed() => return,
                    () = sleep_until(tell_at), if told.is_none() => {
                        if tell(&events, &mut told, &last_error).await.is_err() { return }
                    }
                }
            }
        };
        let error = match established {
            Ok(session) => {
                told = None;
                let begun = Instant::now();
                let error = match store.keep(session, &places, &events).await {
                    Ok(()) => return,
                    Err(error) => error,
                };
                tell_at = Instant::now() + GRACE;
                // One that breaks at once, again and again, must not become a loop without a pause.
                if begun.elapsed() > GRACE {
                    failures = 0;
                    backoff.reset();
                }
                error
            }
            Err(error) => error,
        };
        tracing::debug!(%error, "session with the store ended");
        last_error = error.to_string();
        store.turn();
        failures += 1;
        // The first failure may be a session that ended: that alone is no news.
        let tried_all = failures >= store.endpoints().max(2);
        if tried_all || told.is_some() {
            if tell(&events, &mut told, &last_error).await.is_err() {
                return;
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

/// Keeps the entry until its value's sender is gone.
pub(super) async fn register<S: Hold>(mut store: S, mut entry: Registration) {
    let mut backoff = Backoff::default();
    loop {
        match store.hold(&mut entry, &mut backoff).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(key = entry.key, %error, "registration lost, trying again"),
        }
        store.turn();
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = abandoned(&mut entry) => return,
        }
    }
}

/// Says why the store is away, unless just that was said last. `Err`: nobody listens.
async fn tell(events: &mpsc::Sender<StoreEvent>, told: &mut Option<String>, why: &str) -> Result<(), ()> {
    if told.as_deref() == Some(why) {
        return Ok(());
    }
    *told = Some(why.into());
    events.send(StoreEvent::Unreachable { why: why.into() }).await.map_err(drop)
}

/// Pends until the value's sender is gone.
pub(super) async fn abandoned(entry: &mut Registration) {
    while entry.value.changed().await.is_ok() {}
}

/// A place to begin among `count`: a fleet that starts at once must not all ask the first endpoint.
pub(super) fn any_of(count: usize) -> usize {
    random() as usize % count.max(1)
}

/// Grows from try to try and forgets on success; each wait is 50–100 % of the nominal one.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_secs(3);

    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }

    fn next(&mut self) -> Duration {
        let nominal = (Self::FIRST * 2u32.pow(self.tries.min(8))).min(Self::MOST);
        self.tries += 1;
        nominal / 2 + (nominal / 2).mul_f64(random() as f64 / u64::MAX as f64)
    }
}

/// The hasher's keys are random; that is all the randomness jitter needs.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_limit_and_starts_again() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait >= Backoff::FIRST / 2 && wait <= Backoff::MOST);
        }
        assert!(backoff.next() >= Backoff::MOST / 2);
        backoff.reset();
        assert!(backoff.next() <= Backoff::FIRST);
    }
}
