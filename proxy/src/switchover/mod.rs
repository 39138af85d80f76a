//! A planned move of the leadership as one act: new sessions wait, the fleet is paused, Patroni is asked, and everything
//! goes on at the new primary, or where it was if Patroni refuses.
//!
//! The announcement in the store is what holds every pgsplice and pauses every agent; it ends with this process, by its
//! lease if need be, and then all of them go on.

mod patroni;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::admin::api;
use crate::cluster::announce::{Announcer, ENTRY, Notice};
use crate::cluster::store::{self, Places, Registration};
use crate::cluster::{BouncerState, ClusterView};
use crate::config::{Cluster, show_duration};

/// How long an announcement outlives a process that died.
const LEASE: Duration = Duration::from_secs(10);
/// For the store to take the announcement and show it.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// For the agents to see what changed, and for the store to take the announcement back.
const SETTLE: Duration = Duration::from_secs(10);

/// Where the attempts of this process are found: one at a time, and the last.
#[derive(Debug, Default)]
pub struct Desk(Mutex<Option<Arc<Attempt>>>);

/// One attempt, under way or over.
#[derive(Debug)]
struct Attempt {
    begun: Instant,
    report: Mutex<api::Switchover>,
}

/// What an attempt is to do.
#[derive(Clone, Debug)]
pub struct Order {
    pub cluster_name: String,
    pub cluster: Cluster,
    /// `None`: Patroni chooses.
    pub to: Option<String>,
    /// How long transactions under way are waited for.
    pub pause_timeout: Duration,
}

/// Why an attempt was not begun.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("a switchover of cluster {0} is under way")]
    UnderWay(String),
    #[error("{0}")]
    Unfit(String),
}

// === impl Desk ===

impl Desk {
    /// The last attempt, as it stands.
    pub fn last(&self) -> Option<api::Switchover> {
        self.0.lock().as_ref().map(|attempt| attempt.report())
    }

    /// Begins one in the background. Within a tokio runtime.
    pub fn begin(&self, order: Order, views: watch::Receiver<Arc<ClusterView>>) -> Result<api::Switchover, Refusal> {
        let mut desk = self.0.lock();
        if let Some(other) = desk.as_ref().map(|attempt| attempt.report()).filter(|report| !report.over) {
            return Err(Refusal::UnderWay(other.cluster));
        }
        let from = from(&order, &views.borrow()).map_err(Refusal::Unfit)?;
        let report = api::Switchover {
            cluster: order.cluster_name.clone(),
            from: from.clone(),
            to: order.to.clone(),
            ..api::Switchover::default()
        };
        let attempt = Arc::new(Attempt { begun: Instant::now(), report: Mutex::new(report.clone()) });
        *desk = Some(attempt.clone());
        tokio::spawn(async move { attempt.run(order, from, views).await });
        Ok(report)
    }
}

/// Whom the leadership is to leave, or why this cannot be done.
fn from(order: &Order, view: &ClusterView) -> Result<String, String> {
    if !order.cluster.store.has_registry() {
        let how = if order.cluster.store.is_patronis() { "Patroni" } else { "pg_promote" };
        return Err(format!("there is no store in which the agents could be told: switch over with {how}"));
    }
    let (pause, hold) = (order.pause_timeout, order.cluster.switchover_hold);
    if pause >= hold {
        let [pause, hold] = [pause, hold].map(show_duration);
        return Err(format!(
            "a pause timeout of {pause} is not below switchover_hold, {hold}: PgBouncers would go on before Patroni is asked"
        ));
    }
    if let Some(announced) = &view.switchover {
        return Err(format!("{announced} is announced already"));
    }
    let Some(primary) = &view.primary else { return Err(format!("no primary: {}", view.closed_because)) };
    let Some(to) = &order.to else { return Ok(primary.member.clone()) };
    let names = || view.members.keys().cloned().collect::<Vec<_>>().join(", ");
    let member = view.members.get(to).ok_or_else(|| format!("no member {to:?}; there are: {}", names()))?;
    if *to == primary.member {
        return Err(format!("{to} is the primary already"));
    }
    if !member.is_running() {
        return Err(format!("{to} does not run: its state is {:?}", member.state));
    }
    if member.tag_is_true("nofailover") {
        return Err(format!("{to} has the tag nofailover"));
    }
    Ok(primary.member.clone())
}

