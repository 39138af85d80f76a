//! How urgently each member is asked for its proof. A question costs a member's Patroni some milliseconds of Python and
//! PostgreSQL a query, from every pgsplice and every agent: only the one whose answer is waited for is asked tightly.

use std::time::Duration;

use super::{Named, Now, Truth};

/// How long after a change the fast paces last. A standby cluster disagrees for ever.
const FAST_FOR: Duration = Duration::from_secs(60);
/// How long after the key named it a member is expected to be promoted at any moment. One that restarts in its place,
/// or is not to be reached, takes longer and is only held up by more questions.
const PROMOTED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Nothing hangs on it.
    Slow,
    /// What it says may cut sessions or open the primary pool.
    Fast,
    /// The key has just named it and everybody waits for its proof, or without Patroni for its word about another's.
    Tight,
}

impl Truth {
    pub fn pace(&self, member: &str, now: Now) -> Pace {
        if self.is_awaited(member, now) {
            return Pace::Tight;
        }
        if now.mono.saturating_duration_since(self.changed) > FAST_FOR {
            return Pace::Slow;
        }
        let is_open = self.open.as_ref().is_some_and(|open| open.member == member);
        match &self.named {
            Named::Unknown => Pace::Slow,
            // Any of them may be promoted next.
            Named::Absent { .. } if self.rules.members_alone && !self.once_open.is_empty() => Pace::Fast,
            // Whoever has taken back its proof cannot be primary again before the key names it.
            Named::Absent { .. } if self.once_open.contains_key(member) && !self.has_denied(member) => Pace::Fast,
            Named::Absent { .. } => Pace::Slow,
            Named::Member { name, .. } if name == member && is_open => Pace::Slow,
            Named::Member { name, since, .. } if name == member => {
                // Without Patroni a question is a connection to PostgreSQL.
                let is_near = now.mono.saturating_duration_since(*since) < PROMOTED_WITHIN;
                if is_near && !self.rules.members_alone { Pace::Tight } else { Pace::Fast }
            }
            // Two that prove primary.
            Named::Member { .. } if self.standing_proof(member, now).is_some() => Pace::Fast,
            Named::Member { .. } => Pace::Slow,
        }
    }

    fn has_denied(&self, member: &str) -> bool {
        self.words.get(member).is_some_and(|word| word.denied.is_some())
    }
}
