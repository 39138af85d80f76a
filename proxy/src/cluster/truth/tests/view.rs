//! What a view shows.

use super::*;

#[test]
fn invalid_json_is_an_empty_member() {
    let mut world = World::open();
    world.key("members/pg2", "{");
    world.listed();
    let view = world.view();
    assert!(!view.members["pg2"].is_running() && view.members["pg2"].conn_addr.is_none());
    assert_eq!(world.primary(), Some("pg1"));
    world.key("members/pg1", "garbage");
    world.listed();
    assert_eq!(
        (world.primary(), &*world.why()),
        (None, "the leader key names pg1, which has no api_url in its member key")
    );
}

#[test]
fn a_view_is_published_only_when_something_changed() {
    let mut world = World::open();
    let before = world.view().generation;
    world.pass(ms(1000));
    world.listed();
    world.proves("pg1", 1);
    assert_eq!(world.view().generation, before, "times and the revision are no change");
    world.no_leader();
    assert_eq!(world.view().generation, before + 1);
}

#[test]
fn lag_is_optime_less_what_was_replayed() {
    let mut world = World::new();
    world.key("status", r#"{"optime":1000}"#);
    world.key("members/pg1", r#"{"xlog_location":1000,"state":"running"}"#);
    world.key(
        "members/pg2",
        r#"{"xlog_location":990,"replay_lsn":900,"state":"running","tags":{"noloadbalance":true}}"#,
    );
    world.listed();
    let view = world.view();
    let lag = |member: &str| view.members[member].lag;
    assert_eq!((lag("pg1"), lag("pg2"), lag("pg3")), (Some(0), Some(100), None));
    assert!(view.members["pg2"].tag_is_true("noloadbalance"));
}

#[test]
fn what_members_say_of_their_wal_counts_before_their_keys() {
    let mut world = World::new();
    world.key("leader", "pg1");
    world.key("status", r#"{"optime":1000}"#);
    for name in ["pg1", "pg2"] {
        let json = format!(r#"{{"api_url":"{}","xlog_location":1000,"state":"running"}}"#, url(name));
        world.key(&format!("members/{name}"), &json);
    }
    world.listed();
    assert_eq!(world.view().members["pg2"].lag, Some(0));
    world.answers("pg1", Answer::Primary { timeline: 1, system_id: None, wal: Some(1500) });
    let state = "running".to_owned();
    let replica = Answer::NotPrimary { role: "replica".into(), state, timeline: None, system_id: None, wal: Some(700) };
    world.answers("pg2", replica);
    assert_eq!(world.view().members["pg2"].lag, Some(800));
    world.silent("pg2");
    assert_eq!(world.view().members["pg2"].lag, Some(500), "silent: what its key says");
}

#[test]
fn names_are_asked_for_and_their_addresses_shown() {
    let mut world = World::new();
    world.key("members/pg1", r#"{"conn_url":"postgres://db1:5432/x","proxy_url":"postgres://10.0.0.1:6432/x"}"#);
    world.listed();
    let host = HostPort { host: "db1".into(), port: 5432 };
    assert!(world.truth.to_resolve().contains(&host));
    let address = "10.9.9.9:5432".parse().unwrap();
    world.take(Input::Resolved { host, address });
    let member = world.view().members["pg1"].clone();
    assert_eq!((member.conn_addr, member.proxy_addr), (Some(address), Some("10.0.0.1:6432".parse().unwrap())));
}

#[test]
fn a_bouncer_that_cannot_be_read_is_left_out() {
    let mut world = World::new();
    let good = r#"{"name":"x","address":"10.0.0.7:6432","peer_id":3,"state":"ready","leader":"pg1","timeline":1}"#;
    let bouncers = [("pb1", good), ("pb2", "{"), ("pb3", r#"{"name":"pb3","address":"nowhere","state":"ready"}"#)];
    let bouncers = bouncers.iter().map(|(name, json)| (name.to_string(), json.as_bytes().to_vec())).collect();
    world.take(Input::Snapshot { revision: 5, keys: world.keys.clone(), bouncers });
    let view = world.view();
    assert_eq!(view.bouncers.keys().collect::<Vec<_>>(), ["pb1"]);
    assert_eq!((&*view.bouncers["pb1"].name, view.bouncers["pb1"].peer_id), ("pb1", Some(3)));
}

#[test]
fn a_proof_is_shown_with_when_it_came_and_silence_with_since_when() {
    let mut world = World::open();
    assert!(matches!(world.view().members["pg1"].proof, Proof::Primary { timeline: 1, .. }));
    world.silent("pg2");
    let since = world.now.wall;
    world.pass(ms(1000));
    world.silent("pg2");
    let proof = world.view().members["pg2"].proof.clone();
    assert_eq!(proof, Proof::Silent { why: "connection refused".into(), since });
}