// === impl Attempt ===

impl Attempt {
    fn report(&self) -> api::Switchover {
        self.report.lock().clone()
    }

    fn step(&self, what: impl Into<String>) {
        let (what, at_ms) = (what.into(), self.begun.elapsed().as_secs_f64() * 1e3);
        tracing::info!(at_ms = at_ms.round(), "switchover: {what}");
        self.report.lock().steps.push(api::SwitchoverStep { what, at_ms });
    }

    async fn run(&self, order: Order, from: String, mut views: watch::Receiver<Arc<ClusterView>>) {
        let id =
            format!("{:016x}", std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id()));
        let notice = Notice { id, leader: from.clone(), candidate: order.to.clone() };
        let value = serde_json::to_vec(&notice).expect("a notice has nothing JSON cannot hold");
        let (value, receiver) = watch::channel(value);
        let key = format!("{}{ENTRY}", Places::of(&order.cluster).bouncers);
        let entry = Registration { key, value: receiver, ttl: LEASE };
        let announcing = tokio::spawn(store::register(&order.cluster, entry));
        let fleet = fleet(&views.borrow(), &from);

        let moved = self.make(&order, &notice, &fleet, &mut views).await;
        // The agents go on by themselves as soon as a primary is open; without the announcement also where it did not move.
        drop(value);
        if tokio::time::timeout(SETTLE, announcing).await.is_err() {
            tracing::warn!(?LEASE, "switchover: the store did not take the announcement back; it ends with its lease");
        }
        let goal = moved.as_ref().unwrap_or(&from).clone();
        let resumed = self.resumed(&goal, &fleet, &mut views).await;
        let mut report = self.report.lock();
        report.over = true;
        report.error = match (moved, resumed) {
            (Err(why), Ok(())) => Some(format!("{why}; everything goes on at {from}")),
            (Err(why), Err(also)) => Some(format!("{why}; {also}")),
            (Ok(_), Err(why)) => Some(why),
            (Ok(to), Ok(())) => {
                report.to = Some(to);
                None
            }
        };
        if let Some(why) = &report.error {
            tracing::error!(why, "switchover");
        }
    }

    /// Up to a writable primary that is not the old one: its name.
    async fn make(
        &self,
        order: &Order,
        notice: &Notice,
        fleet: &BTreeSet<String>,
        views: &mut watch::Receiver<Arc<ClusterView>>,
    ) -> Result<String, String> {
        let is_ours = |view: &ClusterView| {
            let announced = view.switchover.as_ref()?;
            (announced.by == Announcer::Pgsplice { id: notice.id.clone() }).then_some(())
        };
        let announced = until(views, ANNOUNCE, is_ours).await;
        announced.ok_or_else(|| {
            let registry = Places::of(&order.cluster).bouncers;
            format!("the store did not take the announcement within {ANNOUNCE:?}: may pgsplice write to {registry}?")
        })?;
        self.step("announced: new sessions wait");
        if !fleet.is_empty() {
            let paused = until(views, order.pause_timeout, |view| unpaused(view, fleet).is_empty().then_some(())).await;
            paused.ok_or_else(|| {
                let left = unpaused(&views.borrow(), fleet).join(", ");
                format!("not every PgBouncer was quiet within {:?}: {left}", order.pause_timeout)
            })?;
            self.step(format!("{} paused", bouncers(fleet.len())));
        }
        let api_url = views.borrow().members.get(&notice.leader).and_then(|member| member.api_url.clone());
        let api_url = api_url.ok_or_else(|| format!("{} has no api_url in its member key", notice.leader))?;
        self.step("asked Patroni");
        // Its answer comes when all is over: what happens is seen in the store. A refusal comes at once.
        let asked = patroni::switch_over(&order.cluster, &api_url, notice);
        tokio::pin!(asked);
        let elsewhere = |view: &ClusterView| view.leader_key.clone().filter(|leader| *leader != notice.leader);
        let limit = order.cluster.switchover_hold;
        let leader = tokio::select! {
            biased;
            leader = until(views, limit, elsewhere) => leader.ok_or(format!("nobody took over within {limit:?}"))?,
            answer = &mut asked => match answer {
                // The store's word may be a moment behind Patroni's, and Patroni's own loop may come after its answer.
                Ok(()) => until(views, limit, elsewhere).await.ok_or("Patroni says it is done, but the key stays")?,
                Err(refused) => match until(views, GRACE, elsewhere).await {
                    Some(leader) => leader,
                    None => return Err(refused),
                },
            },
        };
        self.step(format!("{leader} holds the leader key"));
        let open = until(views, limit, |view| {
            view.primary.as_ref().map(|primary| primary.member.clone()).filter(|member| *member != notice.leader)
        });
        let Some(open) = open.await else {
            return Err(format!("no new primary was writable within {limit:?}: {}", views.borrow().closed_because));
        };
        self.step(format!("{open} is writable"));
        Ok(open)
    }

    /// Waits until the fleet goes on at `leader`, and reports how long that took.
    async fn resumed(
        &self,
        leader: &str,
        fleet: &BTreeSet<String>,
        views: &mut watch::Receiver<Arc<ClusterView>>,
    ) -> Result<(), String> {
        let left = |view: &ClusterView| -> Vec<String> {
            let goes_on = |name: &&String| {
                let bouncer = view.bouncers.get(*name);
                bouncer.is_none_or(|one| is_in_service(one.state) && one.leader.as_deref() == Some(leader))
            };
            fleet.iter().filter(|name| !goes_on(name)).cloned().collect()
        };
        if !fleet.is_empty() {
            let done = until(views, SETTLE, |view| left(view).is_empty().then_some(())).await;
            done.ok_or_else(|| format!("not in service at {leader}: {}", left(&views.borrow()).join(", ")))?;
            self.step(format!("{} resumed", bouncers(fleet.len())));
        }
        let view = views.borrow().clone();
        let waits = fleet.iter().filter_map(|name| view.bouncers.get(name)?.waited_ms);
        let mut report = self.report.lock();
        let at = |what: &str| report.steps.iter().find(|step| step.what.starts_with(what)).map(|step| step.at_ms);
        let last = report.steps.last().map(|step| step.at_ms);
        report.gap_ms = last.zip(at("announced")).map(|(last, announced)| last - announced);
        report.longest_wait_ms = waits.max();
        Ok(())
    }
}

