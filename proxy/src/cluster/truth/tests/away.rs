//! The store is away.

use super::*;

#[test]
fn store_away_freezes_the_view() {
    let mut world = World::open();
    world.away();
    let view = world.view();
    assert!(matches!(&view.store, StoreHealth::Unreachable { why, .. } if why == "connection refused"));
    for _ in 0..100 {
        world.pass(ms(1000));
        world.proves("pg1", 1);
    }
    assert_eq!((world.primary(), world.cut()), (Some("pg1"), vec!["pg2".into(), "pg3".into()]));
    assert_eq!(world.view().members.len(), 3);
    world.listed();
    assert!(matches!(world.view().store, StoreHealth::Connected { .. }) && world.primary() == Some("pg1"));
}

#[test]
fn store_away_and_the_leader_silent_closes_after_the_hold_and_cuts_nobody_for_it() {
    let mut world = World::open();
    world.away();
    world.pass(HOLD / 2);
    world.silent("pg1");
    assert_eq!(world.primary(), Some("pg1"));
    world.pass(HOLD / 2);
    assert_eq!(world.primary(), None);
    assert!(!world.view().cut.contains_key("pg1"));
}

#[test]
fn store_away_and_the_leader_says_it_is_demoted_is_cut_by_its_own_word() {
    let mut world = World::open();
    world.away();
    world.says("pg1", "demoted", "running");
    assert_eq!(world.primary(), None);
    assert!(world.view().cut.contains_key("pg1"));
}

#[test]
fn store_away_and_two_prove_primary_admits_nothing_to_the_lower_timeline() {
    let mut world = World::open();
    world.away();
    world.proves("pg2", 2);
    assert_eq!(world.primary(), None);
    assert_eq!(world.why(), "the store is away and pg2 proves primary on a higher timeline than pg1's 1");
    assert!(!world.view().cut.contains_key("pg1"), "never cut because the store is away");
    world.listed();
    assert_eq!(world.primary(), Some("pg1"), "the key decides once it can be read again");
}

#[test]
fn store_away_and_the_other_proves_a_lower_timeline_changes_nothing() {
    let mut world = World::new();
    world.leader("pg1");
    world.proves("pg1", 3);
    world.away();
    world.proves("pg2", 2);
    assert_eq!(world.primary(), Some("pg1"));
}
