//! Whom the members themselves name: without Patroni always, with it while the store is away and the leader it named
//! says that it leads no more. Proofs decide: out of recovery, of the same database system, on the highest timeline.

use std::collections::BTreeMap;

use super::{By, Named, Now, Proved, Truth};
use crate::cluster::{Proof, StoreHealth};

impl Truth {
    /// Names the leader by what the members say, where that is the rule now.
    pub(super) fn elect(&mut self, now: Now) {
        let found = if self.rules.members_alone {
            self.settle_system();
            if self.keys.leader.is_some() {
                return;
            }
            self.highest(now)
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
        if self.unheard().is_some() {
            return "not every member has been asked yet".into();
        }
        if self.keys.initialize.is_none() && self.words.values().any(|word| word.system_id.is_some()) {
            return "the members are of different database systems".into();
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
        if !matches!(self.named, Named::Member { .. }) && self.unheard().is_some() {
            return None;
        }
        let floor = self.floor();
        let mut proofs = self.proofs(now);
        proofs.retain(|(name, proved)| {
            proved.timeline > floor.timeline || proved.timeline == floor.timeline && *name == floor.by
        });
        let top = proofs.iter().map(|(_, proved)| proved.timeline).max()?;
        proofs.retain(|(_, proved)| proved.timeline == top);
        match proofs.as_slice() {
            [(name, proved)] => Some((name.to_string(), (*proved).clone())),
            _ => None,
        }
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

    /// A member that was never asked.
    fn unheard(&self) -> Option<&String> {
        self.words.iter().find(|(_, word)| matches!(word.shown, Proof::NotAsked)).map(|(name, _)| name)
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
mod tests {
    use std::time::Duration;

    use crate::cluster::Member;
    use crate::cluster::proof::Answer;
    use crate::cluster::truth::tests::{HOLD, World};

    /// Three members without Patroni, none of which was asked.
    fn alone() -> World {
        let mut world = World::new();
        world.truth.rules.members_alone = true;
        world.keys.remove("initialize");
        world.listed();
        world
    }

    /// pg1 leads on timeline 1, the others follow.
    fn led() -> World {
        let mut world = alone();
        world.proves("pg1", 1);
        world.replica("pg2");
        assert_eq!((world.primary(), &*world.why()), (None, "not every member has been asked yet"));
        world.replica("pg3");
        assert_eq!(world.primary(), Some("pg1"));
        world
    }

    impl World {
        fn replica(&mut self, member: &str) {
            self.of(member, "77");
        }

        fn of(&mut self, member: &str, system_id: &str) {
            let (role, state, system_id) = ("replica".into(), "running".into(), Some(system_id.into()));
            self.answers(member, Answer::NotPrimary { role, state, timeline: Some(1), system_id, wal: None });
        }

        fn is_cut(&self, member: &str) -> bool {
            self.view().cut.contains_key(member)
        }

        fn standing(&self, member: &str) -> (String, String) {
            let Member { role, state, .. } = self.view().members[member].clone();
            (role, state)
        }
    }

    #[test]
    fn the_one_that_proves_leads_and_the_roles_are_what_they_say() {
        let mut world = led();
        let view = world.view();
        assert_eq!((view.system_id.as_deref(), &view.leader_key), (Some("77"), &None));
        assert_eq!(world.standing("pg1"), ("primary".into(), "running".into()));
        assert_eq!(world.standing("pg2"), ("replica".into(), "running".into()));
        world.silent("pg2");
        assert_eq!(world.standing("pg2").1, "running");
        world.pass(HOLD);
        assert_eq!(world.standing("pg2"), ("replica".into(), "silent".into()));
        world.listed();
        assert_eq!(world.standing("pg2"), ("replica".into(), "silent".into()));
    }

    #[test]
    fn a_promoted_member_takes_over_at_once_and_the_old_one_is_cut_and_stays_out() {
        let mut world = led();
        world.proves("pg2", 2);
        assert_eq!((world.primary(), world.is_cut("pg1"), world.is_cut("pg2")), (Some("pg2"), true, false));
        assert_eq!(world.view().cut["pg1"], "pg2 proves to be primary on a higher timeline");
        world.proves("pg1", 1);
        assert_eq!((world.primary(), world.is_cut("pg1")), (Some("pg2"), true));
        world.silent("pg2");
        world.pass(HOLD);
        world.proves("pg1", 1);
        assert_eq!(world.primary(), None);
        let why = "pg1 proves timeline 1, but pg2 has proved 2 before, so that pg1 was not promoted after it: \
                   if that is on purpose, restart pgsplice";
        assert_eq!(world.why(), why);
        world.proves("pg2", 2);
        assert_eq!(world.primary(), Some("pg2"));
    }

    #[test]
    fn a_second_one_on_the_same_timeline_gets_nothing_even_when_the_first_is_gone() {
        let mut world = led();
        world.proves("pg2", 1);
        assert_eq!(world.primary(), Some("pg1"));
        world.silent("pg1");
        world.pass(HOLD);
        world.proves("pg2", 1);
        assert!(
            world.primary().is_none() && world.why().contains("pg2 proves timeline 1, but pg1 has"),
            "{}",
            world.why()
        );
        // At the start there is nobody who led before.
        let mut world = alone();
        world.replica("pg3");
        world.proves("pg1", 3);
        world.proves("pg2", 3);
        assert!(world.primary().is_none() && world.why().ends_with("pg1 (3), pg2 (3)"), "{}", world.why());
    }

    #[test]
    fn a_primary_that_is_demoted_is_cut_and_one_that_starts_or_is_silent_is_not() {
        let mut world = led();
        world.says("pg1", "unknown", "the database system is starting up");
        assert!(world.primary().is_none() && !world.is_cut("pg1"));
        assert_eq!(world.why(), "no member proves to be primary");
        world.proves("pg1", 1);
        world.silent("pg1");
        assert_eq!(world.primary(), Some("pg1"));
        world.pass(HOLD);
        assert!(world.primary().is_none() && !world.is_cut("pg1"));
        world.replica("pg1");
        assert!(world.is_cut("pg1"));
    }

    #[test]
    fn a_member_of_another_database_system_counts_for_nothing() {
        let mut world = led();
        world.answers("pg3", Answer::Primary { timeline: 9, system_id: Some("88".into()), wal: None });
        assert_eq!(world.primary(), Some("pg1"));
        let mut world = alone();
        world.silent("pg3");
        world.proves("pg1", 1);
        world.of("pg2", "88");
        assert_eq!((world.primary(), &*world.why()), (None, "the members are of different database systems"));
        world.of("pg3", "77");
        assert_eq!(world.primary(), Some("pg1"));
    }

    #[test]
    fn the_configuration_may_name_the_only_one_that_can_lead() {
        let mut world = led();
        world.leader("pg1");
        world.proves("pg2", 2);
        assert_eq!((world.primary(), world.is_cut("pg2")), (Some("pg1"), true));
        world.replica("pg1");
        assert_eq!(world.why(), "the configuration names pg1, which says it is replica (running)");
        assert_eq!(world.view().leader_key, None);
    }

    #[test]
    fn a_role_lapses_by_time_alone() {
        let mut world = led();
        let deadline = world.truth.deadline(world.now).unwrap();
        assert!(deadline <= world.now.mono + HOLD);
        world.pass(HOLD - Duration::from_millis(1));
        assert_eq!(world.primary(), Some("pg1"));
    }

    #[test]
    fn store_away_and_whoever_was_promoted_after_the_leader_stepped_down_is_open() {
        let mut world = World::open();
        world.away();
        world.proves("pg2", 2);
        assert_eq!(world.primary(), None, "pg1 still says that it is primary");
        world.says("pg1", "replica", "running");
        assert_eq!((world.primary(), world.is_cut("pg1"), world.is_cut("pg2")), (Some("pg2"), true, false));
        assert_eq!(
            (world.view().leader_key.as_deref(), world.view().primary.as_ref().unwrap().timeline),
            (Some("pg1"), 2)
        );
        // And so on, but not on a proof from before.
        world.proves("pg3", 3);
        world.pass(Duration::from_secs(1));
        world.says("pg2", "replica", "running");
        assert_eq!(world.primary(), None);
        world.proves("pg3", 3);
        assert_eq!(world.primary(), Some("pg3"));
        // The store has the last word.
        world.leader("pg1");
        assert_eq!((world.primary(), world.is_cut("pg3")), (None, true));
        assert_eq!(world.why(), "the leader key names pg1, which says it is replica (running)");
    }

    #[test]
    fn store_away_and_a_leader_that_is_silent_or_starts_has_no_successor() {
        for word in ["silence", "a start", "promotion"] {
            let mut world = World::open();
            world.away();
            world.pass(HOLD);
            match word {
                "silence" => world.silent("pg1"),
                "a start" => world.says("pg1", "primary", "starting"),
                _ => world.says("pg1", "promoted", "running"),
            }
            world.proves("pg2", 2);
            assert_eq!(world.primary(), None, "{word}");
        }
    }

    #[test]
    fn store_away_and_a_successor_needs_a_higher_timeline_the_same_system_and_no_rival() {
        for (name, timeline, system_id) in [("pg2", 1, Some("77")), ("pg2", 2, Some("88")), ("pg2", 2, None)] {
            let mut world = World::open();
            world.away();
            world.says("pg1", "replica", "running");
            let system_id = system_id.map(Into::into);
            world.answers(name, Answer::Primary { timeline, system_id: system_id.clone(), wal: None });
            assert_eq!(world.primary(), None, "{timeline} {system_id:?}");
        }
        let mut world = World::open();
        world.away();
        world.proves("pg2", 2);
        world.proves("pg3", 2);
        world.says("pg1", "replica", "running");
        assert_eq!(world.primary(), None);
    }

    #[test]
    fn store_away_before_a_leader_proved_itself_and_the_one_before_it_is_no_successor() {
        let mut world = World::new();
        world.leader("pg2");
        world.away();
        // The old leader on its way down, while the new one is not promoted yet.
        world.says("pg2", "replica", "running");
        world.proves("pg1", 1);
        assert_eq!(world.primary(), None);
    }
}
