//! Where the databases belong, which is ahead of the open primary once the last one is deposed: while PgBouncer is paused
//! and no server connection is left, it is brought to the member that the leader key names. All that is left is to resume.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Agent, Cause, Target, target_at, turned};
use crate::cluster::ClusterView;

impl Agent {
    /// The last open primary, or whom the key names once that one is deposed. There is no way back unless the key goes
    /// back: a deposed primary may take writes that are lost, the next one refuses them until it is open. None: not known.
    pub(super) fn place(&self, view: &ClusterView) -> Option<Target> {
        let last = self.target.as_ref().map(|target| &target.leader);
        let next = match self.cause(view) {
            Some(Cause::Deposed { by }) => Some(by),
            // The hold of an agent before this one: whoever it was for, no other than the key's is right.
            _ if last.is_none() && self.hold.is_some() => view.leader_key.clone(),
            _ => None,
        };
        if let Some(next) = next {
            // Its timeline begins when it is promoted; its member key may go first.
            let known = || self.ahead.clone().filter(|ahead| ahead.leader == next);
            return target_at(view, &next, None).or_else(known);
        }
        let open = view.primary.as_ref().map(|primary| &primary.member);
        let is_back = last.is_some() && (open == last || view.leader_key.as_ref() == last);
        self.ahead.clone().filter(|_| !is_back).or_else(|| self.target.clone())
    }

    /// Takes the [`Self::place`] as where the databases go now, and writes it.
    pub(super) async fn head_for_place(&mut self, view: &ClusterView) -> Result<Option<Target>, String> {
        let place = self.place(view);
        self.ahead = place.clone().filter(|place| self.target.as_ref() != Some(place));
        // To its end: one writer of the file at a time.
        self.write_file(place).await
    }

    /// Only within a hold in which everything is quiet: nobody gets to the new place before the hold ends. What ends it
    /// resumes there, or first brings the databases elsewhere.
    pub(super) async fn go_ahead(&mut self, view: &ClusterView, views: &mut watch::Receiver<Arc<ClusterView>>) {
        if !self.is_deposed(view) {
            return;
        }
        let written = self.head_for_place(view).await;
        let loading = async {
            // Without an address there is nothing to load yet.
            let Some(next) = written? else { return Ok(None) };
            let running = self.console.databases().await.map_err(|error| error.to_string())?;
            Ok(self.load(&running, &next).await?.then_some(next.leader))
        };
        let loaded = tokio::select! {
            biased;
            () = turned(views, view) => return,
            loaded = loading => loaded,
        };
        match loaded {
            Ok(Some(leader)) => tracing::info!(leader, "databases loaded ahead"),
            Ok(None) => {}
            // Tried again, and told to the registry when the new primary is open.
            Err::<_, String>(why) => tracing::warn!(why, "databases cannot be loaded ahead"),
        }
    }
}