/// How long the store's word may be behind that of Patroni.
const GRACE: Duration = Duration::from_secs(1);

/// The PgBouncers that sessions are sent to now; the others are out of service already.
fn fleet(view: &ClusterView, leader: &str) -> BTreeSet<String> {
    let serving = |one: &&crate::cluster::Bouncer| is_in_service(one.state) && one.leader.as_deref() == Some(leader);
    view.bouncers.values().filter(serving).map(|one| one.name.clone()).collect()
}

fn is_in_service(state: BouncerState) -> bool {
    matches!(state, BouncerState::Ready | BouncerState::Draining)
}

/// Those of the fleet that are not paused, each with what is known of it. One that has gone has no clients.
fn unpaused(view: &ClusterView, fleet: &BTreeSet<String>) -> Vec<String> {
    let of = |name: &String| {
        let one = view.bouncers.get(name).filter(|one| one.state != BouncerState::Paused)?;
        let why = if one.reason.is_empty() { "its agent does not pause it" } else { &one.reason };
        Some(format!("{name}: {why}"))
    };
    fleet.iter().filter_map(of).collect()
}

fn bouncers(count: usize) -> String {
    format!("{count} PgBouncer{}", if count == 1 { "" } else { "s" })
}

/// The first view in which `found` finds something, or `None` after `limit`.
async fn until<T>(
    views: &mut watch::Receiver<Arc<ClusterView>>,
    limit: Duration,
    found: impl Fn(&ClusterView) -> Option<T>,
) -> Option<T> {
    let mut got = None;
    let wait = views.wait_for(|view| {
        got = found(view);
        got.is_some()
    });
    let seen = tokio::time::timeout(limit, wait).await.is_ok_and(|view| view.is_ok());
    if seen { got } else { None }
}

#[cfg(test)]
mod tests;
