//! What one member said of itself, as long as it holds.

use std::time::{Duration, Instant};

use super::Now;
use crate::cluster::Proof;
use crate::cluster::proof::{Answer, UNKNOWN, is_primary_role};

/// The state of a member that was not heard for a while, where nobody but itself tells.
const SILENT: &str = "silent";

/// All that one member has said.
#[derive(Clone, Debug, Default)]
pub(super) struct Word {
    pub(super) api_url: String,
    /// The last primary proof, until the member says something else.
    pub(super) proved: Option<Proved>,
    /// Its last word, silence left out: role and state, if it was not a proof.
    pub(super) denied: Option<Denied>,
    /// The system identifier it said last.
    pub(super) system_id: Option<String>,
    /// When its last word was asked for, silence left out.
    pub(super) heard: Option<Instant>,
    /// It is up, and has no connection left to say more.
    pub(super) is_full: bool,
    /// What the view shows.
    pub(super) shown: Proof,
    /// Its WAL position as it said last, in bytes: written by a primary, replayed by others.
    pub(super) wal: Option<u64>,
    /// When the newest answer was asked for: an older one that arrives late changes nothing.
    pub(super) asked: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(super) struct Proved {
    pub(super) timeline: u32,
    pub(super) system_id: Option<String>,
    pub(super) asked: Instant,
    /// When the first answer with this timeline was heard: whoever is asked from then on is asked after its promotion.
    pub(super) found: Instant,
    /// When an answer was asked for that leaves this standing.
    pub(super) alive: Instant,
}

#[derive(Clone, Debug)]
pub(super) struct Denied {
    pub(super) role: String,
    pub(super) state: String,
    /// When the first such answer was asked for, of those without a proof between them.
    pub(super) since: Instant,
}

// === impl Word ===

impl Word {
    /// What stands for `hold` stands on while the member has no connection left to say it again.
    pub(super) fn hear(&mut self, answer: Answer, asked: Instant, now: Now, hold: Duration) {
        let at = now.wall;
        if let Answer::Primary { system_id, .. } | Answer::NotPrimary { system_id, .. } = &answer {
            self.heard = Some(asked);
            self.system_id = system_id.clone().or(self.system_id.take());
        }
        self.is_full = matches!(answer, Answer::Full { .. });
        if self.is_full {
            let told = self.heard.iter_mut().chain(self.proved.as_mut().map(|proved| &mut proved.alive));
            told.filter(|at| asked.saturating_duration_since(**at) < hold).for_each(|at| *at = asked);
        }
        self.shown = match answer {
            Answer::Primary { timeline, system_id, wal } => {
                self.wal = wal;
                let before = self.proved.take().filter(|before| before.timeline == timeline);
                let found = before.map_or(now.mono, |before| before.found);
                self.proved = Some(Proved { timeline, system_id, asked, found, alive: asked });
                self.denied = None;
                Proof::Primary { timeline, at }
            }
            Answer::NotPrimary { role, state, timeline, wal, .. } => {
                self.wal = wal;
                self.proved = None;
                let since = self.denied.as_ref().map_or(asked, |denied| denied.since);
                self.denied = Some(Denied { role: role.clone(), state: state.clone(), since });
                Proof::NotPrimary { role, state, timeline, at }
            }
            // Silence neither proves nor takes back: the last proof lapses by itself.
            Answer::Silent { why } | Answer::Full { why } => {
                self.wal = None;
                match &self.shown {
                    Proof::Silent { since, .. } => Proof::Silent { why, since: *since },
                    _ => Proof::Silent { why, since: at },
                }
            }
        };
    }

    /// Whether it is known to be, or not to be, primary.
    pub(super) fn has_told_role(&self) -> bool {
        self.proved.is_some() || self.denied.as_ref().is_some_and(|denied| denied.role != UNKNOWN)
    }

    /// Role, state and timeline by its own word alone. Silence takes nothing back at first, as with a proof.
    pub(super) fn standing(&self, now: Now, hold: Duration) -> (String, String, Option<u32>) {
        let timeline = match &self.shown {
            Proof::Primary { timeline, .. } => Some(*timeline),
            Proof::NotPrimary { timeline, .. } => *timeline,
            Proof::NotAsked | Proof::Silent { .. } => None,
        };
        let (role, state) = match (&self.proved, &self.denied) {
            (Some(_), _) => ("primary", "running"),
            (None, Some(denied)) => (&*denied.role, &*denied.state),
            (None, None) => (UNKNOWN, SILENT),
        };
        let is_fresh = self.heard.is_some_and(|at| now.mono.saturating_duration_since(at) < hold);
        (role.into(), if is_fresh { state } else { SILENT }.into(), timeline)
    }
}

// === impl Denied ===

impl Denied {
    /// Whether it is in recovery or demoted, and not merely starting or crashed in its place.
    pub(super) fn is_demotion(&self) -> bool {
        !is_primary_role(&self.role) && !matches!(&*self.role, "promoted" | UNKNOWN)
    }
}
