//! What must be so with any store.

use std::time::Duration;

use pgsplice::cluster::store::Registration;
use pgsplice::cluster::{self, BouncerState, ClusterView, announce};
use pgsplice::config;
use pgsplice_tests::stores::{Server, Wire};
use tokio::sync::watch;

pub use super::claims::*;
use super::{ENTRY, ENTRY_KEY, LEADER, away, cluster_config, connected, follow, led_by, register, until, why};

/// On a machine that runs other tests beside: shorter than the interval of every look, and than any lease.
const AT_ONCE: Duration = Duration::from_millis(1500);

/// One test for each scenario, over one store.
macro_rules! over {
    ($server:ty: $($scenario:ident)*) => {
        $(
            #[tokio::test]
            async fn $scenario() {
                crate::scenarios::$scenario::<$server>().await;
            }
        )*
    };
    ($server:ty) => {
        crate::scenarios::over! { $server:
            keys_appear_change_and_vanish
            a_citus_group_is_a_cluster_of_its_own
            a_leader_whose_session_ends_is_gone_and_may_come_back
            a_killed_server_freezes_the_view_and_a_restarted_one_is_read_again
            a_frozen_server_is_noticed
            a_cut_wire_is_noticed_and_what_changed_meanwhile_is_there_after
            a_slow_server_is_followed_all_the_same
            a_quiet_connection_lives_past_many_looks
            a_server_that_was_restored_or_forgot_is_not_believed
            broken_and_huge_values_are_empty_members
            a_bouncer_is_registered_updated_and_taken_out
            an_announced_switchover_is_seen_until_it_is_taken_back
            a_dead_agent_is_taken_out_when_its_session_expires
            a_registration_comes_back_after_its_session_and_after_the_server
            an_entry_that_a_dead_agent_left_is_taken_over
            only_who_the_key_names_and_who_proves_it_is_open_whatever_others_claim
            a_standby_cluster_opens_nothing_and_neither_pause_nor_a_lost_key_cuts
        }
    };
}
pub(crate) use over;

