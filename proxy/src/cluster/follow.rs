//! Follows one cluster: feeds [`Truth`] from the store, the members and the resolver, and publishes its views.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::proof::{Answer, Prober, Renewed};
use super::resolve::Resolver;
use super::store::{self, StoreEvent};
use super::truth::{Input, Now, Pace, Rules, Truth};
use super::{ClusterView, Floor, StoreHealth};
use crate::config;

/// A proof stands for this many intervals (and one timeout) of silence: a restart of Patroni is no failover.
pub(super) const HOLD_INTERVALS: u32 = 5;
/// Between two questions to a member whose proof everybody waits for. An answer takes Patroni some 5 ms, one at a time.
const TIGHT_INTERVAL: Duration = Duration::from_millis(15);
/// Of one agent in a fleet of up to [`FEW`]: the first of them that hears it is enough.
const TIGHT_AMONG_MANY: Duration = Duration::from_millis(40);
/// Agents that together ask no more than Patroni can answer beside a few pgsplices. More of them each ask more seldom.
const FEW: usize = 3;
/// An answer that such a member has not given by then is asked for once more beside it: Patroni's REST API has room for
/// five callers that it has not accepted, and the SYN of one too many is repeated only after a second.
const ASK_BESIDE: Duration = Duration::from_millis(100);
/// Questions to one member at a time.
const MOST_UNANSWERED: usize = 3;
/// The longest sleep; nothing depends on it.
const IDLE: Duration = Duration::from_secs(60);

pub(super) struct Follower {
    name: String,
    config: config::Cluster,
    truth: Truth,
    prober: Renewed,
    asking: JoinSet<Input>,
    polls: BTreeMap<String, Poll>,
    /// One of a fleet's agents.
    is_among_many: bool,
    resolver: Resolver,
}

/// The store's task, which ends with this.
struct StoreFeed {
    events: mpsc::Receiver<StoreEvent>,
    _task: JoinSet<()>,
}

/// What has been asked of a member.
struct Poll {
    api_url: String,
    /// Last; `None`: it is to be asked at `first`, whatever is under way.
    asked: Option<Instant>,
    first: Instant,
    unanswered: usize,
}

impl Now {
    fn read() -> Self {
        Self { mono: Instant::now(), wall: SystemTime::now() }
    }
}

// === impl Follower ===

impl Follower {
    pub(super) fn new(name: &str, config: &config::Cluster) -> Self {
        let proof = &config.proof;
        let rules = Rules {
            cluster: name.into(),
            members_alone: !config.store.is_patronis(),
            leader_absent_debounce: config.leader_absent_debounce,
            proof_hold: proof.interval * HOLD_INTERVALS + proof.timeout,
            switchover_hold: config.switchover_hold,
        };
        Self {
            name: name.into(),
            config: config.clone(),
            truth: Truth::new(rules, Now::read()),
            prober: Renewed::new(),
            asking: JoinSet::new(),
            polls: BTreeMap::new(),
            is_among_many: false,
            resolver: Resolver::default(),
        }
    }

    pub(super) fn after(self, floor: Option<Floor>) -> Self {
        Self { truth: self.truth.after(floor), ..self }
    }

    pub(super) fn among_many(self) -> Self {
        Self { is_among_many: true, ..self }
    }

    pub(super) fn view(&self) -> Arc<ClusterView> {
        self.truth.view()
    }

    /// Runs until aborted, or until nobody reads the views.
    pub(super) async fn run(mut self, views: watch::Sender<Arc<ClusterView>>) {
        let mut store = self.start_store();
        loop {
            let wake = self.poll_due();
            let input = tokio::select! {
                () = views.closed() => return,
                event = store.events.recv() => match event {
                    Some(event) => event.into(),
                    None => {
                        // The store task ends only by a panic.
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        store = self.start_store();
                        Input::Unreachable { why: "the store client failed and was started again".into() }
                    }
                },
                Some(answer) = self.asking.join_next() => match answer {
                    Ok(input) => input,
                    Err(_) => Input::Tick,
                },
                (host, address) = self.resolver.changed() => Input::Resolved { host, address },
                () = tokio::time::sleep_until(wake.into()) => Input::Tick,
            };
            if let Input::Answered { member, api_url, .. } = &input
                && let Some(poll) = self.polls.get_mut(member).filter(|poll| poll.api_url == *api_url)
            {
                poll.unanswered = poll.unanswered.saturating_sub(1);
            }
            let key_before = self.truth.view().leader_key.clone();
            if let Some(view) = self.truth.take(input, Now::read()) {
                if view.leader_key != key_before {
                    self.ask_all_now();
                }
                log_change(&self.name, &views.borrow(), &view);
                views.send_replace(view);
            }
        }
    }

    fn start_store(&self) -> StoreFeed {
        let (sender, events) = mpsc::channel(16);
        let mut task = JoinSet::new();
        task.spawn(store::follow(&self.config, sender));
        StoreFeed { events, _task: task }
    }

