//! Many agents that wait for the same member.

use std::time::Duration;

use pgsplice::cluster;
use pgsplice_tests::view::until;

use super::World;

const AGENTS: usize = 20;
/// Twice what three agents ask, and once around each.
const MOST_A_SECOND: usize = 2 * 3 * 25;

/// Patroni answers one question after the other, some 5 ms each.
#[tokio::test]
async fn a_large_fleet_leaves_the_next_primary_room_to_be_promoted() {
    let mut world = World::new().await;
    for number in 0..AGENTS {
        let entry =
            format!(r#"{{"name":"b{number}","address":"10.0.0.{number}:6432","state":"ready","leader":"pg1"}}"#);
        world.store.put(format!("/pgsplice/lab/bouncers/b{number}"), entry, None).await.unwrap();
    }
    let config = world.config("", "");
    let agents: Vec<_> = (0..AGENTS).map(|_| cluster::watch_among_many("main", &config.cluster)).collect();
    let open_to = |leader: &'static str| {
        move |view: &cluster::ClusterView| {
            view.bouncers.len() == AGENTS && view.primary.as_ref().is_some_and(|open| open.member == leader)
        }
    };
    for agent in &agents {
        until(agent, "pg1", open_to("pg1")).await;
    }
    world.store.put("/service/lab/leader", "pg2", None).await.unwrap();
    let before = world.members[1].asked();
    let watched = Duration::from_secs(3);
    tokio::time::sleep(watched).await;
    let asked = world.members[1].asked() - before;
    println!("{AGENTS} agents asked the next primary {asked} times in {watched:?}");
    assert!(asked <= AGENTS + MOST_A_SECOND * 3, "{asked} times");
    world.members[1].is_primary(2);
    for agent in &agents {
        until(agent, "pg2", open_to("pg2")).await;
    }
}
