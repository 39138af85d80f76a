//! Whom the members name, a sentence each.

use std::time::Duration;

use crate::cluster::Member;
use crate::cluster::proof::Answer;
use crate::cluster::truth::tests::{DEBOUNCE, HOLD, World};
use crate::cluster::truth::{Pace, Truth};

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

    fn full(&mut self, member: &str) {
        self.answers(member, Answer::Full { why: "too many clients".into() });
    }

    fn replayed(&mut self, member: &str, wal: u64) {
        let (role, state, system_id) = ("replica".into(), "running".into(), Some("77".into()));
        self.answers(member, Answer::NotPrimary { role, state, timeline: Some(1), system_id, wal: Some(wal) });
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
    assert!(world.primary().is_none() && world.why().contains("pg2 proves timeline 1, but pg1 has"), "{}", world.why());
    // At the start there is nobody who led before.
    let mut world = alone();
    world.replica("pg3");
    world.proves("pg1", 3);
    world.proves("pg2", 3);
    assert!(world.primary().is_none() && world.why().ends_with("pg1 (3), pg2 (3)"), "{}", world.why());
}

#[test]
fn whoever_misses_its_first_questions_is_waited_for_and_not_for_ever() {
    for (starts, why) in [(false, "does not answer: connection refused"), (true, "is not up yet")] {
        let mut world = alone();
        let others = |world: &mut World| {
            world.replica("pg3");
            match starts {
                true => world.says("pg2", "unknown", "the database system is starting up"),
                false => world.silent("pg2"),
            }
        };
        others(&mut world);
        world.pass(HOLD - DEBOUNCE);
        others(&mut world);
        world.proves("pg1", 1);
        assert_eq!((world.primary(), world.why()), (None, format!("pg2 may lead, and {why}")));
        assert_eq!(world.truth.deadline(world.now), Some(world.now.mono + DEBOUNCE));
        let mut other = alone();
        other.replica("pg3");
        other.silent("pg2");
        other.proves("pg1", 1);
        other.proves("pg2", 2);
        assert_eq!(other.primary(), Some("pg2"));
        world.pass(DEBOUNCE);
        assert_eq!(world.primary(), Some("pg1"));
    }
}

#[test]
fn what_was_proved_before_a_change_of_the_configuration_still_counts() {
    let mut world = led();
    world.proves("pg2", 2);
    let floor = world.view().floor.clone();
    let changed = || {
        let mut world = alone();
        world.truth = Truth::new(world.truth.rules.clone(), world.now).after(floor.clone());
        world.listed();
        world
    };
    let mut world = changed();
    world.proves("pg1", 1);
    world.replica("pg3");
    world.pass(HOLD);
    world.proves("pg1", 1);
    assert!(world.why().starts_with("pg1 proves timeline 1, but pg2 has proved 2 before"), "{}", world.why());
    let mut world = changed();
    world.proves("pg2", 2);
    assert_eq!(world.primary(), Some("pg2"), "it leads already: nobody is waited for");
}

#[test]
fn a_member_without_a_free_connection_is_what_it_was_and_never_taken_for_gone() {
    let mut world = led();
    for _ in 0..3 {
        world.pass(HOLD - DEBOUNCE);
        world.full("pg1");
        world.full("pg2");
    }
    assert_eq!((world.primary(), world.standing("pg2").1.as_str()), (Some("pg1"), "running"));
    world.pass(HOLD);
    assert_eq!((world.primary(), world.standing("pg2").1.as_str()), (None, "silent"));
    world.full("pg1");
    assert_eq!(world.primary(), None, "who was silent may come back as anything");
    // At the start it may be the one that leads.
    let mut world = alone();
    world.replica("pg3");
    world.full("pg2");
    world.pass(HOLD);
    world.proves("pg1", 1);
    assert_eq!((world.primary(), &*world.why()), (None, "pg2 may lead, and does not answer: too many clients"));
    world.proves("pg2", 2);
    world.replica("pg3");
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg2"));
}