pub async fn keys_appear_change_and_vanish<S: Server>() {
    let mut server = S::start().await;
    let handle = follow(server.config());
    let (view, _) = until(&handle, "an empty store", connected).await;
    assert_eq!((view.leader_key.as_ref(), view.members.len()), (None, 0));

    server.put("/service/lab/members/pg1", br#"{"role":"replica","state":"running"}"#).await;
    until(&handle, "a member", |view| view.members.get("pg1").is_some_and(|pg1| pg1.is_running())).await;
    server.put("/service/lab/members/pg2", b"{}").await;
    server.put(LEADER, b"pg1").await;
    let (view, _) = until(&handle, "a leader", led_by("pg1")).await;
    assert!(view.members.len() == 2 && view.members["pg2"].state.is_empty());

    server.put("/service/lab/members/pg1", br#"{"role":"primary","state":"running"}"#).await;
    until(&handle, "a changed member", |view| view.members["pg1"].role == "primary").await;
    let mut slowest = Duration::ZERO;
    for leader in ["pg2", "pg1", "pg2"] {
        server.put(LEADER, leader.as_bytes()).await;
        slowest = slowest.max(until(&handle, leader, led_by(leader)).await.1);
    }
    // The stores are looked at every 2 s: no change waits for that.
    assert!(slowest < AT_ONCE, "{slowest:?}");

    // A change elsewhere, then one here: only this one is seen.
    server.put("/service/other/leader", b"nobody").await;
    server.put("/service/lab/initialize", b"77").await;
    let (view, _) = until(&handle, "initialize", |view| view.system_id.as_deref() == Some("77")).await;
    assert_eq!(view.leader_key.as_deref(), Some("pg2"));

    server.delete("/service/lab/members/pg1").await;
    until(&handle, "a member gone", |view| !view.members.contains_key("pg1")).await;
    server.delete(LEADER).await;
    let (view, _) = until(&handle, "no leader", |view| view.leader_key.is_none()).await;
    assert!(connected(&view) && view.members.contains_key("pg2"));
}

pub async fn a_citus_group_is_a_cluster_of_its_own<S: Server>() {
    let mut server = S::start().await;
    for (group, leader) in [("0", b"pg1"), ("1", b"pg2")] {
        server.put(&format!("/service/lab/{group}/leader"), leader).await;
        server.put(&format!("/service/lab/{group}/members/{}", String::from_utf8_lossy(leader)), b"{}").await;
        let entry = ENTRY.replace("pg1", &String::from_utf8_lossy(leader));
        server.put(&format!("/pgsplice/lab/{group}/bouncers/pb{group}"), entry.as_bytes()).await;
    }
    server.put(LEADER, b"pg9").await;
    for (group, leader) in [(0, "pg1"), (1, "pg2")] {
        let config = config::Cluster { citus_group: Some(group), ..cluster_config(server.config()) };
        let handle = cluster::watch("lab", &config);
        let (view, _) = until(&handle, leader, led_by(leader)).await;
        assert_eq!(view.members.keys().collect::<Vec<_>>(), [leader]);
        assert_eq!(view.bouncers.keys().cloned().collect::<Vec<_>>(), [format!("pb{group}")]);
        server.put(&format!("/service/lab/{group}/leader"), b"pg3").await;
        until(&handle, "pg3", led_by("pg3")).await;
    }
}

pub async fn a_leader_whose_session_ends_is_gone_and_may_come_back<S: Server>() {
    let mut server = S::start().await;
    let owner = server.put_owned(LEADER, b"pg1").await;
    let handle = follow(server.config());
    until(&handle, "pg1", led_by("pg1")).await;
    server.end(owner).await;
    until(&handle, "nobody", |view| connected(view) && view.leader_key.is_none()).await;
    let again = server.put_owned(LEADER, b"pg1").await;
    until(&handle, "pg1 again", led_by("pg1")).await;
    // Deleted and made by another at once: whatever is seen in between, the last is right.
    server.end(again).await;
    server.put_owned(LEADER, b"pg2").await;
    until(&handle, "pg2", led_by("pg2")).await;
}

pub async fn a_killed_server_freezes_the_view_and_a_restarted_one_is_read_again<S: Server>() {
    let mut server = S::start().await;
    server.put(LEADER, b"pg1").await;
    let handle = follow(server.config());
    until(&handle, "pg1", led_by("pg1")).await;
    server.process().kill();
    let (view, took) = until(&handle, "unreachable", away).await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(why(&view).contains("127.0.0.1") && why(&view).contains("refused"), "{}", why(&view));
    assert_eq!(view.leader_key.as_deref(), Some("pg1"), "frozen");
    server.restart().await;
    server.put(LEADER, b"pg2").await;
    until(&handle, "connected to pg2", |view| connected(view) && led_by("pg2")(view)).await;
}

pub async fn a_frozen_server_is_noticed<S: Server>() {
    let mut server = S::start().await;
    server.put(LEADER, b"pg1").await;
    let handle = follow(server.config());
    until(&handle, "pg1", led_by("pg1")).await;
    server.process().freeze();
    let (view, took) = until(&handle, "unreachable", away).await;
    server.process().thaw();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(why(&view).contains("no answer within 2s"), "{}", why(&view));
    assert_eq!(view.leader_key.as_deref(), Some("pg1"), "frozen");
    until(&handle, "connected", connected).await;
}

pub async fn a_cut_wire_is_noticed_and_what_changed_meanwhile_is_there_after<S: Server>() {
    let mut server = S::start().await;
    server.put(LEADER, b"pg1").await;
    server.put("/service/lab/members/pg1", b"{}").await;
    let wire = Wire::to(server.port()).await;
    let handle = follow(server.at(wire.port, Duration::from_millis(500)));
    until(&handle, "pg1", |view| led_by("pg1")(view) && view.members.contains_key("pg1")).await;
    wire.cut();
    let (_, took) = until(&handle, "unreachable", away).await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    server.delete("/service/lab/members/pg1").await;
    server.put(LEADER, b"pg2").await;
    server.put(LEADER, b"pg3").await;
    assert_eq!(handle.view.borrow().leader_key.as_deref(), Some("pg1"), "frozen");
    wire.heal();
    until(&handle, "pg3", |view| connected(view) && led_by("pg3")(view) && view.members.is_empty()).await;
}

pub async fn a_slow_server_is_followed_all_the_same<S: Server>() {
    let mut server = S::start().await;
    server.put(LEADER, b"pg1").await;
    let wire = Wire::to(server.port()).await;
    wire.slow(Duration::from_millis(150));
    let handle = follow(server.at(wire.port, Duration::from_millis(500)));
    until(&handle, "pg1", led_by("pg1")).await;
    for leader in ["pg2", "pg3"] {
        server.put(LEADER, leader.as_bytes()).await;
        let (view, took) = until(&handle, leader, |view| led_by(leader)(view) || away(view)).await;
        assert!(led_by(leader)(&view) && took < Duration::from_secs(3), "{took:?}: {}", why(&view));
    }
}

pub async fn a_quiet_connection_lives_past_many_looks<S: Server>() {
    let server = S::start().await;
    let handle = follow(server.at(server.port(), Duration::from_millis(100)));
    until(&handle, "connected", connected).await;
    let generation = handle.view.borrow().generation;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(handle.view.borrow().generation, generation, "nothing happened");
}

pub async fn a_server_that_was_restored_or_forgot_is_not_believed<S: Server>() {
    let mut server = S::start().await;
    server.put(LEADER, b"pg0").await;
    server.process().kill();
    server.back_up();
    server.restart().await;
    // Far above what a busy server writes by itself while it starts; Consul counts only what changes a value.
    for number in (1..=300).rev() {
        server.put(LEADER, format!("pg{number}").as_bytes()).await;
    }
    let handle = follow(server.config());
    until(&handle, "pg1", led_by("pg1")).await;
    for lose in [S::restore, S::wipe] {
        server.process().kill();
        until(&handle, "away", |view| why(view).contains("refused")).await;
        lose(&server);
        server.restart().await;
        server.put(LEADER, b"pg9").await;
        let (view, _) = until(&handle, "refused", |view| why(view).contains("restart pgsplice")).await;
        assert_eq!(view.leader_key.as_deref(), Some("pg1"));
    }
}

pub async fn broken_and_huge_values_are_empty_members<S: Server>() {
    let mut server = S::start().await;
    server.put(LEADER, b"good").await;
    server.put("/service/lab/members/good", br#"{"role":"primary","state":"running"}"#).await;
    let huge = format!(r#"{{"state":"running","role":"replica","tags":{{"a":"{}"}}}}"#, "x".repeat(400_000));
    let deep = "[".repeat(100_000);
    let handle = follow(server.config());
    until(&handle, "good", led_by("good")).await;
    for (name, value) in [
        ("huge", huge.as_bytes()),
        ("deep", deep.as_bytes()),
        ("empty", b""),
        ("list", b"[1]"),
        ("binary", &[0xff, 0x00, 0xfe]),
    ] {
        let key = format!("/service/lab/members/{name}");
        server.put(&key, value).await;
        let (view, _) = until(&handle, name, |view| view.members.contains_key(name)).await;
        assert_eq!((&*view.members[name].role, &*view.members[name].state), ("", ""), "{name}");
        server.delete(&key).await;
        let (view, _) = until(&handle, "gone", |view| !view.members.contains_key(name)).await;
        assert!(connected(&view) && view.members["good"].is_running(), "{name}");
    }
    for (key, value) in [("config", huge.as_bytes()), ("history", &[0xff]), ("status", b"]"), ("sync", deep.as_bytes())]
    {
        server.put(&format!("/service/lab/{key}"), value).await;
    }
    // No bouncer, and no harm.
    server.put("/pgsplice/lab/bouncers/broken", b"{").await;
    server.put("/service/lab/members/last", b"{}").await;
    let (view, _) = until(&handle, "last", |view| view.members.contains_key("last")).await;
    assert!(connected(&view) && view.members["good"].is_running() && view.bouncers.is_empty());
}

pub async fn a_bouncer_is_registered_updated_and_taken_out<S: Server>() {
    let server = S::start().await;
    let handle = follow(server.config());
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let agent = register(server.config(), &value);
    until(&handle, "registered", |view| view.bouncers.contains_key("pb1")).await;
    value.send_replace(ENTRY.replace("ready", "failed").into_bytes());
    until(&handle, "failed", |view| view.bouncers["pb1"].state == BouncerState::Failed).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(handle.view.borrow().bouncers.contains_key("pb1"), "the session is kept alive");
    drop(value);
    let (_, took) = until(&handle, "taken out", |view| view.bouncers.is_empty()).await;
    assert!(took < AT_ONCE, "{took:?}");
    agent.await.unwrap();
}

pub async fn an_announced_switchover_is_seen_until_it_is_taken_back<S: Server>() {
    let mut server = S::start().await;
    let handle = follow(server.config());
    server.put(LEADER, b"pg1").await;
    let (value, receiver) = watch::channel(br#"{"id":"1","leader":"pg1","candidate":"pg2"}"#.to_vec());
    let entry = Registration {
        key: format!("/pgsplice/lab/bouncers/{}", announce::ENTRY),
        value: receiver,
        ttl: Duration::from_secs(10),
    };
    let announcing = tokio::spawn(cluster::store::register(&cluster_config(server.config()), entry));
    let (view, _) = until(&handle, "announced", |view| view.switchover.is_some()).await;
    assert_eq!(view.switchover.as_ref().unwrap().to_string(), "a switchover from pg1 to pg2");
    assert!(view.bouncers.is_empty());
    drop(value);
    let (_, took) = until(&handle, "taken back", |view| view.switchover.is_none()).await;
    assert!(took < AT_ONCE, "{took:?}");
    announcing.await.unwrap();
}

pub async fn a_dead_agent_is_taken_out_when_its_session_expires<S: Server>() {
    let server = S::start().await;
    let handle = follow(server.config());
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let agent = register(server.config(), &value);
    until(&handle, "registered", |view| view.bouncers.contains_key("pb1")).await;
    agent.abort();
    let (_, took) = until(&handle, "expired", |view| view.bouncers.is_empty()).await;
    // Consul's sessions live up to twice their least ttl of 10 s.
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(40), "{took:?}");
}

pub async fn a_registration_comes_back_after_its_session_and_after_the_server<S: Server>() {
    let mut server = S::start().await;
    let handle = follow(server.config());
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let _agent = register(server.config(), &value);
    let registered = |view: &_| connected(view) && view.bouncers.contains_key("pb1");
    until(&handle, "registered", registered).await;
    server.expire(ENTRY_KEY).await;
    until(&handle, "expired", |view| view.bouncers.is_empty()).await;
    until(&handle, "registered again", registered).await;
    server.restart().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    until(&handle, "still registered", registered).await;
}

pub async fn an_entry_that_a_dead_agent_left_is_taken_over<S: Server>() {
    let mut server = S::start().await;
    server.put_owned(ENTRY_KEY, ENTRY.replace("pg1", "pg0").as_bytes()).await;
    let handle = follow(server.config());
    until(&handle, "the old one", |view| view.bouncers.contains_key("pb1")).await;
    let (value, _) = watch::channel(ENTRY.as_bytes().to_vec());
    let _agent = register(server.config(), &value);
    let ours =
        |view: &ClusterView| view.bouncers.get("pb1").is_some_and(|bouncer| bouncer.leader.as_deref() == Some("pg1"));
    let (_, took) = until(&handle, "ours", ours).await;
    assert!(took < Duration::from_secs(8), "{took:?}");
}
