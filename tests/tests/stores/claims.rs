//! Who is open, with any store, when several claim to be primary and when nobody may.

use std::time::Duration;

use pgsplice::cluster::ClusterView;
use pgsplice_tests::member::Member;
use pgsplice_tests::stores::Server;

use super::{LEADER, away, follow, until};

/// Two members in the store that can be asked for proof. The first leads, on timeline 5.
async fn claimants<S: Server>(server: &mut S) -> [Member; 2] {
    let members = [Member::start("pg1").await, Member::start("pg2").await];
    for (nth, member) in members.iter().enumerate() {
        let key = format!("/service/lab/members/{}", member.name);
        server.put(&key, member.key(&format!("127.1.0.{}:5432", nth + 1)).as_bytes()).await;
    }
    members[0].is_primary(5);
    server.put(LEADER, b"pg1").await;
    members
}

fn open_to(member: &str) -> impl Fn(&ClusterView) -> bool {
    move |view| view.primary.as_ref().is_some_and(|primary| primary.member == member)
}

/// Longer than a question to each member takes to come round.
const A_ROUND: Duration = Duration::from_millis(1500);

pub async fn only_who_the_key_names_and_who_proves_it_is_open_whatever_others_claim<S: Server>() {
    let mut server = S::start().await;
    let members = claimants(&mut server).await;
    let handle = follow(server.config());
    until(&handle, "pg1", open_to("pg1")).await;
    // A second one claims to be primary, on a higher timeline even: the key decides.
    members[1].is_primary(6);
    tokio::time::sleep(A_ROUND).await;
    let view = handle.view.borrow().clone();
    assert!(open_to("pg1")(&view) && !view.cut.contains_key("pg1"), "{}", view.closed_because);
    // The key moves to one whose timeline is behind: restored from a backup, or a proof from before.
    members[1].is_primary(4);
    server.put(LEADER, b"pg2").await;
    let back = "pg2 proves timeline 4, but a leader of this cluster has proved 5";
    let (view, _) = until(&handle, "refused", |view| view.closed_because.starts_with(back)).await;
    assert!(view.cut.contains_key("pg1"), "the old one is left all the same");
    members[1].is_primary(6);
    until(&handle, "pg2", open_to("pg2")).await;
    // Its REST API hangs, with PostgreSQL as it was.
    members[1].hangs();
    tokio::time::sleep(A_ROUND * 2).await;
    let view = handle.view.borrow().clone();
    assert!(open_to("pg2")(&view) && !view.cut.contains_key("pg2"), "{}", view.closed_because);
    members[1].is_primary(6);
    // Its key is broken: nothing new goes there, and nobody who is there is cut.
    server.put("/service/lab/members/pg2", b"{").await;
    let (view, _) = until(&handle, "closed", |view| view.primary.is_none()).await;
    assert!(!view.cut.contains_key("pg2"), "{:?}", view.cut);
    server.put("/service/lab/members/pg2", members[1].key("127.1.0.2:5432").as_bytes()).await;
    until(&handle, "pg2 again", open_to("pg2")).await;
    // The store is away, and who leads now cannot be known: nothing new to the lower timeline.
    server.process().kill();
    until(&handle, "away", away).await;
    tokio::time::sleep(A_ROUND).await;
    assert!(open_to("pg2")(&handle.view.borrow()), "it proves itself on the highest timeline");
    members[0].is_primary(9);
    let (view, _) = until(&handle, "closed", |view| view.primary.is_none()).await;
    assert!(!view.cut.contains_key("pg2") && view.closed_because.contains("higher timeline"), "{view:#?}");
}

pub async fn a_standby_cluster_opens_nothing_and_neither_pause_nor_a_lost_key_cuts<S: Server>() {
    let mut server = S::start().await;
    let members = claimants(&mut server).await;
    let handle = follow(server.config());
    until(&handle, "pg1", open_to("pg1")).await;
    let is_served = |view: &ClusterView| open_to("pg1")(view) && !view.cut.contains_key("pg1");
    // Maintenance, and failsafe mode, in which a leader goes on without the store as long as it reaches all others.
    server.put("/service/lab/config", br#"{"ttl":30,"pause":true,"failsafe_mode":true}"#).await;
    server.put("/service/lab/failsafe", br#"{"pg1":"http://127.0.0.1:1/patroni","pg2":""}"#).await;
    let (view, _) = until(&handle, "both", |view| view.said.paused && view.said.failsafe.len() == 2).await;
    assert!(is_served(&view));
    server.delete(LEADER).await;
    let (view, _) = until(&handle, "closed", |view| view.leader_key.is_none() && view.primary.is_none()).await;
    assert!(!view.cut.contains_key("pg1"), "it may be held up, and proves to be primary");
    server.put(LEADER, b"pg1").await;
    until(&handle, "pg1 again", is_served).await;
    // The whole cluster becomes a copy of another one.
    members[0].is("standby_leader");
    server.put("/service/lab/config", br#"{"standby_cluster":{"host":"10.1.0.1","port":5432}}"#).await;
    let standby = "this is a standby cluster, which has no primary";
    let (view, _) = until(&handle, "closed", |view| view.closed_because.ends_with(standby)).await;
    assert!(view.cut.contains_key("pg1"), "a write there fails");
    members[0].is_primary(6);
    server.put("/service/lab/config", b"{}").await;
    let (view, _) = until(&handle, "promoted", is_served).await;
    assert!(!view.said.paused && view.said.failsafe.is_empty(), "the key of failsafe mode outlives the mode");
}
