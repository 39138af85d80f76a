//! When clients wait instead of going to the primary, and until when.

use super::console::{Console, Database};
use super::databases::Target;
use super::hold::Hold;
use super::{Agent, servers, target_at};
use crate::cluster::{ClusterView, Proof, Switchover};

/// Why clients shall wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The primary is about to leave.
    Announced(Switchover),
    /// The leader key names this member, which is not open yet. The old primary may go on taking writes.
    Deposed { by: String },
}

impl Agent {
    /// Why nothing may go to where the databases point.
    pub(super) fn cause(&self, view: &ClusterView) -> Option<Cause> {
        let leader = &self.target.as_ref()?.leader;
        if let Some(by) = view.leader_key.as_ref().filter(|by| *by != leader && view.cut.contains_key(leader)) {
            return Some(Cause::Deposed { by: by.clone() });
        }
        view.switchover.clone().filter(|announced| announced.from == *leader).map(Cause::Announced)
    }

    pub(super) fn is_deposed(&self, view: &ClusterView) -> bool {
        matches!(self.cause(view), Some(Cause::Deposed { .. }))
    }

    /// Whether clients shall wait: from the announcement of a switchover, or from the moment the primary is deposed,
    /// until one is open, and no longer than `switchover_hold` if there is a place to go on at.
    pub(super) fn must_hold(&mut self, view: &ClusterView) -> bool {
        let cause = self.cause(view);
        if self.spent != cause {
            self.spent = None;
        }
        let is_lost = self.is_lost(view);
        let limit = self.config.cluster.switchover_hold;
        match (&self.hold, cause) {
            (None, None) => false,
            (None, Some(cause)) => self.spent.as_ref() != Some(&cause),
            (Some(_), None) if view.primary.is_some() => false,
            // What an agent before this one held: where it belongs is not known before the store has said who leads.
            (Some(_), None) if self.is_new_here(view) && self.begun.elapsed() < limit => true,
            (Some(hold), cause) if !is_lost && hold.since.elapsed() >= limit => {
                if self.spent != cause || cause.is_none() && !hold.is_deposed {
                    tracing::warn!(?limit, "no primary was open within the time to wait for it: resuming");
                }
                self.spent = cause;
                false
            }
            // Patroni takes its announcement back as soon as the candidate holds the key, before it is writable.
            (Some(_), _) => true,
        }
    }

    /// Whoever the key names has no address, and nobody else is right: what is held has no place to go on at. Without a
    /// primary since this agent began that holds of whatever one before it has paused.
    pub(super) fn is_lost(&self, view: &ClusterView) -> bool {
        let is_known = self.target.is_some() || view.leader_key.is_none();
        (self.is_deposed(view) || !is_known) && self.place(view).is_none()
    }

    /// No primary was open since the agent began, and nobody is named.
    fn is_new_here(&self, view: &ClusterView) -> bool {
        self.target.is_none() && self.place(view).is_none()
    }

    /// Pauses what leads to the primary. True once no transaction is under way any more: they are waited for while it
    /// leads, and ended once it is deposed.
    pub(super) async fn hold_back(&mut self, is_deposed: bool) -> Result<bool, String> {
        let running = self.console.databases().await.map_err(|error| error.to_string())?;
        let pgbouncer = &self.config.pgbouncer;
        let hold = self.hold.get_or_insert_with(|| {
            tracing::info!(deposed = is_deposed, "the primary changes: pausing");
            Hold::begin(&pgbouncer.databases_file)
        });
        hold.is_deposed |= is_deposed;
        let limit = self.config.cluster.switchover_hold;
        let places = || self.ahead.iter().chain(&self.target).chain(&self.loaded);
        let is_ours = |one: &&Database| places().any(|place| self.file.owns(one, place));
        // One that is paused already is somebody else's to resume.
        let more = running.iter().filter(|one| one.halted.is_none()).filter(is_ours);
        let more = more.map(|one| one.name.clone()).collect();
        hold.pause(more, || Console::patient(pgbouncer, limit)).map_err(|error| error.to_string())?;
        if is_deposed {
            let ended = servers::end(&mut self.console, hold.databases()).await.map_err(|error| error.to_string())?;
            if ended > 0 {
                tracing::warn!(ended, "connections to a deposed primary were ended");
            }
        }
        match tokio::time::timeout(pgbouncer.check_interval, hold.quiet(&mut self.console)).await {
            Ok(quiet) => quiet.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Where PgBouncer cannot be brought to whoever leads now, and leads to one that is deposed and may go on taking
    /// writes, clients wait.
    pub(super) async fn keep_from_deposed(&mut self, view: &ClusterView) {
        let Ok(running) = self.console.databases().await else { return };
        let Some(deposed) = self.deposed_place(&running, view) else { return };
        self.loaded = Some(deposed);
        if let Err(why) = self.hold_back(true).await {
            tracing::warn!(why, "clients go on at a deposed primary");
        }
    }

    /// Where these databases lead, if that is no more the right place for writes and may still take them.
    pub(super) fn deposed_place(&self, running: &[Database], view: &ClusterView) -> Option<Target> {
        let says_no =
            |name: &str| view.members.get(name).is_some_and(|member| matches!(member.proof, Proof::NotPrimary { .. }));
        let deposed = view.cut.keys().filter(|name| !says_no(name));
        let places = deposed.filter_map(|name| {
            // The member key of a dead one goes.
            target_at(view, name, None).or_else(|| self.loaded.clone().filter(|loaded| loaded.leader == *name))
        });
        let wanted = self.target.as_ref().map(|target| (&target.host, target.port));
        let mut places = places.filter(|place| wanted != Some((&place.host, place.port)));
        places.find(|place| running.iter().any(|one| self.file.owns(one, place) && place.is_where(one)))
    }

    /// Ends what [`Self::hold_back`] began by refusing those that wait.
    pub(super) async fn close(&mut self) -> Result<(), String> {
        let Some(hold) = &mut self.hold else { return Ok(()) };
        let shut = self.shut.shut(hold, &mut self.console).await;
        if shut.is_ok() {
            tracing::warn!(
                "databases that lead to a deposed primary are disabled until an agent has brought them away"
            );
            hold.forget()?;
            self.hold = None;
        }
        shut
    }

    /// Ends what [`Self::hold_back`] began, if anything.
    pub(super) async fn resume(&mut self) -> Result<(), String> {
        let Some(hold) = &mut self.hold else { return Ok(()) };
        if let Ok(waited) = self.console.longest_wait(hold.databases()).await {
            self.waited = Some(waited);
        }
        hold.resume(&mut self.console).await?;
        tracing::info!(held = ?hold.since.elapsed(), longest_wait = ?self.waited, "resumed");
        self.hold = None;
        Ok(())
    }
}
