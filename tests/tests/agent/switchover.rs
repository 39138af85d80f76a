//! Planned moves and unplanned ones, as the clients of a PgBouncer see them.

use std::time::{Duration, Instant};

use pgsplice::agent;
use pgsplice::cluster::BouncerState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::World;

impl World {
    async fn announce(&mut self) {
        self.store.put("/service/lab/failover", r#"{"leader":"pg1","member":"pg2"}"#, None).await.unwrap();
    }

    async fn take_back(&mut self) {
        self.store.put("/service/lab/failover", "{}", None).await.unwrap();
    }

    /// What Patroni does: the key moves, the announcement goes, and a while later the new leader is writable.
    async fn switch_over(&mut self, after: Duration) {
        self.members[0].is_replica();
        self.store.put("/service/lab/leader", "pg2", None).await.unwrap();
        self.take_back().await;
        tokio::time::sleep(after).await;
        self.members[1].is_primary(2);
    }

    async fn until_points_to(&self, host: &str) {
        let begun = Instant::now();
        while self.bouncer.host_of("app").await != host {
            assert!(begun.elapsed() < Duration::from_secs(5), "app never pointed to {host}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until_state(&mut self, state: BouncerState) {
        self.until(&format!("{state:?}"), |bouncer| bouncer.is_some_and(|bouncer| bouncer.state == state)).await;
    }
}

/// Who answers.
pub async fn ask(client: &Client) -> Result<String, tokio_postgres::Error> {
    let answer = client.simple_query("SELECT who").await?;
    let row = answer.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(row.unwrap_or_default())
}

#[tokio::test]
async fn an_announced_switchover_is_a_wait_for_clients_and_no_error() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    assert_eq!(ask(&client).await.unwrap(), "pg1");
    world.announce().await;
    world.until_state(BouncerState::Paused).await;
    assert_eq!(world.bouncer.paused().await, ["app"]);
    let asked = Instant::now();
    let waiting = tokio::spawn(async move { (ask(&client).await, asked.elapsed()) });
    world.switch_over(Duration::from_millis(300)).await;
    world.until_ready_on("pg2").await;
    let (answer, waited) = waiting.await.unwrap();
    assert_eq!(answer.unwrap(), "pg2");
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    let said = world.registered().await.unwrap().waited_ms.unwrap();
    assert!((250..=waited.as_millis() as u64).contains(&said), "{said} ms, the client waited {waited:?}");
    assert!(world.bouncer.paused().await.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn a_transaction_under_way_is_waited_for() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    client.simple_query("BEGIN").await.unwrap();
    world.announce().await;
    world.until_state(BouncerState::Pausing).await;
    assert_eq!(ask(&client).await.unwrap(), "pg1", "the transaction goes on");
    client.simple_query("COMMIT").await.unwrap();
    world.until_state(BouncerState::Paused).await;
    world.switch_over(Duration::ZERO).await;
    world.until_ready_on("pg2").await;
    assert_eq!(ask(&client).await.unwrap(), "pg2");
    agent.stop().await;
}

#[tokio::test]
async fn an_announcement_that_is_taken_back_is_resumed_at_once() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    world.announce().await;
    world.until_state(BouncerState::Paused).await;
    world.take_back().await;
    let took = world.until_ready_on("pg1").await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(world.bouncer.paused().await.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn a_switchover_that_does_not_come_is_not_waited_for_for_ever() {
    let mut world = World::new().await;
    let agent = world.agent_that("", "switchover_hold = \"1s\"");
    world.until_ready_on("pg1").await;
    world.announce().await;
    world.until_state(BouncerState::Paused).await;
    let took = world.until_ready_on("pg1").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(world.bouncer.paused().await.is_empty(), "nor is it paused again");
    // The leader goes and no other comes: held, and for as long as that. The way is to who comes next.
    world.take_back().await;
    world.announce().await;
    world.until_state(BouncerState::Paused).await;
    world.members[0].is_replica();
    world.store.put("/service/lab/leader", "pg2", None).await.unwrap();
    world.until_ready_on("pg2").await;
    assert!(world.bouncer.paused().await.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_stopped_while_paused_resumes_first_and_one_that_was_killed_is_resumed_by_the_next() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    world.announce().await;
    world.until_state(BouncerState::Paused).await;
    agent.stop().await;
    assert!(world.bouncer.paused().await.is_empty());

    let agent = world.agent();
    world.until_state(BouncerState::Paused).await;
    agent.kill().await;
    assert_eq!(world.bouncer.paused().await, ["app"]);
    world.take_back().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    assert!(world.bouncer.paused().await.is_empty());
    agent.stop().await;
}

#[tokio::test]
async fn what_somebody_else_paused_is_not_resumed() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    world.bouncer.console("PAUSE app").await;
    world.announce().await;
    world.until_state(BouncerState::Paused).await;
    world.take_back().await;
    world.until("failed", |b| b.is_some_and(|b| b.reason == "database app is paused")).await;
    agent.stop().await;
    assert_eq!(world.bouncer.paused().await, ["app"]);
}

/// Wherever in a switchover the agent dies, what is left is a PgBouncer that the next agent brings to the new leader.
#[tokio::test]
async fn an_agent_killed_in_any_step_of_a_switchover_leaves_a_pgbouncer_that_works() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    agent.stop().await;
    for step in 0..12_u64 {
        world.members[0].is_primary(1 + 2 * step as u32);
        world.members[1].is_replica();
        world.store.put("/service/lab/leader", "pg1", None).await.unwrap();
        let agent = world.agent();
        world.until_ready_on("pg1").await;
        world.announce().await;
        let moving = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            world.members[0].is_replica();
            world.members[1].is_primary(2 + 2 * step as u32);
            world.store.put("/service/lab/leader", "pg2", None).await.unwrap();
            world.store.put("/service/lab/failover", "{}", None).await.unwrap();
            tokio::time::sleep(Duration::from_millis(80)).await;
        };
        tokio::join!(moving, async {
            tokio::time::sleep(Duration::from_millis(step * 6)).await;
            agent.kill().await;
        });
        let agent = world.agent();
        world.until_ready_on("pg2").await;
        assert!(world.bouncer.paused().await.is_empty(), "killed after {} ms", step * 6);
        assert_eq!(ask(&client).await.unwrap(), "pg2");
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_failover_ends_what_is_under_way_at_the_old_primary() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let (busy, idle) = (world.bouncer.client().await, world.bouncer.client().await);
    busy.simple_query("BEGIN").await.unwrap();
    assert_eq!(ask(&idle).await.unwrap(), "pg1");
    world.fail_over(2).await;
    world.until_ready_on("pg2").await;
    // A write of its transaction must not be taken by a server that leads no more: RECONNECT would let it go on.
    ask(&busy).await.unwrap_err();
    assert_eq!(ask(&idle).await.unwrap(), "pg2");
    let servers = world.bouncer.console("SHOW SERVERS").await;
    let old = servers.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.get("addr") == Some("127.1.0.1"),
        _ => false,
    });
    assert!(!old);
    agent.stop().await;
}

#[tokio::test]
async fn a_callback_repoints_once_and_registers_nothing() {
    let mut world = World::new().await;
    let soon = Duration::from_secs(10);
    assert_eq!(agent::once(world.config("", ""), soon).await.unwrap(), "pg1");
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.1");
    world.fail_over(2).await;
    assert_eq!(agent::once(world.config("", ""), soon).await.unwrap(), "pg2");
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.2");
    assert_eq!(world.registered().await, None);
    world.members[1].is_replica();
    let why = agent::once(world.config("", ""), Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(why, "no primary was open within 500ms");
}

/// The key moves before the next primary is open, and the old one, whose Patroni died, goes on taking writes.
#[tokio::test]
async fn a_deposed_primary_gets_nothing_more_although_the_next_is_not_open_yet() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let (busy, idle) = (world.bouncer.client().await, world.bouncer.client().await);
    busy.simple_query("BEGIN").await.unwrap();
    assert_eq!(ask(&idle).await.unwrap(), "pg1");
    world.store.put("/service/lab/leader", "pg2", None).await.unwrap();
    world.until_state(BouncerState::Paused).await;
    ask(&busy).await.unwrap_err();
    let waiting = tokio::spawn(async move { ask(&idle).await });
    // What the next one will need is loaded by now, and nobody gets there before it is open.
    world.until_points_to("127.1.0.2").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "it waits for the next primary");
    assert_eq!(world.registered().await.unwrap().leader.as_deref(), Some("pg1"));
    world.members[1].is_primary(2);
    world.until_ready_on("pg2").await;
    assert_eq!(waiting.await.unwrap().unwrap(), "pg2");
    agent.stop().await;
}

