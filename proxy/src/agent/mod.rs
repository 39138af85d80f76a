//! The companion of one PgBouncer: keeps its `databases` on the open primary and its entry in the store's registry.
//!
//! It follows the cluster as the proxy does, by the same rules. Everything is a comparison of what should be with what
//! is, repeated: a crash at any step leaves a PgBouncer that works, and the next start carries on from there.

mod ahead;
mod console;
mod databases;
mod hold;
mod note;
mod pause;
mod registry;
mod servers;
mod shut;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::cluster::resolve::HostPort;
use crate::cluster::{self, ClusterHandle, ClusterView};
use crate::config::agent::AgentConfig;

use console::{Console, Database};
pub use databases::MARKER;
use databases::{DatabasesFile, Target};
use hold::Hold;
use pause::Cause;
use registry::Registry;
use servers::OldPrimaries;
use shut::Shut;

/// How long after a move connections to the old primary are looked for: PgBouncer may have been making one.
const SWEEP_FOR: Duration = Duration::from_secs(10);

/// One agent at work.
struct Agent {
    config: AgentConfig,
    file: DatabasesFile,
    console: Console,
    cluster: ClusterHandle,
    /// What the databases should point to: the last open primary, kept while there is none.
    target: Option<Target>,
    /// What PgBouncer was last seen to run of the file.
    loaded: Option<Target>,
    begun: Instant,
    /// Since when the target is wanted and not verified, to say how long a move took.
    wanted: Option<Instant>,
    /// PgBouncer is paused, or about to be.
    hold: Option<Hold>,
    shut: Shut,
    /// Where the databases go, or are, although no primary is open there: the target is deposed.
    ahead: Option<Target>,
    /// What was waited for in vain.
    spent: Option<Cause>,
    /// How long a client waited at most in the last pause.
    waited: Option<Duration>,
    old_primaries: OldPrimaries,
    /// Connections to old primaries are looked for until then.
    sweep_until: Option<Instant>,
    registry: Option<Registry>,
}

/// Runs until `stop` completes, then takes the entry out of the registry.
pub async fn run(config: AgentConfig, stop: impl Future<Output = ()>) {
    let mut agent = Agent::new(config);
    tokio::select! {
        () = agent.work() => {}
        () = stop => {}
    }
    agent.leave().await;
}

/// Brings PgBouncer to the primary that is open now, or within `limit`, and ends: its name. Registers nothing.
pub async fn once(config: AgentConfig, limit: Duration) -> Result<String, String> {
    let mut agent = Agent::new(config);
    // What an agent holds is the agent's to resume.
    agent.hold = None;
    let mut why = format!("no primary was open within {limit:?}");
    let work = async {
        let mut views = agent.cluster.view.clone();
        loop {
            let view = views.borrow_and_update().clone();
            agent.aim(&view);
            if view.primary.is_some() {
                let written = agent.write_file(agent.target.clone()).await;
                match agent.settle(written, &view).await {
                    Ok(target) => return target.leader,
                    Err(error) if error == why => {}
                    Err(error) => {
                        tracing::warn!(why = error, "not done yet");
                        why = error;
                    }
                }
            }
            let _ = tokio::time::timeout(agent.config.pgbouncer.check_interval, views.changed()).await;
        }
    };
    let done = tokio::time::timeout(limit, work).await;
    done.map_err(|_| why)
}

// === impl Agent ===

impl Agent {
    fn new(config: AgentConfig) -> Self {
        Self {
            file: DatabasesFile::new(&config.pgbouncer.databases_file, &config.name, &config.pgbouncer.databases),
            console: Console::new(&config.pgbouncer),
            cluster: cluster::watch_among_many(&config.cluster_name, &config.cluster),
            target: None,
            loaded: None,
            begun: Instant::now(),
            wanted: None,
            hold: Hold::left_behind(&config.pgbouncer.databases_file),
            shut: Shut::left_behind(&config.pgbouncer.databases_file),
            ahead: None,
            spent: None,
            waited: None,
            old_primaries: OldPrimaries::default(),
            // One before us may have died between repointing and this.
            sweep_until: Some(Instant::now() + SWEEP_FOR),
            registry: None,
            config,
        }
    }

