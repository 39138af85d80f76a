//! The agent beside a real PgBouncer, with a real etcd. The members' REST APIs say what a test wants them to say:
//! what a failover looks like there must come at a chosen moment. Real failovers are in the lab's tests.

// A test stops at the first thing that goes wrong.
#![allow(clippy::unwrap_used)]

mod bouncer;
mod fleet;
mod held;
mod server;
mod switchover;

use std::time::{Duration, Instant};

use etcd_client::Client;
use pgsplice::agent;
use pgsplice::cluster::{Bouncer, BouncerState};
use pgsplice::config::agent::AgentConfig;
use pgsplice_tests::member::Member;
use pgsplice_tests::stores::Etcd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use bouncer::PgBouncer;
use server::Server;

/// A cluster of two members, one PgBouncer and its agent.
struct World {
    etcd: Etcd,
    store: Client,
    bouncer: PgBouncer,
    members: [Member; 2],
    _servers: [Server; 2],
}

struct Agent {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl World {
    /// pg1 holds the key and proves primary.
    async fn new() -> Self {
        let etcd = Etcd::start_many(1);
        let mut store = etcd.client().await;
        let members = [Member::start("pg1").await, Member::start("pg2").await];
        let servers = [Server::start("pg1", "127.1.0.1").await, Server::start("pg2", "127.1.0.2").await];
        for (member, (host, server)) in members.iter().zip(["127.1.0.1", "127.1.0.2"].iter().zip(&servers)) {
            let json = member.key(&format!("{host}:{}", server.port));
            store.put(format!("/service/lab/members/{}", member.name), json, None).await.unwrap();
        }
        members[0].is_primary(1);
        store.put("/service/lab/leader", "pg1", None).await.unwrap();
        store.put("/service/lab/initialize", "77", None).await.unwrap();
        Self { etcd, store, bouncer: PgBouncer::start(), members, _servers: servers }
    }

    fn agent_with(&self, more: &str) -> Agent {
        self.agent_that(more, "")
    }

    /// `more` keys of `[pgbouncer]`, and of its cluster.
    fn agent_that(&self, more: &str, of_cluster: &str) -> Agent {
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(agent::run(self.config(more, of_cluster), async {
            let _ = stopped.await;
        }));
        Agent { stop, task }
    }

    fn config(&self, more: &str, of_cluster: &str) -> AgentConfig {
        let toml = format!(
            r#"
            name = "pb1"
            lease_ttl = "3s"
            [pgbouncer]
            address = "127.0.0.1:{port}"
            peer_id = 7
            console = "{console}"
            password = "secret"
            databases_file = "{file}"
            check_interval = "200ms"
            {more}
            [pgbouncer.databases]
            app = "dbname=app pool_size=5"
            "*" = ""
            [cluster.main]
            scope = "lab"
            {of_cluster}
            [cluster.main.etcd]
            endpoints = ["{etcd}"]
            "#,
            port = self.bouncer.port,
            console = self.bouncer.socket().display(),
            file = self.bouncer.databases_file().display(),
            etcd = self.etcd.endpoint(0),
        );
        AgentConfig::from_str_named(&toml, "agent.toml").unwrap().0
    }

    fn agent(&self) -> Agent {
        self.agent_with("")
    }

    async fn registered(&mut self) -> Option<Bouncer> {
        let answer = self.store.get("/pgsplice/lab/bouncers/pb1", None).await.unwrap();
        answer.kvs().first().map(|kv| serde_json::from_slice(kv.value()).unwrap())
    }