/// The member that took the key is not promoted, and the old one has it again.
#[tokio::test]
async fn databases_that_were_loaded_ahead_go_back_where_the_key_does() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    world.store.put("/service/lab/leader", "pg2", None).await.unwrap();
    world.until_points_to("127.1.0.2").await;
    world.store.put("/service/lab/leader", "pg1", None).await.unwrap();
    world.until_ready_on("pg1").await;
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.1");
    assert_eq!(ask(&client).await.unwrap(), "pg1");
    agent.stop().await;
}

/// It goes on taking writes, and they are lost when the next one opens, which refuses them until then.
#[tokio::test]
async fn nothing_goes_back_to_a_deposed_primary_although_the_next_does_not_open_in_time() {
    let mut world = World::new().await;
    let agent = world.agent_that("", "switchover_hold = \"1s\"");
    world.until_ready_on("pg1").await;
    let client = world.bouncer.client().await;
    assert_eq!(ask(&client).await.unwrap(), "pg1");
    world.store.put("/service/lab/leader", "pg2", None).await.unwrap();
    world.until_state(BouncerState::Paused).await;
    assert_eq!(ask(&client).await.unwrap(), "pg2", "after the hold");
    world.until_ready_on("pg2").await;
    assert_eq!(world.registered().await.unwrap().timeline, None, "not promoted yet");
    world.store.delete("/service/lab/leader", None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(ask(&client).await.unwrap(), "pg2", "nor when nobody has the key");
    world.store.put("/service/lab/leader", "pg1", None).await.unwrap();
    world.until_ready_on("pg1").await;
    assert_eq!(ask(&client).await.unwrap(), "pg1", "the key is back");
    world.store.put("/service/lab/leader", "pg2", None).await.unwrap();
    world.until_state(BouncerState::Paused).await;
    agent.stop().await;
    assert_eq!(ask(&client).await.unwrap(), "pg2", "nor when the agent ends");
}
