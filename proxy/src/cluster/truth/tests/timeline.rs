//! No way back to a lower timeline, except of another database system.

use super::*;

#[test]
fn a_lower_timeline_is_refused() {
    let mut world = World::new();
    world.leader("pg1");
    world.proves("pg1", 5);
    world.leader("pg2");
    world.proves("pg2", 4);
    assert_eq!(world.primary(), None);
    assert!(world.why().starts_with("pg2 proves timeline 4, but a leader of this cluster has proved 5"));
    world.proves("pg2", 6);
    assert_eq!(world.primary(), Some("pg2"));
}

#[test]
fn a_timeline_nobody_the_key_named_has_proved_raises_no_floor() {
    let mut world = World::open();
    world.proves("pg2", 9);
    world.pass(HOLD);
    world.proves("pg1", 1);
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn a_new_initialize_id_starts_anew() {
    let mut world = World::new();
    world.leader("pg1");
    world.proves("pg1", 5);
    world.key("initialize", "88");
    world.listed();
    assert_eq!(world.primary(), None, "its proof is from the old system");
    assert_eq!(world.why(), "pg1 runs database system 77, but the cluster's is 88");
    world.answers("pg1", Answer::Primary { timeline: 1, system_id: Some("88".into()), wal: None });
    assert_eq!(world.primary(), Some("pg1"));
}

#[test]
fn the_old_initialize_id_keeps_its_floor() {
    let mut world = World::new();
    world.leader("pg1");
    world.proves("pg1", 5);
    world.key("initialize", "");
    world.listed();
    world.proves("pg1", 4);
    assert_eq!(world.primary(), None, "an empty initialize key forgets nothing");
    world.key("initialize", "88");
    world.listed();
    world.key("initialize", "77");
    world.listed();
    world.proves("pg1", 4);
    assert_eq!(world.primary(), None);
    world.proves("pg1", 5);
    assert_eq!(world.primary(), Some("pg1"));
}