    /// Starts what is due and says when to come again.
    fn poll_due(&mut self) -> Instant {
        let now = Now::read();
        let mut before = std::mem::take(&mut self.polls);
        for (member, api_url) in self.truth.to_ask() {
            let poll = before.remove(member).filter(|poll| poll.api_url == api_url);
            let poll =
                poll.unwrap_or_else(|| Poll { api_url: api_url.into(), asked: None, first: now.mono, unanswered: 0 });
            self.polls.insert(member.into(), poll);
        }
        let mut wake = now.mono + IDLE;
        let [slow, fast, tight] = self.intervals();
        for (member, poll) in &mut self.polls {
            let pace = self.truth.pace(member, now);
            let interval = match pace {
                Pace::Slow => slow,
                Pace::Fast => fast,
                Pace::Tight => tight,
            };
            if poll.due(pace, interval).is_some_and(|due| due <= now.mono) {
                poll.asked = Some(now.mono);
                poll.unanswered += 1;
                let prober = self.prober.at(&self.config, now.mono);
                self.asking.spawn(ask(prober, member.clone(), poll.api_url.clone(), now.mono));
            }
            wake = poll.due(pace, interval).map_or(wake, |due| due.min(wake));
        }
        let resolve = self.resolver.poll(self.truth.to_resolve(), now.mono);
        resolve.into_iter().chain(self.truth.deadline(now)).fold(wake, Instant::min)
    }

    /// The leader key moved: every proof asked for before is old news. An answer still under way comes on top. The agents
    /// of a large fleet, which all hear of it at once, spread over the time between two questions of one.
    fn ask_all_now(&mut self) {
        let [.., tight] = self.intervals();
        let random = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
        let at = Instant::now() + tight.saturating_sub(TIGHT_AMONG_MANY).mul_f64(random);
        self.polls.values_mut().for_each(|poll| (poll.asked, poll.first) = (None, at));
    }

    /// Between two questions to a member at each pace, the slowest first.
    fn intervals(&self) -> [Duration; 3] {
        let proof = &self.config.proof;
        match self.is_among_many {
            true => among(self.truth.view().bouncers.len(), proof),
            false => [proof.interval, proof.fast_interval, proof.fast_interval.min(TIGHT_INTERVAL)],
        }
    }
}

impl Poll {
    /// When it is to be asked next; `None`: not before an answer has come.
    fn due(&self, pace: Pace, interval: Duration) -> Option<Instant> {
        match (self.asked, self.unanswered) {
            (_, MOST_UNANSWERED..) => None,
            (None, _) => Some(self.first),
            (Some(asked), 0) => Some(asked + interval),
            (Some(asked), _) => (pace == Pace::Tight).then_some(asked + interval.max(ASK_BESIDE)),
        }
    }
}

/// The intervals of one of so many agents: together they ask as often as a few.
fn among(agents: usize, proof: &config::ProofConfig) -> [Duration; 3] {
    let times = agents.max(FEW) as f64 / FEW as f64;
    let [fast, tight] = [proof.fast_interval, proof.fast_interval.min(TIGHT_AMONG_MANY)];
    [proof.interval, fast.mul_f64(times).min(proof.interval), tight.mul_f64(times).min(proof.interval)]
}

async fn ask(prober: Result<Prober, String>, member: String, api_url: String, asked: Instant) -> Input {
    let answer = match prober {
        Ok(prober) => prober.ask(&member, &api_url).await,
        Err(why) => Answer::Silent { why },
    };
    Input::Answered { member, api_url, asked, answer }
}

impl From<StoreEvent> for Input {
    fn from(event: StoreEvent) -> Self {
        match event {
            StoreEvent::Snapshot { revision, keys, bouncers } => Self::Snapshot { revision, keys, bouncers },
            StoreEvent::Unreachable { why } => Self::Unreachable { why },
        }
    }
}

/// What an operator wants to find in the log after a bad night.
fn log_change(cluster: &str, old: &ClusterView, new: &ClusterView) {
    match (&old.store, &new.store) {
        (StoreHealth::Unreachable { .. }, StoreHealth::Unreachable { .. }) => {}
        (_, StoreHealth::Unreachable { why, .. }) => tracing::warn!(cluster, why, "store unreachable: view frozen"),
        (StoreHealth::Connected { .. }, _) | (_, StoreHealth::Starting) => {}
        (_, StoreHealth::Connected { revision }) => tracing::info!(cluster, revision, "store connected"),
    }
    if old.leader_key != new.leader_key {
        tracing::info!(cluster, old = old.leader_key, new = new.leader_key, "leader key changed");
    }
    match (&old.switchover, &new.switchover) {
        (old, Some(new)) if old.as_ref() != Some(new) => tracing::info!(cluster, by = ?new.by, "{new} is announced"),
        (Some(old), None) => tracing::info!(cluster, "{old} is not announced any more"),
        _ => {}
    }
    match (&old.primary, &new.primary) {
        (old, Some(new)) if old.as_ref() != Some(new) => {
            tracing::info!(cluster, member = new.member, timeline = new.timeline, "primary open");
        }
        (Some(old), None) => {
            tracing::warn!(cluster, member = old.member, why = new.closed_because, "primary closed");
        }
        _ => {}
    }
    for (member, why) in new.cut.iter().filter(|(member, _)| !old.cut.contains_key(*member)) {
        tracing::info!(cluster, member, why, "sessions to this member are cut");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_fleet_asks_no_more_than_a_small_one() {
        let proof = config::ProofConfig::default();
        let ms = |agents| among(agents, &proof).map(|interval| interval.as_millis());
        assert_eq!(ms(0), [1000, 100, 40]);
        assert_eq!(ms(3), [1000, 100, 40]);
        assert_eq!(ms(20), [1000, 666, 266]);
        assert_eq!(ms(1000), [1000; 3]);
    }
}
