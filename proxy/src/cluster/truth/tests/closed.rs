//! When the open one is closed, and when its sessions are cut.

use super::*;

#[test]
fn the_key_moves_and_the_old_leader_is_cut_before_the_new_one_has_proved() {
    let mut world = World::open();
    world.leader("pg2");
    assert_eq!((world.primary(), world.cut()), (None, vec!["pg1".into(), "pg3".into()]));
    assert_eq!(world.view().cut["pg1"], "the leader key names pg2");
    world.says("pg2", "replica", "running");
    world.pass(ms(100));
    world.proves("pg2", 2);
    assert_eq!((world.primary(), world.cut()), (Some("pg2"), vec!["pg1".into(), "pg3".into()]));
}

#[test]
fn an_old_leader_whose_member_key_is_gone_is_still_cut() {
    let mut world = World::open();
    // Its Patroni was killed: leader key and member key share a lease.
    world.keys.remove("members/pg1");
    world.no_leader();
    assert!(!world.view().members.contains_key("pg1") && world.cut().is_empty());
    assert!(world.truth.to_ask().any(|(member, _)| member == "pg1"), "it is asked as long as it may prove primary");
    world.leader("pg2");
    assert_eq!(world.view().cut["pg1"], "the leader key names pg2");
}

#[test]
fn demoted_by_its_own_word_is_cut() {
    for role in ["replica", "demoted", "standby_leader"] {
        let mut world = World::open();
        world.says("pg1", role, "running");
        assert_eq!(world.primary(), None);
        assert_eq!(world.view().cut["pg1"], format!("pg1 says it is {role} (running)"));
        world.silent("pg1");
        assert!(world.view().cut.contains_key("pg1"), "silence does not take it back");
    }
}

#[test]
fn a_primary_that_restarts_in_its_place_is_closed_and_not_cut() {
    let mut world = World::open();
    world.says("pg1", "primary", "starting");
    assert_eq!((world.primary(), world.cut()), (None, vec!["pg2".into(), "pg3".into()]));
    world.pass(ms(1000));
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn key_absent_keeps_sessions_and_stops_admission_after_the_debounce() {
    let mut world = World::open();
    world.no_leader();
    assert_eq!(world.primary(), Some("pg1"));
    assert_eq!(world.truth.deadline(world.now), Some(world.now.mono + DEBOUNCE));
    world.pass(DEBOUNCE - ms(1));
    assert_eq!(world.primary(), Some("pg1"));
    world.pass(ms(1));
    assert_eq!((world.primary(), &*world.why()), (None, "no member holds the leader key"));
    assert!(world.cut().is_empty(), "its sessions stay");
    world.proves("pg1", 1);
    assert_eq!(world.primary(), None, "a proof alone does not open");
    world.leader("pg1");
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn key_absent_and_the_old_leader_demoted_by_its_own_word_is_cut_at_once() {
    let mut world = World::open();
    world.no_leader();
    world.says("pg1", "replica", "running");
    assert_eq!((world.primary(), world.cut()), (None, vec!["pg1".into()]));
}

#[test]
fn a_key_that_comes_back_within_the_debounce_is_no_news() {
    let mut world = World::open();
    world.no_leader();
    world.pass(ms(100));
    world.leader("pg1");
    assert_eq!(world.primary(), Some("pg1"));
    world.pass(DEBOUNCE);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn two_writable_primaries_and_only_the_one_the_key_names_is_open() {
    let mut world = World::open();
    world.leader("pg2");
    world.proves("pg2", 2);
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg2"));
    assert!(world.view().cut.contains_key("pg1"));
    assert_eq!(world.pace("pg1"), Pace::Fast, "while two prove primary");
    assert_eq!(world.pace("pg2"), Pace::Slow);
}