    async fn work(&mut self) {
        let mut check = tokio::time::interval(self.config.pgbouncer.check_interval);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut views = self.cluster.view.clone();
        let mut dealt_with = None;
        loop {
            // By number: what interrupted a step was seen by it, and is no change any more.
            if dealt_with == Some(views.borrow().generation) {
                tokio::select! {
                    biased;
                    changed = views.changed() => if changed.is_err() { return },
                    _ = check.tick() => {}
                }
            }
            let view = views.borrow_and_update().clone();
            dealt_with = Some(view.generation);
            self.aim(&view);
            self.find_namesake(&view);
            if self.must_hold(&view) {
                // Whatever the view says next is more important than a transaction that does not end.
                let held = tokio::select! {
                    biased;
                    () = turned(&mut views, &view) => continue,
                    held = self.hold_back(self.is_deposed(&view)) => held,
                };
                let is_quiet = held == Ok(true);
                self.report_hold(held);
                if is_quiet {
                    self.go_ahead(&view, &mut views).await;
                }
                continue;
            }
            let written = self.head_for_place(&view).await;
            // A newer truth must not wait for a console that hangs: the file is written whole, the rest starts again.
            let outcome = tokio::select! {
                biased;
                outcome = self.settle(written, &view) => outcome,
                () = moved_on(&mut views, &view) => continue,
            };
            let is_stuck = outcome.is_err();
            self.report(outcome);
            if is_stuck {
                tokio::select! {
                    biased;
                    () = moved_on(&mut views, &view) => {}
                    () = self.keep_from_deposed(&view) => {}
                }
            }
        }
    }

    /// Takes the open primary as the target. Without one the last stays.
    fn aim(&mut self, view: &ClusterView) {
        self.old_primaries.saw(view.members.values().filter_map(|member| member.conn_addr));
        let Some(target) = target(view) else { return };
        if self.target.as_ref() != Some(&target) {
            tracing::info!(
                leader = target.leader,
                timeline = target.timeline,
                host = target.host,
                "databases to follow"
            );
            self.target = Some(target);
            self.wanted = Some(Instant::now());
        }
    }

