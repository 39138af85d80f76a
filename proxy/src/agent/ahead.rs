//! A step taken before its time: while PgBouncer is paused and no server connection is left, it is brought to the member
//! that the leader key names. When that one is open all that is left to do is to resume.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Agent, Cause, target_at, turned};
use crate::cluster::ClusterView;

impl Agent {
    /// Only within a hold in which everything is quiet: nobody gets to the new place before the hold ends, and whatever
    /// ends it first sees to it that the databases point to where they should then.
    pub(super) async fn go_ahead(&mut self, view: &ClusterView, views: &mut watch::Receiver<Arc<ClusterView>>) {
        let Some(Cause::Deposed { by }) = self.cause(view) else { return };
        // Its timeline begins when it is promoted.
        let Some(next) = target_at(view, &by, 0).filter(|next| self.ahead.as_ref() != Some(next)) else { return };
        // To its end: one writer of the file at a time.
        let written = self.write_file(Some(next.clone())).await;
        let loading = async {
            written?;
            let running = self.console.databases().await.map_err(|error| error.to_string())?;
            self.load(&running, &next).await
        };
        let loaded = tokio::select! {
            biased;
            () = turned(views, view) => return,
            loaded = loading => loaded,
        };
        match loaded {
            Ok(_) => {
                tracing::info!(leader = next.leader, "databases loaded ahead");
                self.ahead = Some(next);
            }
            // Tried again, and told to the registry when the new primary is open.
            Err(why) => tracing::warn!(why, "databases cannot be loaded ahead"),
        }
    }
}
