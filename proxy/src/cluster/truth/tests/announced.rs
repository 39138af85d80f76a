//! A move that is announced.

use super::*;

#[test]
fn an_announced_switchover_is_believed_until_it_has_come_or_for_its_time() {
    let mut world = World::open();
    let announced = |world: &World| world.view().switchover.as_ref().map(|said| said.to_string());
    assert_eq!(announced(&world), None);
    world.key("failover", r#"{"leader":"pg1","member":"pg2"}"#);
    world.listed();
    assert_eq!(announced(&world).as_deref(), Some("a switchover from pg1 to pg2"));
    world.leader("pg2");
    assert_eq!(announced(&world), None, "the key has moved");
    world.leader("pg1");
    assert!(announced(&world).is_some());
    world.pass(ANNOUNCED);
    assert_eq!(announced(&world), None, "it does not come");
    world.key("failover", "{}");
    world.listed();
    world.key("failover", r#"{"leader":"pg1","member":"pg2"}"#);
    world.listed();
    assert!(announced(&world).is_some(), "announced anew");
}

#[test]
fn a_scheduled_switchover_is_announced_when_it_is_due() {
    let mut world = World::open();
    world.now.wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_654_790);
    world.key("failover", r#"{"leader":"pg1","member":"pg2","scheduled_at":"2026-11-26T02:00:00+01:00"}"#);
    world.listed();
    assert_eq!(world.view().switchover, None);
    world.proves("pg1", 1);
    let deadline = world.truth.deadline(world.now).unwrap();
    assert!(deadline <= world.now.mono + ms(10_000), "it is looked at again in time");
    world.pass(ms(10_000));
    assert!(world.view().switchover.is_some());
}

#[test]
fn a_notice_of_pgsplice_is_no_bouncer_and_an_announcement() {
    let mut world = World::open();
    let notice = |world: &mut World, json: &str| {
        world.revision += 1;
        let (revision, keys) = (world.revision, world.keys.clone());
        let bouncers = [("@switchover".to_owned(), json.as_bytes().to_vec())].into();
        world.take(Input::Snapshot { revision, keys, bouncers });
    };
    notice(&mut world, r#"{"id":"a","leader":"pg1","candidate":"pg3"}"#);
    assert_eq!(world.view().switchover.as_ref().unwrap().to.as_deref(), Some("pg3"));
    assert!(world.view().bouncers.is_empty());
    assert_eq!(world.primary(), Some("pg1"), "the primary stays known while it is announced");
    notice(&mut world, "{");
    assert_eq!(world.view().switchover, None);
}