    async fn write_file(&self, target: Option<Target>) -> Result<Option<Target>, String> {
        let Some(target) = target else { return Ok(None) };
        let file = self.file.clone();
        let writing = tokio::task::spawn_blocking(move || file.write(&target).map(|()| target));
        match writing.await {
            Ok(Ok(target)) => Ok(Some(target)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("writing the databases file failed".into()),
        }
    }

    /// Makes the running PgBouncer follow the file, and its clients go on. `Err`: why it is not ready.
    async fn settle(&mut self, written: Result<Option<Target>, String>, view: &ClusterView) -> Result<Target, String> {
        let target = self.go_on(written, view).await?;
        let running = self.console.databases().await.map_err(|error| error.to_string())?;
        self.sweep(&running, &target, view).await?;
        self.find_halted(&running).await?;
        Ok(target)
    }

    /// Nobody is left waiting, even if the file is not followed, except where the way still leads to a deposed primary.
    async fn go_on(&mut self, written: Result<Option<Target>, String>, view: &ClusterView) -> Result<Target, String> {
        let followed = self.follow(written).await;
        if followed.is_err() && self.is_astray(view).await {
            return followed;
        }
        let resumed = self.resume().await;
        let target = followed?;
        resumed?;
        self.shut.open(&mut self.console).await?;
        Ok(target)
    }

    /// What is held leads to a deposed primary, unless it was brought away meanwhile; or it may, for nobody can look.
    async fn is_astray(&mut self, view: &ClusterView) -> bool {
        let Some(hold) = &self.hold else { return false };
        if self.ahead.is_some() || hold.is_deposed || self.is_lost(view) {
            return true;
        }
        match self.console.databases().await {
            Ok(running) => self.deposed_place(&running, view).is_some(),
            Err(_) => true,
        }
    }

    async fn follow(&mut self, written: Result<Option<Target>, String>) -> Result<Target, String> {
        let target = match written {
            Ok(target) => target,
            // Even so, whether PgBouncer answers is worth knowing.
            Err(why) => {
                self.console.databases().await.map_err(|error| error.to_string())?;
                return Err(why);
            }
        };
        let running = self.console.databases().await.map_err(|error| error.to_string())?;
        let target = target.ok_or("no primary was open since the agent started")?;
        let had_to_load = self.load(&running, &target).await?;
        // In a hold it may have been loaded ahead, or by an agent before this one.
        let is_quiet = self.hold.as_ref().map(|hold| hold.is_quiet);
        if had_to_load || is_quiet == Some(false) {
            // PgBouncer lets go of connections to the old address by itself when it reloads; this says so again for
            // those it took in the meantime. It does not wait for them.
            self.console.command("RECONNECT").await.map_err(|error| error.to_string())?;
        }
        if had_to_load || is_quiet.is_some() {
            self.sweep_until = Some(Instant::now() + SWEEP_FOR);
        }
        Ok(target)
    }

    /// Has PgBouncer read the file, unless it runs what stands there. Whether it had to.
    async fn load(&mut self, running: &[Database], target: &Target) -> Result<bool, String> {
        if self.file.problem(running, target).is_none() {
            self.loaded = Some(target.clone());
            return Ok(false);
        }
        self.console.command("RELOAD").await.map_err(|error| error.to_string())?;
        let running = self.console.databases().await.map_err(|error| error.to_string())?;
        match self.file.problem(&running, target) {
            Some(problem) => Err(format!("after RELOAD {problem}: see PgBouncer's log for why it refused the file")),
            None => {
                self.loaded = Some(target.clone());
                Ok(true)
            }
        }
    }

    /// Ends transactions at an old primary: it may go on taking writes, and a client may wait for it for ever.
    async fn sweep(&mut self, running: &[Database], target: &Target, view: &ClusterView) -> Result<(), String> {
        if self.sweep_until.is_none() {
            return Ok(());
        }
        let now = view.members.get(&target.leader).and_then(|member| member.conn_addr);
        let ours = running.iter().filter(|one| self.file.owns(one, target)).map(|one| one.name.clone()).collect();
        let swept = self.old_primaries.sweep(&mut self.console, &ours, target, now).await;
        let swept = swept.map_err(|error| error.to_string())?;
        if swept.ended > 0 {
            tracing::warn!(ended = swept.ended, "connections to an old primary were ended");
        }
        match swept.left {
            Some((left, why)) => tracing::warn!(left, "connections to an old primary go on: {why}"),
            None if self.sweep_until.is_some_and(|until| until <= Instant::now()) => self.sweep_until = None,
            None => {}
        }
        Ok(())
    }

    /// A client sent to what somebody else paused would wait, and nobody knows for how long.
    async fn find_halted(&mut self, running: &[Database]) -> Result<(), String> {
        if let Some(halted) = self.console.halted().await.map_err(|error| error.to_string())? {
            return Err(format!("PgBouncer is {halted}"));
        }
        match running.iter().find(|database| database.halted.is_some() && self.file.has(&database.name)) {
            Some(database) => {
                Err(format!("database {} is {}", database.name, database.halted.as_deref().unwrap_or_default()))
            }
            None => Ok(()),
        }
    }
}

/// Where the view says the databases should point.
fn target(view: &ClusterView) -> Option<Target> {
    let primary = view.primary.as_ref()?;
    target_at(view, &primary.member, Some(primary.timeline))
}

fn target_at(view: &ClusterView, member: &str, timeline: Option<u32>) -> Option<Target> {
    // The host as Patroni has it: where it is a name, TLS needs it.
    let HostPort { host, port } = HostPort::of_url(view.members.get(member)?.conn_url.as_ref()?)?;
    Some(Target { leader: member.into(), timeline, host, port })
}

/// Pends until a view says something else than `seen` of who leads, or is about to.
async fn turned(views: &mut watch::Receiver<Arc<ClusterView>>, seen: &ClusterView) {
    let is_same = |now: &ClusterView| {
        now.leader_key == seen.leader_key
            && now.primary == seen.primary
            && now.switchover == seen.switchover
            && now.cut == seen.cut
    };
    if views.wait_for(|now| !is_same(now)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Pends until a view wants the databases elsewhere than `seen` did.
async fn moved_on(views: &mut watch::Receiver<Arc<ClusterView>>, seen: &ClusterView) {
    let old = target(seen);
    let moved = |view: &Arc<ClusterView>| target(view).is_some_and(|new| old.as_ref() != Some(&new));
    if views.wait_for(moved).await.is_err() {
        std::future::pending::<()>().await;
    }
}
