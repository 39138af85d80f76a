//! Who is open, by the key and by proof.

use super::*;

#[test]
fn nothing_is_open_before_the_store_has_spoken() {
    let mut world = World::new();
    world.proves("pg1", 1);
    assert_eq!((world.primary(), &*world.why()), (None, "nothing heard from the store yet"));
    world.away();
    assert_eq!(world.why(), "the store was never reached: connection refused");
}

#[test]
fn the_leader_key_and_a_proof_open() {
    let world = World::open();
    let view = world.view();
    let primary = view.primary.as_ref().unwrap();
    assert_eq!((&*primary.member, primary.timeline, &*view.closed_because), ("pg1", 1, ""));
    assert_eq!(view.cut.keys().collect::<Vec<_>>(), ["pg2", "pg3"]);
    assert_eq!(view.members["pg1"].conn_addr, Some("10.0.0.1:5432".parse().unwrap()));
}

#[test]
fn leader_key_without_proof_does_not_open() {
    let mut world = World::new();
    world.leader("pg1");
    assert_eq!((world.primary(), &*world.why()), (None, "the leader key names pg1, which has not been asked yet"));
    world.says("pg1", "replica", "running");
    assert_eq!(
        (world.primary(), &*world.why()),
        (None, "the leader key names pg1, which says it is replica (running)")
    );
    world.silent("pg1");
    assert_eq!(world.why(), "the leader key names pg1, which does not answer: connection refused");
}

#[test]
fn a_proof_without_the_leader_key_does_not_open() {
    let mut world = World::new();
    world.listed();
    world.proves("pg2", 9);
    assert_eq!(world.primary(), None);
    world.leader("pg1");
    assert_eq!(world.primary(), None);
}

#[test]
fn a_proof_asked_for_before_the_key_named_the_member_does_not_open() {
    let mut world = World::open();
    world.leader("pg2");
    world.pass(ms(10));
    world.leader("pg1");
    assert_eq!(world.primary(), None, "{}", world.why());
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn an_answer_that_was_overtaken_by_a_newer_one_is_dropped() {
    let mut world = World::open();
    let before = world.now.mono;
    world.pass(ms(100));
    world.says("pg1", "replica", "running");
    let late = Answer::Primary { timeline: 1, system_id: None, wal: None };
    world.take(Input::Answered { member: "pg1".into(), api_url: url("pg1"), asked: before, answer: late });
    assert_eq!(world.primary(), None);
}

#[test]
fn only_the_one_everybody_waits_for_is_asked_tightly() {
    let mut world = World::open();
    let paces = |world: &World| ["pg1", "pg2", "pg3"].map(|member| world.pace(member));
    assert_eq!(paces(&world), [Pace::Slow; 3]);
    world.no_leader();
    assert_eq!(paces(&world), [Pace::Fast, Pace::Slow, Pace::Slow], "does the old one still prove primary?");
    world.says("pg1", "demoted", "stopped");
    assert_eq!(paces(&world), [Pace::Slow; 3]);
    world.leader("pg2");
    assert_eq!(paces(&world), [Pace::Slow, Pace::Tight, Pace::Slow]);
    world.proves("pg2", 2);
    assert_eq!(paces(&world), [Pace::Slow; 3]);
}

#[test]
fn standby_leader_is_not_a_primary() {
    let mut world = World::new();
    world.key("config", r#"{"standby_cluster":{"host":"10.1.0.1"}}"#);
    world.leader("pg1");
    world.says("pg1", "standby_leader", "running");
    assert_eq!(world.primary(), None);
    assert!(world.why().ends_with("this is a standby cluster, which has no primary"), "{}", world.why());
    assert_eq!(world.pace("pg1"), Pace::Tight);
    world.pass(ms(5000));
    assert_eq!(world.pace("pg1"), Pace::Fast);
    world.pass(ms(55_001));
    assert_eq!(world.pace("pg1"), Pace::Slow, "not asked fast for ever");
}

#[test]
fn pause_mode_does_not_demote() {
    let mut world = World::open();
    world.key("config", r#"{"pause":true}"#);
    world.listed();
    assert_eq!(world.primary(), Some("pg1"));
    world.pass(ms(1000));
    world.proves("pg1", 1);
    assert_eq!((world.primary(), world.cut()), (Some("pg1"), vec!["pg2".into(), "pg3".into()]));
}

#[test]
fn a_leader_key_that_names_nobody_we_know_opens_nothing() {
    let mut world = World::open();
    world.leader("pg9");
    assert_eq!((world.primary(), &*world.why()), (None, "the leader key names pg9, which has no member key"));
    assert_eq!(world.cut(), ["pg1", "pg2", "pg3"]);
}

#[test]
fn an_answer_from_the_place_a_member_left_is_dropped() {
    let mut world = World::new();
    world.leader("pg1");
    let asked = world.now.mono;
    let answer = Answer::Primary { timeline: 1, system_id: None, wal: None };
    world.take(Input::Answered { member: "pg1".into(), api_url: "http://old:8008/".into(), asked, answer });
    assert_eq!(world.primary(), None);
}

#[test]
fn one_lost_poll_closes_nothing_and_lasting_silence_does() {
    let mut world = World::open();
    world.pass(ms(1000));
    world.silent("pg1");
    assert_eq!(world.primary(), Some("pg1"));
    assert_eq!(world.truth.deadline(world.now), Some(world.now.mono + HOLD - ms(1000)));
    world.pass(HOLD - ms(1000));
    assert_eq!(world.primary(), None);
}
