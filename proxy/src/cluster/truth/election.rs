//! Whom the members themselves name: without Patroni always, with it while the store is away and the leader it named
//! says that it leads no more. Proofs decide: out of recovery, of the same database system, on the highest timeline.

use std::collections::BTreeMap;

use super::{By, Named, Now, Proved, Truth, Word};
use crate::cluster::{Proof, StoreHealth};

impl Truth {
    /// Names the leader by what the members say, where that is the rule now.
    pub(super) fn elect(&mut self, now: Now) {
        let found = if self.rules.members_alone {
            self.settle_system();
            if self.keys.leader.is_some() {
                return;
            }
            self.highest(now).filter(|(name, proved)| self.unasked(name, proved).next().is_none())
        } else {
            match self.successor(now) {
                Some(found) => Some(found),
                None => return,
            }
        };
        match found {
            Some((name, _)) if self.is_named(&name) => {}
            Some((name, proved)) => {
                // The proof it is named for is the one that opens it.
                self.named = Named::Member { name: name.clone(), since: proved.asked, by: By::Members };
                self.raise_floor(&name, now);
            }
            None if matches!(self.named, Named::Absent { .. } | Named::Unknown) => {}
            None => self.named = Named::Absent { since: now.mono },
        }
    }

    /// Why nobody is named.
    pub(super) fn nobody(&self, now: Now) -> String {
        if !self.rules.members_alone {
            return "no member holds the leader key".into();
        }
        if let Some((name, word)) = self.unheard(now) {
            return match &word.shown {
                Proof::NotAsked => "not every member has been asked yet".into(),
                Proof::Silent { why, .. } => format!("{name} may lead, and does not answer: {why}"),
                Proof::Primary { .. } | Proof::NotPrimary { .. } => format!("{name} may lead, and is not up yet"),
            };
        }
        if self.keys.initialize.is_none() && self.words.values().any(|word| word.system_id.is_some()) {
            return "the members are of different database systems".into();
        }
        if let Some((name, proved)) = self.highest(now)
            && let Some(other) = self.unasked(&name, &proved).next()
        {
            return format!("{name} proves timeline {}, and {other} is asked whether it does as well", proved.timeline);
        }
        let proofs = self.proofs(now);
        match proofs.as_slice() {
            [] => "no member proves to be primary".into(),
            [(name, proved)] => {
                let (timeline, floor) = (proved.timeline, self.floor());
                format!(
                    "{name} proves timeline {timeline}, but {} has proved {} before, so that {name} was not promoted \
                     after it: if that is on purpose, restart pgsplice",
                    floor.by, floor.timeline
                )
            }
            several => {
                let names: Vec<_> =
                    several.iter().map(|(name, proved)| format!("{name} ({})", proved.timeline)).collect();
                format!(
                    "several members prove to be primary, and none is promoted after the others: {}",
                    names.join(", ")
                )
            }
        }
    }

    /// The one member on the highest timeline, if it leads already or was promoted after whoever led before.
    fn highest(&self, now: Now) -> Option<(String, Proved)> {
        // At first each must have had its say: the next answer may bring a higher timeline.
        if self.unheard(now).is_some() {
            return None;
        }
        let floor = self.floor();
        let mut proofs = self.proofs(now);
        let rivals = proofs.iter().filter(|(_, proved)| proved.timeline == floor.timeline).count();
        proofs.retain(|(name, proved)| {
            // Of two that were promoted together another pgsplice may have seen the other one first.
            let is_rivaled = floor.seen_promoted && rivals > 1;
            proved.timeline > floor.timeline || proved.timeline == floor.timeline && *name == floor.by && !is_rivaled
        });
        let top = proofs.iter().map(|(_, proved)| proved.timeline).max()?;
        proofs.retain(|(_, proved)| proved.timeline == top);
        match proofs.as_slice() {
            [(name, proved)] => Some((name.to_string(), (*proved).clone())),
            _ => None,
        }
    }

    /// Whose word is to be heard before `name` is named: they answer, and were not asked since it was found to be promoted.
    /// What was asked together with it may have been answered before it was promoted, and arrive after. Of two that were
    /// promoted everybody hears of both this way, whichever of them they ask first.
    fn unasked(&self, name: &str, proved: &Proved) -> impl Iterator<Item = &str> {
        let is_new = proved.timeline > self.floor().timeline;
        let is_unasked =
            |word: &Word| !matches!(word.shown, Proof::Silent { .. }) && word.asked.is_none_or(|at| at < proved.found);
        let others = self.words.iter().filter(move |(other, _)| is_new && *other != name);
        others.filter(move |(_, word)| is_unasked(word)).map(|(other, _)| &**other)
    }

    /// Somebody was promoted, and this member has yet to say whether it was as well.
    pub(super) fn is_awaited(&self, member: &str, now: Now) -> bool {
        let claim = if self.rules.members_alone { self.highest(now) } else { None };
        claim.is_some_and(|(name, proved)| self.unasked(&name, &proved).any(|other| other == member))
    }

    /// While the store is away: whoever was promoted after the leader it named, if that one says itself that it is
    /// demoted. Only a leader's own word counts: its silence may be ours, and the store may have named another.
    fn successor(&self, now: Now) -> Option<(String, Proved)> {
        let Named::Member { name, .. } = &self.named else { return None };
        let denied = self.words.get(name)?.denied.as_ref()?;
        let floor = self.floor();
        let system = self.keys.initialize.as_ref()?;
        if !matches!(self.store, StoreHealth::Unreachable { .. }) || !denied.is_demotion() || floor.timeline == 0 {
            return None;
        }
        let (next, proved) = self.highest(now)?;
        let is_after = proved.timeline > floor.timeline && proved.asked >= denied.since;
        (is_after && proved.system_id.as_ref() == Some(system)).then_some((next, proved))
    }

    /// Who proves to be primary, of the cluster's own database system.
    fn proofs(&self, now: Now) -> Vec<(&str, &Proved)> {
        let names = self.words.keys().filter_map(|name| Some((&**name, self.standing_proof(name, now)?)));
        names.filter(|(_, proved)| proved.system_id.is_none() || proved.system_id == self.keys.initialize).collect()
    }

    /// While no leader is known: a member that has not told its role yet and may be the one, for as long as silence takes
    /// nothing back, or for as long as it is alive.
    fn unheard(&self, now: Now) -> Option<(&String, &Word)> {
        if self.floor().timeline > 0 {
            return None;
        }
        let is_new = now.mono.saturating_duration_since(self.begun) < self.rules.proof_hold;
        let is_waited_for = |word: &Word| is_new || word.is_full || matches!(word.shown, Proof::NotAsked);
        self.words.iter().find(|(_, word)| !word.has_told_role() && is_waited_for(word))
    }

    fn is_named(&self, member: &str) -> bool {
        matches!(&self.named, Named::Member { name, .. } if name == member)
    }

    /// The database system that most members say they are of; among as many the one held so far, if it is among them.
    fn settle_system(&mut self) {
        let mut votes = BTreeMap::<&String, usize>::new();
        for id in self.words.values().filter_map(|word| word.system_id.as_ref()) {
            *votes.entry(id).or_default() += 1;
        }
        let most = votes.values().max().copied();
        let leading: Vec<&String> =
            votes.into_iter().filter(|(_, count)| Some(*count) == most).map(|(id, _)| id).collect();
        let held = leading.iter().find(|id| self.floors.contains_key(**id));
        let only = leading.first().filter(|_| leading.len() == 1);
        self.keys.initialize = held.or(only).map(|id| (*id).clone());
        self.note_system();
    }
}

#[cfg(test)]
mod tests;