    async fn until(&mut self, what: &str, fits: impl Fn(Option<&Bouncer>) -> bool) -> Duration {
        let start = Instant::now();
        loop {
            let now = self.registered().await;
            if fits(now.as_ref()) {
                return start.elapsed();
            }
            assert!(start.elapsed() < Duration::from_secs(15), "never {what}: {now:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_ready_on(&mut self, leader: &str) -> Duration {
        let ready = |bouncer: Option<&Bouncer>| {
            bouncer.is_some_and(|b| b.state == BouncerState::Ready && b.leader.as_deref() == Some(leader))
        };
        self.until(&format!("ready on {leader}"), ready).await
    }

    /// The key moves and the new leader proves itself.
    async fn fail_over(&mut self, timeline: u32) {
        self.members[0].is_replica();
        self.members[1].is_primary(timeline);
        self.store.put("/service/lab/leader", "pg2", None).await.unwrap();
    }
}

impl Agent {
    async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap();
    }

    /// As `kill -9` would.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

#[tokio::test]
async fn the_databases_follow_the_leader() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    let entry = world.registered().await.unwrap();
    assert_eq!((entry.peer_id, entry.timeline, entry.address.port()), (Some(7), Some(1), world.bouncer.port));
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.1");
    world.fail_over(2).await;
    let took = world.until_ready_on("pg2").await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.2");
    assert_eq!(world.registered().await.unwrap().timeline, Some(2));
    agent.stop().await;
    assert_eq!(world.registered().await, None, "taken out at the end");
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.2", "and PgBouncer left as it is");
}

#[tokio::test]
async fn without_an_open_primary_nothing_is_touched() {
    let mut world = World::new().await;
    world.members[0].is_replica();
    let before = std::fs::read(world.bouncer.databases_file()).unwrap();
    let agent = world.agent();
    world.until("failed", |b| b.is_some_and(|b| b.state == BouncerState::Failed)).await;
    assert!(world.registered().await.unwrap().reason.contains("no primary was open"));
    assert_eq!(std::fs::read(world.bouncer.databases_file()).unwrap(), before);
    world.members[0].is_primary(1);
    world.until_ready_on("pg1").await;
    world.store.delete("/service/lab/leader", None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.1", "the last truth stays");
    agent.stop().await;
}

#[tokio::test]
async fn the_store_away_leaves_pgbouncer_as_it_is_and_the_entry_comes_back_with_it() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    world.etcd.kill(0);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.1");
    world.etcd.restart(0);
    world.store = world.etcd.client().await;
    world.fail_over(2).await;
    world.until_ready_on("pg2").await;
    agent.stop().await;
}

#[tokio::test]
async fn cut_off_from_the_store_it_follows_whoever_was_promoted_after_the_old_primary_stepped_down() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    world.etcd.kill(0);
    // As long as the old one says that it is primary, another's claim moves nothing.
    world.members[1].is_primary(2);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.1");
    // It steps down. One on its own timeline was not promoted after it.
    world.members[1].is_primary(1);
    world.members[0].is_replica();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.1");
    world.members[1].is_primary(2);
    let begun = Instant::now();
    while world.bouncer.host_of("app").await != "127.1.0.2" {
        assert!(begun.elapsed() < Duration::from_secs(5), "it never followed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.etcd.restart(0);
    world.store = world.etcd.client().await;
    world.store.put("/service/lab/leader", "pg2", None).await.unwrap();
    world.until_ready_on("pg2").await;
    agent.stop().await;
}

#[tokio::test]
async fn a_dead_pgbouncer_is_failed_and_one_that_comes_back_follows() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    world.bouncer.kill();
    let gone = "cannot connect to PgBouncer's console";
    world.until(gone, |b| b.is_some_and(|b| b.state == BouncerState::Failed && b.reason.contains(gone))).await;
    // The leader moves meanwhile: PgBouncer finds the new one in the file when it starts.
    world.fail_over(2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.bouncer.restart();
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.2");
    world.until_ready_on("pg2").await;
    agent.stop().await;
}

#[tokio::test]
async fn a_pgbouncer_that_refuses_the_file_is_failed() {
    let mut world = World::new().await;
    world.bouncer.break_config();
    let agent = world.agent();
    world.until("refused", |b| b.is_some_and(|b| b.reason.contains("after RELOAD"))).await;
    world.bouncer.mend_config();
    world.until_ready_on("pg1").await;
    agent.stop().await;
}

#[tokio::test]
async fn an_edited_file_is_put_right() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    std::fs::write(world.bouncer.databases_file(), "[databases]\napp = host=127.9.9.9\n").unwrap();
    world.bouncer.console("RELOAD").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.bouncer.host_of("app").await, "127.1.0.1");
    agent.stop().await;
}

#[tokio::test]
async fn a_maintenance_file_drains() {
    let mut world = World::new().await;
    let file = world.bouncer.databases_file().with_file_name("maintenance");
    let agent = world.agent_with(&format!("maintenance_file = {:?}", file.display().to_string()));
    world.until_ready_on("pg1").await;
    std::fs::write(&file, "").unwrap();
    world.until("draining", |b| b.is_some_and(|b| b.state == BouncerState::Draining)).await;
    world.fail_over(2).await;
    world.until("draining on pg2", |b| b.is_some_and(|b| b.leader.as_deref() == Some("pg2"))).await;
    std::fs::remove_file(&file).unwrap();
    world.until_ready_on("pg2").await;
    agent.stop().await;
}

#[tokio::test]
async fn a_paused_pgbouncer_is_not_ready() {
    let mut world = World::new().await;
    let agent = world.agent();
    world.until_ready_on("pg1").await;
    for (pause, resume, why) in
        [("PAUSE app", "RESUME app", "database app is paused"), ("PAUSE", "RESUME", "PgBouncer is paused")]
    {
        world.bouncer.console(pause).await;
        world.until("failed", |b| b.is_some_and(|b| b.reason == why)).await;
        world.bouncer.console(resume).await;
        world.until_ready_on("pg1").await;
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_console_that_hangs_is_failed_and_the_file_still_follows() {
    let mut world = World::new().await;
    let agent = world.agent_with("timeout = \"500ms\"");
    world.until_ready_on("pg1").await;
    world.bouncer.freeze();
    world.until("failed", |b| b.is_some_and(|b| b.reason.contains("no answer within 500ms"))).await;
    world.fail_over(2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let text = std::fs::read_to_string(world.bouncer.databases_file()).unwrap();
    assert!(text.contains("app = host=127.1.0.2 ") && text.contains(" dbname=app pool_size=5"), "{text}");
    world.bouncer.thaw();
    world.until_ready_on("pg2").await;
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_killed_at_any_moment_leaves_a_pgbouncer_that_the_next_one_finishes() {
    let mut world = World::new().await;
    for (round, delay) in [0u64, 1, 2, 4, 8, 16, 32, 64].into_iter().enumerate() {
        let timeline = round as u32 + 2;
        let (leader, host) = if round % 2 == 0 { ("pg2", "127.1.0.2") } else { ("pg1", "127.1.0.1") };
        let agent = world.agent();
        let [first, second] = &world.members;
        let (new, old) = if round % 2 == 0 { (second, first) } else { (first, second) };
        old.is_replica();
        new.is_primary(timeline);
        world.store.put("/service/lab/leader", leader, None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        agent.kill().await;
        let host_now = world.bouncer.host_of("app").await;
        assert!(host_now.starts_with("127."), "a whole configuration at every moment: {host_now}");
        let agent = world.agent();
        world.until_ready_on(leader).await;
        assert_eq!(world.bouncer.host_of("app").await, host);
        agent.kill().await;
    }
}