#[test]
fn of_two_that_were_promoted_everybody_names_the_same_one_or_nobody_whichever_they_hear_of_first() {
    // pg2 is promoted at some moment and pg3 a while after it; a process asks them in some order, as often as it likes.
    let orders = [["pg2", "pg3"], ["pg3", "pg2"]];
    for (order, asks_before) in orders.into_iter().flat_map(|order| [true, false].map(|before| (order, before))) {
        let mut world = led();
        world.pass(DEBOUNCE);
        if asks_before {
            world.proves("pg2", 2);
            assert_eq!((world.primary(), world.pace("pg3")), (None, Pace::Tight));
            assert_eq!(world.why(), "pg2 proves timeline 2, and pg1 is asked whether it does as well");
            world.replica("pg3");
            world.silent("pg1");
            assert_eq!(world.primary(), Some("pg2"), "pg3 was not promoted before it");
        }
        world.pass(Duration::from_secs(1));
        for member in order {
            world.proves(member, 2);
            assert_ne!(world.primary(), Some("pg3"), "{order:?}");
        }
        world.proves("pg1", 1);
        assert_ne!(world.primary(), Some("pg3"), "{order:?}");
    }
}

/// pg2 is promoted, and pg3 before pg2 was asked again: one process asked both before the second promotion, another one
/// before the first, and either heard of both in whatever order.
#[test]
fn what_was_asked_in_the_same_round_as_the_one_that_was_promoted_does_not_count_for_it() {
    let orders = [["pg2", "pg3"], ["pg3", "pg2"]];
    for (promoted, order) in ["pg2", "pg3"].into_iter().flat_map(|promoted| orders.map(|order| (promoted, order))) {
        let mut world = led();
        world.silent("pg1");
        world.pass(DEBOUNCE);
        let asked = world.now.mono;
        world.pass(Duration::from_millis(1));
        for member in order {
            let system_id = Some("77".into());
            let answer = match member == promoted {
                true => Answer::Primary { timeline: 2, system_id, wal: None },
                false => {
                    let (role, state) = ("replica".into(), "running".into());
                    Answer::NotPrimary { role, state, timeline: Some(1), system_id, wal: None }
                }
            };
            world.answers_late(member, asked, answer);
        }
        assert_eq!(world.primary(), None, "{promoted} {order:?}");
        let other = if promoted == "pg2" { "pg3" } else { "pg2" };
        assert_eq!(world.pace(other), Pace::Tight);
        world.proves(other, 2);
        assert_eq!(world.primary(), None, "{promoted} {order:?}");
        world.replica(other);
        assert_eq!(world.primary(), Some(promoted), "as soon as it is asked again");
    }
}

#[test]
fn whoever_does_not_answer_is_not_waited_for_when_another_is_promoted() {
    let mut world = led();
    world.silent("pg1");
    world.pass(DEBOUNCE);
    world.proves("pg2", 2);
    assert_eq!(world.primary(), None, "pg3 answered before");
    world.silent("pg3");
    assert_eq!(world.primary(), Some("pg2"));
}

#[test]
fn two_that_were_promoted_together_get_nothing_until_one_of_them_is_gone() {
    let mut world = led();
    world.proves("pg2", 2);
    world.proves("pg3", 2);
    world.pass(DEBOUNCE);
    assert!(world.primary().is_none() && world.why().ends_with("pg2 (2), pg3 (2)"), "{}", world.why());
    world.silent("pg3");
    world.pass(HOLD);
    world.proves("pg2", 2);
    assert_eq!(world.primary(), Some("pg2"));
    world.proves("pg3", 2);
    world.pass(DEBOUNCE);
    assert_eq!(world.primary(), None);
    world.replica("pg3");
    assert_eq!(world.primary(), Some("pg2"));
}

#[test]
fn replicas_of_a_leader_that_is_silent_are_as_far_behind_as_it_was_heard_to_be_ahead() {
    let mut world = led();
    let lag = |world: &World| world.view().members["pg2"].lag;
    world.answers("pg1", Answer::Primary { timeline: 1, system_id: Some("77".into()), wal: Some(1500) });
    world.replayed("pg2", 700);
    assert_eq!(lag(&world), Some(800));
    world.silent("pg1");
    assert_eq!(lag(&world), Some(800));
    world.pass(HOLD);
    world.replayed("pg2", 900);
    assert_eq!((world.primary(), lag(&world)), (None, Some(600)));
    for member in ["pg1", "pg3"] {
        world.of(member, "88");
    }
    assert_eq!(lag(&world), None, "of another database system");
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
    world.pass(HOLD);
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
    assert_eq!((world.view().leader_key.as_deref(), world.view().primary.as_ref().unwrap().timeline), (Some("pg1"), 2));
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
